"""The loop that keeps readers, embedders and writers busy with one job's slides.

A *lane* is a reader and a writer that work on one slide; the embedders of their node serve all its lanes. The driver
passes references, never pixels. It takes a block from a reader only while the unfinished blocks of the node stay within
a budget of bytes, so memory depends on the machines, not on the slides.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import numpy as np
import ray
from ray.exceptions import (
    ActorUnavailableError,
    ActorUnschedulableError,
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
from cluster.crew import Crew, Lane, Pending, Station, device_of_cluster
from cluster.job import ALREADY_EMBEDDED, STOPPED, EmbedOptions, Progress, SlideOutcome, Task
from cluster.reasons import reason, tail
from cluster.telemetry.account import Account
from cluster.telemetry.board import Job
from her2cache.embedder import Recipe
from her2cache.errors import ConfigError, Her2CacheError, SlideError, StoreError, StoreUnreachableError
from her2cache.ingest import ReadOptions, ReadSummary, SlideSurvey
from her2cache.store.reader import FeatureStore
from her2cache.store.schema import FailureRecord

IN_FLIGHT_BYTES = 192 << 20
"""Budget of what is read but not yet written, patches and features, on one node."""

BLOCKS_PER_EMBEDDER = 3
"""One in the forward pass, one waiting, one on its way."""

BLOCK_BYTES = 8 << 20
"""Batches go between actors in blocks of at most this size, or one by one: a block costs Ray 15 ms of CPU."""

_LOST = (
    RayActorError,
    ActorUnschedulableError,
    WorkerCrashedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
)
"""A process or a node is gone, and perhaps not by the slide's fault."""

_ANSWER_S = 60.0
_PATIENCE_S = 2.0
"""How long the loop waits for something to happen before it looks at the cluster again."""


