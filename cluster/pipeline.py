"""The loop that keeps readers, embedders and writers busy with one job's slides.

A *lane* is a reader and a writer that work on one slide; the embedders serve all lanes. The driver
passes references, never pixels. It takes a block from a reader only while the unfinished blocks stay
within a budget of bytes, so memory depends on the machine, not on the slides.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, cast

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from cluster.actors import SpaceResult, SpaceShape, remote_embedder, remote_reader, remote_writer
from cluster.batching import fixed_batching
from cluster.job import ALREADY_EMBEDDED, EmbedOptions, Progress, SlideOutcome
from her2cache.backbones.device import best_device
from her2cache.cohort import Slide
from her2cache.embedder import Recipe
from her2cache.errors import EmbedderError, Her2CacheError, SlideError, StoreError
from her2cache.ingest import ReadOptions, ReadSummary, SlideSurvey
from her2cache.store.reader import FeatureStore
from her2cache.store.schema import FailureRecord

IN_FLIGHT_BYTES = 192 << 20
"""Budget of patches that are read but not yet written, over the whole job on one machine."""

BLOCKS_PER_EMBEDDER = 3
"""One in the forward pass, one waiting, one on its way."""

BLOCK_BYTES = 8 << 20
"""Batches go between actors in blocks of at most this size, or one by one: a block costs Ray 15 ms of CPU."""

_LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)
"""A process or a node is gone, and perhaps not by the slide's fault."""

_ANSWER_S, _DISCARD_S = 60.0, 10.0
_TRACEBACK_LINES = 20
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # Ray colours its tracebacks


@dataclass
class Task:
    slide: Slide
    which: list[int]  # indices of the spaces that lack the slide
    attempts: int = 0


@dataclass(frozen=True)
class _Pending:
    """A call to a writer that is under way: which embedder works for it, and on how many patches."""

    embedder: int | None
    patches: int


@dataclass
class _Lane:
    """A reader, a writer, and the slide they are at."""

    reader: Any
    writer: Any
    task: Task | None = None
    stream: Any = None  # what the reader yields
    survey: SlideSurvey | None = None
    taken: int = 0  # blocks of the stream
    drained: bool = True
    summary: ReadSummary | None = None
    written: int = 0  # patches
    pending: dict[Any, _Pending] = field(default_factory=dict[Any, _Pending])
    committing: Any = None


