"""Maps of slides by a model of a sweep: pictures, GeoJSON, contact sheets, and their agreement with the truth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.scoring import SweepModels
from her2cache.cohort import Slide
from her2cache.errors import Her2CacheError, MissingMppError
from her2cache.ids import encode_slide_id
from her2cache.remote import SlidePath
from her2cache.slide import open_slide, resolve_mpp
from trainers.contact import extremes, read_patches, write_contact_sheet
from trainers.geojson import write_geojson
from trainers.heatmap import Look, Section, draw_heatmap, place_patches
from trainers.maps import MapChoice, PatchMaps, Values, alone, mean_field_map, partition_bags, patch_maps
from trainers.palette import COLOURS
from trainers.patch_scores import PatchScores
from trainers.score import SlideScore, score_slide
from trainers.tasks import Task
from trainers.truth import TruthMap, truth_auc

THUMBNAIL_PX = 960
"""Longer side of the thumbnail under a heatmap, about as many px as it has in the picture."""

_STAINS = {"HE": "H&E", "IHC": "IHC"}


@dataclass(frozen=True)
class MapOptions:
    """How the map of a slide is drawn.

    Attributes:
        bags: that the patches are dealt into; raised to a whole pass where fewer would leave patches out.
        choice: which map.
        scale_max: upper end of the colour scale; None for that of all slides.
        ihc: section to draw beside it; by default the sister slide that the cohort has, if any.
        truth: truth map to compare attention with; by default that of a synthetic cohort.
        geojson: file for QuPath; None for none.
        patches: contact sheet of the patches at both ends; None for none.
        top: patches of each end on it.
    """

    bags: int = 1000
    choice: MapChoice = field(default_factory=MapChoice)
    scale_max: float | None = None
    ihc: Slide | None = None
    truth: Path | None = None
    geojson: Path | None = None
    patches: Path | None = None
    top: int = 8


@dataclass(frozen=True)
class DrawnSlide:
    """What became of a slide.

    Attributes:
        score: of the slide by the same model.
        bags: that the patches were dealt into.
        ihc: the section drawn beside it.
        truth_auc: AUC of attention against the truth map; None where there is none, or it is all one.
        written: name -> file.
        notes: what a reader should know.
    """

    score: SlideScore
    bags: int
    ihc: SlidePath | None
    truth_auc: float | None
    written: Mapping[str, Path]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Mapped:
    """The patches of a slide with their values."""

    scores: PatchScores
    maps: PatchMaps
    values: Values
    coords: NDArray[np.int32]
    side_level0_px: float
    mpp_level0: float
    tumour: Values | None


def sister_of(slide: Slide, cohort: Iterable[Slide]) -> Slide | None:
    """The first IHC slide of the same case whose file is at hand; none for a slide that is IHC itself."""
    if slide.stain == "IHC":
        return None
    return next((s for s in cohort if s.stain == "IHC" and s.case_id == slide.case_id and _at_hand(s)), None)


def _at_hand(slide: Slide) -> bool:
    try:
        return slide.path.is_file()
    except Her2CacheError:  # a bucket that cannot be used
        return False


def truth_of(slide: Slide, cohort_table: Path) -> Path | None:
    """The truth map that `her2cache synth` wrote beside its table; None where there is none."""
    path = cohort_table.parent / "truth" / f"{encode_slide_id(slide.slide_id)}.npz"
    return path if path.is_file() else None


def draw_slide(models: SweepModels, slide: Slide, out: Path, options: MapOptions) -> DrawnSlide:
    """Draws a map over the thumbnail of a slide that the store holds.

    Args:
        models: one; open it with `best_fold`.
        slide: its file must be at hand, for the thumbnail.
        out: the PNG to write.
        options: of the map.

    Raises:
        SlideError: the slide's file, or the IHC slide that was named, cannot be read.
        CohortError: the truth map that was named cannot be read, or the store holds another slide under this id.
    """
    (model,), (run_id,), task = models.trained, models.run_ids, models.task
    features = models.store.features(slide.slide_id, model.origin.space_key)
    (scores,) = models.patch_scores(slide)
    n_patches = len(features)
    dealt = partition_bags(n_patches, options.bags, models.bag_size, np.random.default_rng(0))
    maps = patch_maps(scores, dealt)
    record = models.store.record(slide.slide_id, model.origin.space_key)
    coords, mpp = models.store.coords(slide.slide_id, model.origin.space_key), float(record.slide["mpp"])
    truth = options.truth or truth_of(slide, Path(models.experiment.data.cohort))
    tumour = None if truth is None else TruthMap.read(truth).of_patches(coords, record.patch_level0_px, mpp)
    values = options.choice.values(maps, scores, models.bag_size, task)
    mapped = _Mapped(scores, maps, values, coords, record.patch_level0_px, mpp, tumour)
    score = score_slide([scores], n_patches, bags=options.bags, size=models.bag_size)
    title = (
        f"{slide.slide_id} · run {run_id} · predicted {task.classes[score.predicted]}"
        f" (expected score {score.expected_score:.2f})"
    )
    ihc, section, notes = _ihc_section(slide, models, options)
    patch_px = int(models.store.find_space(model.origin.space_key).document["patch"]["patch_px"])
    written = {"heatmap": out}
    with open_slide(slide.path) as reader:
        origin = reader.origin
        thumbnail, downsample = reader.thumbnail(THUMBNAIL_PX)
        he = Section(thumbnail, mpp * downsample, _STAINS.get(slide.stain, slide.stain))
        squares = place_patches(coords, record.patch_level0_px, downsample, he.shape)
        look = _look(options, values, task)
        draw_heatmap(he, squares=squares, values=values, look=look, title=title, out=out, ihc=section)
        if options.patches is not None:
            ends = extremes(values, options.top)
            chosen = np.concatenate([ends.top, ends.bottom])
            pixels = read_patches(reader, coords[chosen], record.patch_level0_px, patch_px, mpp)
            k = len(ends.top)
            write_contact_sheet(
                (pixels[:k], pixels[k:]),
                (values[ends.top], values[ends.bottom]),
                (coords[ends.top], coords[ends.bottom]),
                title=f"{slide.slide_id} · {look.name} · patches of {record.patch_level0_px * mpp:.0f} um",
                out=options.patches,
            )
            written["patches"] = options.patches
    if options.geojson is not None:
        key = f"{record.slide.get('sha256', slide.slide_id)}/{run_id}"
        _write_geojson(options.geojson, mapped, models.bag_size, task, key, origin)
        written["geojson"] = options.geojson
    auc = None if tumour is None else truth_auc(maps.attention, tumour)
    return DrawnSlide(score, len(dealt), ihc, auc, written, notes)


def _look(options: MapOptions, values: Values, task: Task) -> Look:
    choice, signed = options.choice, options.choice.kind == "signed"
    if options.scale_max is not None:
        return Look(choice.title(task), choice.caption(task), options.scale_max, diverging=signed)
    return Look.of(choice.title(task), choice.caption(task), values, diverging=signed)


def _ihc_section(
    slide: Slide, models: SweepModels, options: MapOptions
) -> tuple[SlidePath | None, Section | None, tuple[str, ...]]:
    """The IHC section, or why it cannot be shown: one that was not asked for does not stop the map."""
    if options.ihc is not None:
        return options.ihc.path, _section(options.ihc), ()
    sister = sister_of(slide, models.cohort())
    if sister is None:
        return None, None, ()
    try:
        return sister.path, _section(sister), ()
    except Her2CacheError as error:
        return None, None, (f"drawn without the IHC slide of its case: {error}",)


def _section(slide: Slide) -> Section:
    with open_slide(slide.path) as reader:
        pixels, downsample = reader.thumbnail(THUMBNAIL_PX)
        try:
            scale = resolve_mpp(reader, slide.mpp)[0] * downsample
        except MissingMppError:  # it needs none but for the scale bar
            scale = None
    return Section(pixels, scale, _STAINS["IHC"])


def _write_geojson(path: Path, mapped: _Mapped, bag_size: int, task: Task, key: str, origin: tuple[int, int]) -> None:
    scores, maps, classes = mapped.scores, mapped.maps, task.classes
    by_itself = alone(scores)  # (patches, classes)
    measurements: dict[str, Values] = {
        "attention": maps.attention,
        "attention-weighted score": maps.positive(task),
        "mean-field score": mean_field_map(scores, bag_size, task),
        "signed score": maps.signed(scores, task),
        **{f"attention-weighted p({name})": maps.by_class[:, c] for c, name in enumerate(classes)},
        **{f"p({name}) of the patch alone": by_itself[:, c] for c, name in enumerate(classes)},
    }
    if mapped.tumour is not None:
        measurements["tumour fraction (truth)"] = mapped.tumour
    write_geojson(
        path,
        coords=mapped.coords,
        patch_level0_px=mapped.side_level0_px,
        measurements=measurements,
        classes=[f"HER2 {name}" for name in classes],
        predicted=by_itself.argmax(axis=1),
        colours=COLOURS[: len(classes)],
        key=key,
        origin=origin,
    )