class Pipeline:
    """One job: its actors, its slides, and what became of them.

    Attributes:
        progress: counts while it runs.
        account: the same and more, for those outside.
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
        precision: str,
        job: Job,
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

        device = device_of_cluster()
        patch_px = reading.patch.patch_px
        self._batchings = [fixed_batching(max(patch_px, r.spec.input_px), device, precision) for r in recipes]
        batch = fixed_batching(patch_px, device).batch  # the largest of them, and all others divide it
        batch_bytes = batch * patch_px**2 * 3
        batches = max(1, BLOCK_BYTES // batch_bytes)
        self._reading = replace(reading, block=batches * batch)
        block_bytes = batches * (
            batch_bytes + batch * sum(s.views * s.dim * np.dtype(s.dtype).itemsize for s in spaces)
        )
        self.account = Account(job, self.progress, block_bytes)
        self._most_blocks = max(2, IN_FLIGHT_BYTES // block_bytes)  # in flight on a node
        self._ahead = max(1, min(4, IN_FLIGHT_BYTES // 4 // block_bytes))  # blocks a reader may be ahead

        self._kinds = len(recipes)
        held = ray.put(list(recipes))
        self.crew = Crew(
            device,
            partial(remote_embedder, held, self._batchings, spaces[0].views),
            partial(remote_reader, self._ahead),
            partial(remote_writer, store.uri),
            most=len(tasks),
            attempts=options.max_attempts,
        )

    def run(self) -> list[SlideOutcome]:
        """Works until every slide is done or given up; returns an outcome a slide."""
        try:
            self.crew.look(len(self._queue), now=True)
            self._await_embedder()
            started = time.perf_counter()
            while not self._stopped and self._step():
                self._watch(self.progress)
            self._watch(self.progress)
            self.seconds = time.perf_counter() - started
            self.passes = self._counted()
        finally:
            self.crew.end()
        return [
            self._outcomes.get(task.slide.slide_id, SlideOutcome(task.slide.slide_id, "skipped", STOPPED))
            for task in self._tasks
        ]

    def _await_embedder(self) -> None:
        """Waits for the first embedder. One that dies as it starts is replaced, as one that dies later is."""
        while not self.crew.ready():
            self.crew.look(len(self._queue))
            starting = self.crew.starting()
            for thing in ray.wait(list(starting), timeout=_PATIENCE_S)[0] if starting else []:
                self.crew.started(starting[thing])

    def _counted(self) -> list[int]:
        """What each embedder counted, over all actors that still answer."""
        total = [0] * self._kinds
        for station in self.crew.ready():
            with suppress(RayError, TimeoutError):
                counts = cast(list[int], ray.get(station.actor.counted.remote(), timeout=_ANSWER_S))
                total = [a + b for a, b in zip(total, counts, strict=True)]
        return total

    def _step(self) -> bool:
        """Hands out slides, waits for one thing to happen, and reacts; False when nothing is left."""
        self.crew.look(len(self._queue))
        for lane in self.crew.lanes:
            while lane.task is None and self._queue:
                self._begin(lane, self._queue.popleft())
        if not self._queue and all(lane.task is None for lane in self.crew.lanes):
            return False
        waits: dict[Any, Lane] = {}
        load = self.crew.load()
        self.account.loaded(sum(load.values()), len(self.crew.ready()))
        for lane in self.crew.lanes:
            alone = lane.doubt[0] if lane.doubt else lane.committing
            if alone is not None:
                waits[alone] = lane
                continue
            waits |= dict.fromkeys(lane.pending, lane)
            if not lane.drained and (lane.survey is None or self._has_room(lane, load)):
                waits[lane.stream] = lane
        starting = self.crew.starting()
        began = time.monotonic()
        things = ray.wait([*waits, *starting], num_returns=1, timeout=_PATIENCE_S, fetch_local=False)[0]
        self.crew.waited(time.monotonic() - began, any(load[station] == 0 for station in self.crew.ready()))
        for thing in things:
            if thing in starting:
                self.crew.started(starting[thing])
                continue
            lane = waits[thing]
            if lane.doubt:  # the node is known now to live, or to be lost
                self._interrupted(lane, lane.doubt[1])
                continue
            try:
                self._react(lane, thing)
            except ActorUnavailableError as error:  # it may have crashed, or its node may be lost; Ray will know soon
                lane.doubt = lane.writer.__ray_ready__.remote(), error
            except (RayError, Her2CacheError) as error:
                self._interrupted(lane, error)
        return True

    def _has_room(self, lane: Lane, load: Mapping[Station, int]) -> bool:
        """Whether the embedders that a lane works with may be given another block."""
        near = self.crew.near(lane)
        most = min(BLOCKS_PER_EMBEDDER * len(near), self._most_blocks * len({station.node for station in near}))
        return sum(load[station] for station in near) < most

    def _react(self, lane: Lane, thing: Any) -> None:
        if thing is lane.committing:
            self._committed(lane, ray.get(thing))
            return
        if thing is lane.stream:
            self._take(lane)
        else:
            self.account.spend(ray.get(thing))
            patches = lane.pending.pop(thing).patches
            lane.written += patches
            self.progress.written_patches += patches
        if lane.drained and not lane.pending:
            assert lane.summary is not None  # a stream that ends without one raises
            seen = {"left_out": _left_out(lane.summary), "colour": lane.summary.colour}
            assert lane.task is not None
            batchings = [self._batchings[k] for k in lane.task.which]
            lane.committing = lane.writer.commit.remote(lane.made | {"at": _now(), **seen}, batchings)

    def _begin(self, lane: Lane, task: Task) -> None:
        """Hands a slide to a lane, unless another job has done it meanwhile."""
        task.which = [k for k in task.which if not self._store.has(task.slide.slide_id, self._spaces[k].key)]
        if not task.which:
            self._finish(SlideOutcome(task.slide.slide_id, "skipped", ALREADY_EMBEDDED))
            return
        task.attempts += 1
        self.account.begun(task.slide.slide_id, task.attempts)
        lane.task, lane.survey, lane.summary = task, None, None
        lane.taken, lane.written, lane.drained = 0, 0, False
        lane.stream = lane.reader.read.remote(task.slide, self._reading)

    def _take(self, lane: Lane) -> None:
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
            self.account.surveyed(lane.task.slide.slide_id, len(survey.coords))
            spaces = [self._spaces[k] for k in lane.task.which]
            lane.pending[lane.writer.begin.remote(item, spaces)] = Pending(None, 0)
        elif lane.taken < lane.survey.blocks:
            load = self.crew.load()
            station = min(self.crew.near(lane), key=lambda each: load[each])
            lane.made = station.made or self.crew.made
            features = station.actor.embed.remote(item, lane.task.which)
            size = self._reading.block
            patches = min(size, len(lane.survey.coords) - size * lane.taken)
            lane.pending[lane.writer.write.remote(features)] = Pending(station, patches)
            lane.taken += 1
            self.account.taken(patches)
        else:
            lane.summary = cast(ReadSummary, ray.get(item))  # raises what ended the reading early
            self.segments_decoded += sum(lane.summary.segments_decoded)

    def _committed(self, lane: Lane, results: list[SpaceResult]) -> None:
        task, survey = lane.task, lane.survey
        assert task is not None
        assert survey is not None
        lane.task = lane.survey = lane.committing = None
        self.account.spend(r.spent for r in results)
        errors = {r.key: r.error for r in results if r.error is not None}
        if errors:
            self._give_up(task, errors)
        else:
            assert lane.summary is not None
            left_out = _left_out(lane.summary)
            self.left_out = {reason: n + left_out[reason] for reason, n in self.left_out.items()}
            patches = len(survey.coords) - sum(left_out.values())
            self._finish(SlideOutcome(task.slide.slide_id, "done", _say(left_out), patches))

    def _interrupted(self, lane: Lane, error: Exception) -> None:
        """A slide's attempt ended early: by an error of the slide's, or because an actor died under it."""
        cause, where = (error.cause, str(error)) if isinstance(error, RayTaskError) else (error, "")
        if isinstance(cause, StoreUnreachableError | ConfigError):
            raise cause from None  # ends the job: it concerns every slide, and is the fault of none
        task = lane.task
        assert task is not None
        lost = isinstance(cause, _LOST)
        if lost:
            self.crew.look(len(self._queue), now=True)
        used = [pending.station for pending in lane.pending.values() if pending.station is not None]
        gone = not self.crew.has(lane.node)
        if gone or (lost and any(station.node and not self.crew.has(station.node) for station in used)):
            task.attempts -= 1  # a node is lost, which is not the slide's doing
        if gone:
            self.crew.drop_lane(lane)
        else:
            if lost:
                self.crew.mend(lane, used)
            if not isinstance(cause, SlideError):  # such an error has ended the stream; after any other the reader is
                self.crew.new_reader(lane)  # dead, or waiting for someone to take its blocks
            lane.writer.discard.remote()  # a writer does what it is told in order: after the writes under way
        again = lost and task.attempts < self._options.max_attempts
        planned = 0 if lane.survey is None else len(lane.survey.coords)
        self.account.interrupted(task.slide.slide_id, cause, planned, lane.written, again=again)
        lane.task, lane.survey, lane.stream, lane.committing, lane.drained = None, None, None, None, True
        lane.doubt = None
        lane.pending.clear()
        if again:
            self._queue.append(task)
            return
        if lost:
            cause = SlideError(
                f"{task.slide.path}: the process working on it died {task.attempts} times (out of memory, or a codec"
                " that crashed or hung on a damaged file); look at the file, or try again with more memory"
            )
        self._give_up(task, {self._spaces[k].key: cause for k in task.which}, where)

    def _give_up(self, task: Task, errors: Mapping[str, BaseException], where: str = "") -> None:
        """Records why a slide has no features in some spaces."""
        for key, error in errors.items():
            if isinstance(error, StoreUnreachableError):
                raise error
            record = FailureRecord(
                space_key=key,
                slide_id=task.slide.slide_id,
                error=type(error).__name__,
                reason=reason(error),
                traceback=tail(where),
                attempts=task.attempts,
                at=_now(),
            )
            try:
                self._store.add_failure(record)
            except StoreUnreachableError:
                raise
            except StoreError:  # a full disk; the reason is in the outcome all the same
                pass
        self._finish(SlideOutcome(task.slide.slide_id, "failed", reason(next(iter(errors.values())))))
        self._stopped = self._options.on_error == "fail"

    def _finish(self, outcome: SlideOutcome) -> None:
        self._outcomes[outcome.slide_id] = outcome
        self.account.ended(outcome)


def _left_out(summary: ReadSummary) -> dict[str, int]:
    return {"undecodable": summary.failed, "blurred": summary.blurred}


def _say(left_out: Mapping[str, int]) -> str:
    """The patches that were left out, for a person; "" when there are none."""
    return ", ".join(f"{n:,} {reason} patches left out" for reason, n in left_out.items() if n)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