class Pipeline:
    """One job: its actors, its slides, and what became of them.

    Attributes:
        progress: counts while it runs.
        seconds: from the first slide handed out to the last committed.
        passes: patches that went through each embedder, every view counted.
        segments_decoded: of all slides and levels.
        left_out: patches of committed slides that have no features, by reason.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        recipes: Sequence[Recipe],
        spaces: Sequence[SpaceShape],
        store: FeatureStore,
        reading: ReadOptions,
        options: EmbedOptions,
        watch: Callable[[Progress], None],
        precision: str = "auto",
    ) -> None:
        self._tasks = tasks
        self._queue = deque(tasks)
        self._spaces = spaces
        self._store = store
        self._options = options
        self._watch = watch
        self.progress = Progress(slides=len(tasks))
        self.seconds = 0.0
        self.passes: list[int] = []
        self.segments_decoded = 0
        self.left_out = {"undecodable": 0, "blurred": 0}
        self._outcomes: dict[str, SlideOutcome] = {}
        self._stopped = False

        device = best_device()
        self._count = count = max(1, int(ray.cluster_resources().get("GPU" if device == "cuda" else "CPU", 1)))
        patch_px = reading.patch.patch_px
        self._batchings = [fixed_batching(max(patch_px, r.spec.input_px), device, precision) for r in recipes]
        batch = fixed_batching(patch_px, device).batch  # the largest of them, and all others divide it
        batch_bytes = batch * patch_px**2 * 3
        batches = max(1, BLOCK_BYTES // batch_bytes)
        self._reading = replace(reading, block=batches * batch)
        block_bytes = batches * batch_bytes
        self._budget = max(2, min(BLOCKS_PER_EMBEDDER * count, IN_FLIGHT_BYTES // block_bytes))  # blocks
        self._ahead = max(1, min(4, IN_FLIGHT_BYTES // 4 // block_bytes))  # blocks a reader may be ahead

        self._kinds = len(recipes)
        self._recipes = ray.put(list(recipes))
        self._embedders: list[Any] = []
        self._lanes: list[_Lane] = []
        self._made: dict[str, Any] = {}

    def run(self) -> list[SlideOutcome]:
        """Works until every slide is done or given up; returns an outcome a slide."""
        try:
            self._embedders = [self._new_embedder() for _ in range(self._count)]
            self._lanes = [
                _Lane(self._new_reader(), self._new_writer())
                for _ in range(min(len(self._tasks), 2 + -(-self._count // 2)))  # some wait for the disk
            ]
            self._made = self._provenance()
            started = time.perf_counter()
            while not self._stopped and self._step():
                self._watch(self.progress)
            self._watch(self.progress)
            self.seconds = time.perf_counter() - started
            self.passes = self._counted()
        finally:
            self._end_actors()
        stopped = "not tried, or not to the end: the job stopped at the first failure"
        return [
            self._outcomes.get(task.slide.slide_id, SlideOutcome(task.slide.slide_id, "skipped", stopped))
            for task in self._tasks
        ]

    def _provenance(self) -> dict[str, Any]:
        """What the embedders say of themselves. One that dies as it starts is replaced, as one that dies later is."""
        for _ in range(self._options.max_attempts - 1):
            with suppress(*_LOST):
                return cast(dict[str, Any], ray.get(self._embedders[0].ready.remote()))
            self._embedders[0] = self._new_embedder()
        try:
            return cast(dict[str, Any], ray.get(self._embedders[0].ready.remote()))
        except _LOST as error:
            raise EmbedderError(
                f"the embedders do not start ({_last_line(error)}): a package is missing where Ray runs them, or memory"
                " is short; install the same packages on every machine"
            ) from error

    def _counted(self) -> list[int]:
        """What each embedder counted, over all actors that still answer."""
        total = [0] * self._kinds
        for embedder in self._embedders:
            with suppress(RayError):
                counts = cast(list[int], ray.get(embedder.counted.remote(), timeout=_ANSWER_S))
                total = [a + b for a, b in zip(total, counts, strict=True)]
        return total

    def _end_actors(self) -> None:
        """Lets writers remove the attempts that are under way, then ends every process of the job."""
        discarded = [lane.writer.discard.remote() for lane in self._lanes]
        if discarded:
            ray.wait(discarded, num_returns=len(discarded), timeout=_DISCARD_S)
        for actor in (*self._embedders, *(actor for lane in self._lanes for actor in (lane.reader, lane.writer))):
            ray.kill(actor)

    def _step(self) -> bool:
        """Hands out slides, waits for one thing to happen, and reacts; False when nothing is left."""
        for lane in self._lanes:
            while lane.task is None and self._queue:
                self._begin(lane, self._queue.popleft())
        waits: dict[Any, _Lane] = {}
        room = sum(self._load()) < self._budget
        for lane in self._lanes:
            if lane.committing is not None:
                waits[lane.committing] = lane
                continue
            waits |= dict.fromkeys(lane.pending, lane)
            if not lane.drained and (room or lane.survey is None):
                waits[lane.stream] = lane
        if not waits:
            return False
        for thing in ray.wait(list(waits), num_returns=1, fetch_local=False)[0]:
            lane = waits[thing]
            try:
                self._react(lane, thing)
            except (RayError, Her2CacheError) as error:
                self._interrupted(lane, error)
        return True

    def _react(self, lane: _Lane, thing: Any) -> None:
        if thing is lane.committing:
            self._committed(lane, ray.get(thing))
            return
        if thing is lane.stream:
            self._take(lane)
        else:
            ray.get(thing)
            patches = lane.pending.pop(thing).patches
            lane.written += patches
            self.progress.written_patches += patches
        if lane.drained and not lane.pending:
            assert lane.summary is not None  # a stream that ends without one raises
            seen = {"left_out": _left_out(lane.summary), "colour": lane.summary.colour}
            assert lane.task is not None
            batchings = [self._batchings[k] for k in lane.task.which]
            lane.committing = lane.writer.commit.remote(self._made | {"at": _now(), **seen}, batchings)

    def _begin(self, lane: _Lane, task: Task) -> None:
        """Hands a slide to a lane, unless another job has done it meanwhile."""
        task.which = [k for k in task.which if not self._store.has(task.slide.slide_id, self._spaces[k].key)]
        if not task.which:
            self._finish(SlideOutcome(task.slide.slide_id, "skipped", ALREADY_EMBEDDED))
            return
        task.attempts += 1
        lane.task, lane.survey, lane.summary = task, None, None
        lane.taken, lane.written, lane.drained = 0, 0, False
        lane.stream = lane.reader.read.remote(task.slide, self._reading)

    def _take(self, lane: _Lane) -> None:
        """Takes the next item of a reader's stream: the survey, a block, or the summary at its end."""
        assert lane.task is not None
        try:
            item = next(lane.stream)
        except StopIteration:
            lane.drained = True
            return
        if lane.survey is None:
            survey = cast(SlideSurvey, ray.get(item))
            lane.survey = survey
            self.progress.planned_patches += len(survey.coords)
            spaces = [self._spaces[k] for k in lane.task.which]
            lane.pending[lane.writer.begin.remote(item, spaces)] = _Pending(None, 0)
        elif lane.taken < lane.survey.blocks:
            load = self._load()
            k = load.index(min(load))
            features = self._embedders[k].embed.remote(item, lane.task.which)
            size = self._reading.block
            patches = min(size, len(lane.survey.coords) - size * lane.taken)
            lane.pending[lane.writer.write.remote(features)] = _Pending(k, patches)
            lane.taken += 1
        else:
            lane.summary = cast(ReadSummary, ray.get(item))  # raises what ended the reading early
            self.segments_decoded += sum(lane.summary.segments_decoded)

    def _load(self) -> list[int]:
        """Unfinished blocks of each embedder."""
        load = [0] * len(self._embedders)
        for lane in self._lanes:
            for pending in lane.pending.values():
                if pending.embedder is not None:
                    load[pending.embedder] += 1
        return load

    def _committed(self, lane: _Lane, results: list[SpaceResult]) -> None:
        task, survey = lane.task, lane.survey
        assert task is not None
        assert survey is not None
        lane.task = lane.survey = lane.committing = None
        errors = {r.key: r.error for r in results if r.error is not None}
        if errors:
            self._give_up(task, errors)
        else:
            assert lane.summary is not None
            left_out = _left_out(lane.summary)
            self.left_out = {reason: n + left_out[reason] for reason, n in self.left_out.items()}
            patches = len(survey.coords) - sum(left_out.values())
            self._finish(SlideOutcome(task.slide.slide_id, "done", _say(left_out), patches))

    def _interrupted(self, lane: _Lane, error: Exception) -> None:
        """A slide's attempt ended early: by an error of the slide's, or because an actor died under it."""
        task = lane.task
        assert task is not None
        cause, where = (error.cause, str(error)) if isinstance(error, RayTaskError) else (error, "")
        lost = isinstance(cause, _LOST)
        if lost:
            self._replace_dead(lane)
        if not isinstance(cause, SlideError):  # such an error has ended the stream; any other leaves the reader
            ray.kill(lane.reader)  # dead, or waiting for someone to take its blocks
            lane.reader = self._new_reader()
        lane.writer.discard.remote()  # a writer does what it is told in order: after the writes that are under way
        if lane.survey is not None:
            self.progress.planned_patches -= len(lane.survey.coords)
        self.progress.written_patches -= lane.written
        lane.task, lane.survey, lane.stream, lane.committing, lane.drained = None, None, None, None, True
        lane.pending.clear()
        if lost and task.attempts < self._options.max_attempts:
            self._queue.append(task)
            return
        if lost:
            cause = SlideError(
                f"{task.slide.path}: the process working on it died {task.attempts} times (out of memory, or a codec"
                " crashed on a damaged file); look at the file, or try again with more memory"
            )
        self._give_up(task, {self._spaces[k].key: cause for k in task.which}, where)

    def _replace_dead(self, lane: _Lane) -> None:
        """New actors for those that died under a lane; its reader is replaced in any case."""
        for k in {p.embedder for p in lane.pending.values() if p.embedder is not None}:
            if not self._answers(self._embedders[k]):
                self._embedders[k] = self._new_embedder()
        if not self._answers(lane.writer):
            lane.writer = self._new_writer()

    def _new_reader(self) -> Any:
        return remote_reader(self._ahead)

    def _new_embedder(self) -> Any:
        return remote_embedder(self._recipes, self._batchings, self._spaces[0].views)

    def _new_writer(self) -> Any:
        return remote_writer(self._store.uri)

    def _answers(self, actor: Any) -> bool:
        try:
            ray.get(actor.__ray_ready__.remote(), timeout=_ANSWER_S)
        except (RayError, TimeoutError):
            return False
        return True

    def _give_up(self, task: Task, errors: Mapping[str, BaseException], where: str = "") -> None:
        """Records why a slide has no features in some spaces."""
        for key, error in errors.items():
            record = FailureRecord(
                space_key=key,
                slide_id=task.slide.slide_id,
                error=type(error).__name__,
                reason=_reason(error),
                traceback="\n".join(_COLOUR.sub("", where).splitlines()[-_TRACEBACK_LINES:]),
                attempts=task.attempts,
                at=_now(),
            )
            with suppress(StoreError):  # a full disk; the reason is in the outcome all the same
                self._store.add_failure(record)
        self._finish(SlideOutcome(task.slide.slide_id, "failed", _reason(next(iter(errors.values())))))
        self._stopped = self._options.on_error == "fail"

    def _finish(self, outcome: SlideOutcome) -> None:
        self._outcomes[outcome.slide_id] = outcome
        self.progress.finished += 1
        self.progress.failed += outcome.status == "failed"


def _left_out(summary: ReadSummary) -> dict[str, int]:
    return {"undecodable": summary.failed, "blurred": summary.blurred}


def _say(left_out: Mapping[str, int]) -> str:
    """The patches that were left out, for a person; "" when there are none."""
    return ", ".join(f"{n:,} {reason} patches left out" for reason, n in left_out.items() if n)


def _reason(error: BaseException) -> str:
    """What an error says; the name of one that we did not foresee says more than its message."""
    return str(error) if isinstance(error, Her2CacheError) else f"not expected: {type(error).__name__}: {error}"


def _last_line(error: BaseException) -> str:
    """Of a traceback that Ray brought home: what was raised there."""
    lines = _COLOUR.sub("", str(error)).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
