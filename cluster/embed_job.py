"""An embed job: what a store lacks of some slides, pushed through the pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cluster.actors import SpaceShape
from cluster.batching import fixed_batching
from cluster.job import ALREADY_EMBEDDED, STOPPED, EmbedOptions, Progress, SlideOutcome, Task
from cluster.pipeline import Pipeline
from cluster.resources import ray_session
from cluster.telemetry.account import StageRate
from cluster.telemetry.board import running_job
from her2cache.backbones.device import best_device
from her2cache.backbones.pooled import doubt
from her2cache.cohort import Slide
from her2cache.embedder import Batching, FeatureSpace, Recipe
from her2cache.errors import CorruptFeaturesError, IncompleteSlideError, SchemaVersionError, SlideError, StoreError
from her2cache.ingest import ReadOptions, selection_changed
from her2cache.slide import file_changed
from her2cache.store.audit import retire
from her2cache.store.reader import FeatureStore
from her2cache.store.schema import CommitRecord

MPP_TOLERANCE = 0.3
"""Beyond this ratio of scales an embedder is warned of."""


@dataclass(frozen=True)
class EmbedReport:
    """The result of a job.

    Attributes:
        outcomes: one a slide, in cohort order.
        space_keys: of the spaces that were asked for, in the order of the embedders.
        patches: embedded now.
        seconds: from the first slide handed out to the last committed.
        passes: patches that went through each embedder, every view counted.
        segments_decoded: of all slides and levels.
        left_out: patches of the slides embedded now that were left out, by reason.
        warnings: what is odd about what was asked for.
        stages: how fast decoding, the forward passes and writing were from the first block to the end.
    """

    outcomes: list[SlideOutcome]
    space_keys: list[str]
    patches: int = 0
    seconds: float = 0.0
    passes: list[int] = field(default_factory=list[int])
    segments_decoded: int = 0
    left_out: dict[str, int] = field(default_factory=dict[str, int])
    warnings: list[str] = field(default_factory=list[str])
    stages: dict[str, StageRate] = field(default_factory=dict[str, StageRate])


def embed_slides(
    slides: Sequence[Slide],
    recipes: Sequence[Recipe],
    store: FeatureStore,
    reading: ReadOptions,
    options: EmbedOptions,
    watch: Callable[[Progress], None] = lambda _: None,
    *,
    views: int = 1,
    precision: str = "auto",
) -> EmbedReport:
    """Embeds every slide that a store lacks.

    Args:
        slides: which.
        recipes: the embedders; each makes a feature space of its own.
        store: where features go.
        reading: patches, thresholds, tolerances.
        options: of the job.
        watch: called whenever counts change.
        views: of each patch: itself, and views - 1 augmented ones.
        precision: of the products on a GPU, see `batching.fixed_batching`.

    Returns:
        What became of each slide. A bad slide is a "failed" outcome with a record in the store, never an
        exception.

    Raises:
        StoreUnreachableError: the store stopped answering. What was committed stays, no slide is recorded as failed.
    """
    spaces = [FeatureSpace(reading.patch, reading.tissue, recipe.spec, views) for recipe in recipes]
    keys = [
        store.add_space(space, weights=recipe.source, card=recipe.card)
        for space, recipe in zip(spaces, recipes, strict=True)
    ]
    warnings = [*scale_warnings(recipes, reading.patch.mpp), *filter(None, map(doubt, recipes))]
    there = [set(store.slides(key)) for key in keys]
    once = [k for k, key in enumerate(keys) if keys.index(key) == k]  # one embedder may be asked for by two names
    records = {k: store.committed_each(keys[k], [s.slide_id for s in slides if s.slide_id in there[k]]) for k in once}
    outcomes: dict[str, SlideOutcome] = {}
    todo: list[Task] = []
    for slide in slides:
        held = [k for k in once if slide.slide_id in there[k]]
        try:
            changes = {k: _change(slide, _whole(records[k][slide.slide_id]).slide) for k in held}
        except (StoreError, SlideError) as error:  # a damaged record concerns its slide alone
            outcomes[slide.slide_id] = SlideOutcome(slide.slide_id, "failed", str(error))
            continue
        stale = [k for k in held if changes[k]]
        if stale and not options.replace:
            outcomes[slide.slide_id] = SlideOutcome(slide.slide_id, "failed", changes[stale[0]])
            continue
        for k in stale:
            retire(store.records, keys[k], slide.slide_id)
            there[k].discard(slide.slide_id)
        which = [k for k in once if k not in held or k in stale]
        outcomes[slide.slide_id] = SlideOutcome(slide.slide_id, "skipped", ALREADY_EMBEDDED)
        if which:
            todo.append(Task(slide, which))
    if options.on_error == "fail" and any(outcome.status == "failed" for outcome in outcomes.values()):
        outcomes |= {task.slide.slide_id: SlideOutcome(task.slide.slide_id, "skipped", STOPPED) for task in todo}
        todo = []
    if not todo:
        return EmbedReport([outcomes[s.slide_id] for s in slides], keys, warnings=warnings)
    wanted = fixed_batching(reading.patch.patch_px, best_device(), precision)
    for k in sorted({k for task in todo for k in task.which}):
        warnings += precision_warnings(recipes[k].spec.name, store, keys[k], sorted(there[k]), wanted)
    shapes = [SpaceShape(s.key, s.embedder.dim, s.views, s.dtype) for s in spaces]
    with ray_session(options.address), running_job("embed", options.address, store.uri) as seen:
        job = Pipeline(todo, recipes, shapes, store, reading, options, watch, precision, seen)
        asked = {task.slide.slide_id for task in todo}
        job.account.before = Counter(o.status for o in outcomes.values() if o.slide_id not in asked)
        seen.show(job.account)
        outcomes |= {outcome.slide_id: outcome for outcome in job.run()}
    return EmbedReport(
        outcomes=[outcomes[s.slide_id] for s in slides],
        space_keys=keys,
        patches=job.progress.written_patches,
        seconds=job.seconds,
        passes=job.passes,
        segments_decoded=job.segments_decoded,
        left_out=job.left_out,
        warnings=warnings,
        stages=job.account.overall(),
    )


def scale_warnings(recipes: Sequence[Recipe], mpp: float) -> list[str]:
    """A line for each embedder that was trained at quite another scale than the patches it is given.

    Args:
        recipes: the embedders.
        mpp: of the patches, um/px.
    """
    found: list[str] = []
    for recipe in recipes:
        if recipe.card is None:
            continue
        known = recipe.card.source_mpp
        if max(known, mpp) / min(known, mpp) > 1 + MPP_TOLERANCE:
            side, times = ("larger", known / mpp) if known > mpp else ("smaller", mpp / known)
            found.append(
                f"{recipe.spec.name} was trained on patches of {known:g} um/px and is given {mpp:g}: nuclei are"
                f" {times:.1f} times {side} than those it knows; --mpp {known:g} would match"
            )
    return found


def precision_warnings(
    name: str, store: FeatureStore, space_key: str, slide_ids: Iterable[str], wanted: Batching
) -> list[str]:
    """A line where a job would compute features otherwise than those that a space has.

    Args:
        name: of the embedder.
        store: where the space is.
        space_key: which.
        slide_ids: committed in it, and there to stay.
        wanted: how the job runs.
    """
    made, now = batching_made(store, space_key, slide_ids), wanted.precision
    before = now if made is None else made.get("precision", "float32")  # before there was a choice
    if before == now:
        return []
    remedy = "with --precision float32"
    if before == "float16":
        remedy = "without --precision float32" if wanted.device == "cuda" else "on a GPU"
    return [
        f"{name}: this job computes in {now}, and the slides that its feature space has were computed in {before}: one"
        f" space would mix both; embed {remedy}, or into another store"
    ]


def batching_made(store: FeatureStore, space_key: str, slide_ids: Iterable[str]) -> Mapping[str, Any] | None:
    """How slides of a space were embedded, as the first of them says whose record is whole; None where there is none.

    See `embedder.Batching`; records of before it was kept give nothing of it.
    """
    for slide_id in slide_ids:
        with suppress(IncompleteSlideError, CorruptFeaturesError, SchemaVersionError):
            return store.record(slide_id, space_key).made.get("batching", {})
    return None


def _whole(record: CommitRecord | StoreError) -> CommitRecord:
    if isinstance(record, StoreError):
        raise record
    return record


def _change(slide: Slide, committed: Mapping[str, Any]) -> str:
    """Why the features of a slide are not those that are asked for now; "" when they are."""
    remedy = "embed it anew with --replace, or list it under another slide_id"
    if file_changed(slide.path, committed):
        return (
            f"{slide.path} is not the file whose features the store holds as {slide.slide_id!r}: its bytes changed"
            f" since; {remedy}"
        )
    if selection_changed(slide, committed):
        return (
            f"the store holds features of {slide.slide_id!r} for other regions or tissue thresholds than the cohort"
            f" table has now; {remedy}"
        )
    return ""
