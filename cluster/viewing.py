"""The slides of a sweep, as the viewer shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cluster.drawing import sister_of
from cluster.scoring import SweepModels, open_models
from her2cache.cohort import Slide
from her2cache.errors import CohortError, Her2CacheError, MissingMppError, SweepError
from her2cache.slide import open_slide, resolve_mpp
from trainers.heatmap import Look
from trainers.maps import MapChoice, PatchMaps, alone, partition_bags, patch_maps
from trainers.patch_scores import PatchScores
from trainers.score import SlideScore
from trainers.tasks import Task
from trainers.viewer.scene import Layer, Picture, Scene, SlideEntry

_BAGS = 1000


class SweepScenes:
    """The labelled slides of a sweep that its store holds: those of the fixed test set first, with predictions.

    Predictions are of all folds' models together, as in `her2cache score`; maps are of the fold of least validation
    loss, as in `her2cache heatmap`.

    Args:
        sweep: the sweep's directory.
        embedder: whose models; by default that of least mean validation loss.
        run_id: one run instead.

    Raises:
        SweepError: no run has been tested, or no slide of the cohort is in the store.
        ConfigError: there is no such run or embedder.
    """

    def __init__(self, sweep: Path, *, embedder: str | None = None, run_id: str | None = None) -> None:
        self.title = sweep.resolve().name
        self._models = open_models(sweep, embedder=embedder, run_id=run_id)
        self._best = open_models(sweep, embedder=embedder, run_id=run_id, best_fold=True)
        tested = self._models.test_slides(sweep)
        self._slides = {slide.slide_id: slide for slide in tested}
        scores = {slide.slide_id: _score(self._models, slide) for slide in tested}
        for slide in self._models.cohort():
            held = slide.stain == self._models.experiment.data.stain and self._is_stored(slide)
            if held and slide.her2_score is not None:
                self._slides.setdefault(slide.slide_id, slide)
        if not self._slides:
            raise SweepError(f"{sweep}: no slide of its cohort is in its store; run `her2cache embed` first")
        self._entries = [_entry(slide, scores, self._models.task) for slide in self._slides.values()]

    def entries(self) -> Sequence[SlideEntry]:
        return self._entries

    def open(self, slide_id: str) -> Scene:
        slide, (key,), task = self._slides[slide_id], self._best.space_keys, self._best.task
        (scores,) = self._best.patch_scores(slide)
        record, store = self._best.store.record(slide_id, key), self._best.store
        patch = store.find_space(key).document["patch"]
        dealt = partition_bags(len(scores.attention_logit), _BAGS, self._best.bag_size, np.random.default_rng(0))
        with open_slide(slide.path) as reader:
            he = Picture(slide.path, reader.size, float(record.slide["mpp"]))
        return Scene(
            he=he,
            ihc=_sister(slide, self._models.cohort(), he.mpp),
            coords=np.asarray(store.coords(slide_id, key)),
            patch_px=record.patch_level0_px,
            step_px=record.patch_level0_px * patch["stride_px"] / patch["patch_px"],
            layers=_layers(patch_maps(scores, dealt), scores, self._best.bag_size, task),
            caption=f"Maps are of run {self._best.run_ids[0]}, {len(dealt):,} bags of {self._best.bag_size}.",
        )

    def _is_stored(self, slide: Slide) -> bool:
        return self._best.store.has(slide.slide_id, self._best.space_keys[0])


def _score(models: SweepModels, slide: Slide) -> SlideScore | None:
    """None for a slide whose features cannot be read: its page says why."""
    try:
        return models.score(slide, _BAGS)
    except Her2CacheError:
        return None


def _entry(slide: Slide, scores: Mapping[str, SlideScore | None], task: Task) -> SlideEntry:
    score, truth = scores.get(slide.slide_id), ""
    if slide.her2_score is not None:
        truth = task.classes[label] if (label := task.label(slide.her2_score, slide.ish)) is not None else ""
    return SlideEntry(
        slide_id=slide.slide_id,
        case_id=slide.case_id,
        truth=truth,
        predicted="" if score is None else task.classes[score.predicted],
        expected_score=None if score is None else score.expected_score,
        part="test" if slide.slide_id in scores else "training",
    )


def _sister(slide: Slide, cohort: Sequence[Slide], mpp: float) -> Picture | None:
    """None where there is none, or where it cannot be read: the slide is shown without it."""
    sister = sister_of(slide, cohort)
    if sister is None:
        return None
    try:
        with open_slide(sister.path) as reader:
            try:
                own, _ = resolve_mpp(reader, sister.mpp)
            except MissingMppError:
                own = mpp  # most likely the same scanner
            return Picture(sister.path, reader.size, own)
    except (CohortError, Her2CacheError):
        return None


def _layers(maps: PatchMaps, scores: PatchScores, size: int, task: Task) -> list[Layer]:
    choices = [MapChoice(), MapChoice("signed"), MapChoice("mean-field")]
    choices += [MapChoice("class", c) for c in range(len(task.classes))]
    layers: list[Layer] = []
    for choice in choices:
        values = choice.values(maps, scores, size, task)
        look = Look.of(choice.title(task), choice.caption(task), values, diverging=choice.kind == "signed")
        low = -look.scale_max if look.diverging else 0.0
        layers.append(Layer(look.name, f"{look.caption}.", values, low, look.scale_max, look.diverging))
    by_itself = alone(scores)  # (patches, classes)
    return layers + [
        Layer(f"p({name}) of the patch alone", f"Probability of {name} for a bag of this patch only.", p, 0.0, 1.0)
        for name, p in zip(task.classes, by_itself.T, strict=True)
    ]
