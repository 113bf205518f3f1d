"""What an embed job does, counted for those outside: slides, rates of its stages, what holds it up, failures."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from cluster.job import Progress, SlideOutcome
from cluster.reasons import reason
from cluster.telemetry import metrics
from cluster.telemetry.board import Job
from cluster.telemetry.logs import Level, mask
from cluster.telemetry.stages import STAGES, Spent

WINDOW_S = 30.0
"""Rates are of the last half minute."""

EARLY_S = 3.0
"""Before that, nothing is said of what holds a job up."""

_FAILURES = 5
"""As many are kept for the board, the last ones."""

_WHO_DIED = re.compile(r"class_name: (?:\S*\.)?(\w+).*?\bpid: (\d+).*?\bip: (\S+)", re.DOTALL)
_EVENTS: dict[str, tuple[str, Level]] = {
    "done": ("slide committed", "info"),
    "skipped": ("slide skipped", "info"),
    "failed": ("slide failed", "error"),
}
_KINDS = {"Reader": "reader", "Embed": "embedder", "Writer": "writer"}
_STAGE_KINDS = {"decode": "reader", "forward": "embedder", "write": "writer"}


@dataclass(frozen=True)
class Sums:
    """What a job has done up to a moment.

    Attributes:
        at: seconds of a clock that only rises.
        patches, nbytes, busy: by stage; `busy` are seconds that processes of it worked.
        slide_seconds: of each slide, how long it has been under way.
        embedder_seconds: of each embedder, how long it has been there.
    """

    at: float
    patches: Mapping[str, int]
    nbytes: Mapping[str, int]
    busy: Mapping[str, float]
    slide_seconds: float
    embedder_seconds: float


@dataclass(frozen=True)
class StageRate:
    """How fast a stage was.

    Attributes:
        patches_per_s, bytes_per_s: in the mean.
        busy: share of its time that it worked, 0 to 1; the rest it waited for another stage.
    """

    patches_per_s: float
    bytes_per_s: float
    busy: float


def rates_between(before: Sums, after: Sums) -> dict[str, StageRate]:
    """The stages' rates between two moments.

    A reader and a writer belong to a slide that is under way, and one of both could work as long as it is: their share
    is of the seconds of all slides. Embedders could work all the time. So the shares say the same of all three: the
    stage that is nearest to 1 is what the others wait for. With many slides under way a slow write holds all of
    them, and the embedders rest; with one slide left its reader works without a pause, however many embedders rest.
    """
    seconds = after.at - before.at
    could = {
        "decode": after.slide_seconds - before.slide_seconds,
        "forward": after.embedder_seconds - before.embedder_seconds,
        "write": after.slide_seconds - before.slide_seconds,
    }
    return {
        stage: StageRate(
            _share(after.patches[stage] - before.patches[stage], seconds),
            _share(after.nbytes[stage] - before.nbytes[stage], seconds),
            min(1.0, _share(after.busy[stage] - before.busy[stage], could[stage])),
        )
        for stage in STAGES
    }


def bottleneck_of(rates: Mapping[str, StageRate]) -> str | None:
    """The stage that waits least for the others; None when none has worked."""
    stage = max(rates, key=lambda stage: rates[stage].busy, default=None)
    return stage if stage and rates[stage].busy > 0 else None


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


@dataclass
class _Under:
    """Of a slide that is under way: which attempt it is, and since when."""

    attempt: int
    since: float
    surveyed: bool = False


@dataclass
class _Counted:
    patches: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    nbytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    busy: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


class Account:
    """Of one embed job. The pipeline tells it what happens; `snapshot` is for another thread.

    Args:
        job: whose it is.
        progress: counts, which it keeps with the pipeline.
        block_bytes: of a full block, patches and features.

    Attributes:
        before: slides that had not to be embedded, by what became of them.
    """

    def __init__(self, job: Job, progress: Progress, block_bytes: int) -> None:
        self._job, self._progress, self._block_bytes = job, progress, block_bytes
        self.before: Mapping[str, int] = {}
        self._blocks = self._embedders = 0
        self._embedders_at = self._embedder_seconds = 0.0  # since when there are so many, and seconds before
        self._ended = {"done": 0, "failed": 0, "skipped": 0}
        self._lock = Lock()
        self._counted = _Counted()
        self._under: dict[str, _Under] = {}
        self._surveyed, self._requeued = 0, 0
        self._slide_seconds = 0.0  # of those that are no longer under way
        self._first: Sums | None = None  # when the first block was taken: before that, embedders load
        self._recent: deque[Sums] = deque()
        self._failures: deque[dict[str, Any]] = deque(maxlen=_FAILURES)
        self._seen: set[tuple[str, int]] = set()

    def loaded(self, blocks: int, embedders: int) -> None:
        """So many blocks are in flight, and so many embedders are ready."""
        if (blocks, embedders) == (self._blocks, self._embedders):
            return
        with self._lock:
            now = time.monotonic()
            self._embedder_seconds += self._embedders * (now - self._embedders_at)
            self._blocks, self._embedders, self._embedders_at = blocks, embedders, now

    def begun(self, slide_id: str, attempt: int) -> None:
        """A slide was handed to a reader."""
        with self._lock:
            self._under[slide_id] = _Under(attempt, time.monotonic())
        self._job.event("slide begun", slide=slide_id, attempt=attempt)

    def surveyed(self, slide_id: str, patches: int) -> None:
        """A slide was looked at, and has so many patches."""
        with self._lock:
            self._progress.planned_patches += patches
            self._surveyed += 1
            self._under[slide_id].surveyed = True

    def taken(self, patches: int) -> None:
        """A block of a reader's is on its way to an embedder."""
        with self._lock:
            self._first = self._first or self._sums()
            self._counted.patches["decode"] += patches

    def spend(self, spent: Iterable[Spent | None] | None) -> None:
        """Adds what actors say of their work."""
        for one in spent or ():
            if one is None:
                continue
            with self._lock:
                if one.stage != "decode":  # those were counted as they were taken, which is sooner
                    self._counted.patches[one.stage] += one.patches
                self._counted.nbytes[one.stage] += one.nbytes
                self._counted.busy[one.stage] += one.seconds
            if (one.node, one.pid) not in self._seen:
                self._seen.add((one.node, one.pid))
                self._job.event("actor started", kind=_STAGE_KINDS[one.stage], node=one.node, pid=one.pid)

    def interrupted(self, slide_id: str, error: BaseException, planned: int, written: int, *, again: bool) -> None:
        """An attempt at a slide ended early.

        Args:
            slide_id: which.
            error: why.
            planned: patches of it that were counted as planned.
            written: patches of it that were counted as written.
            again: whether it will be tried again.
        """
        with self._lock:
            self._progress.planned_patches -= planned
            self._progress.written_patches -= written
            under = self._under[slide_id]
            self._surveyed -= under.surveyed
            under.surveyed = False
            if again:
                self._leave(slide_id)
                self._requeued += 1
        if died := _WHO_DIED.search(str(error)):
            kind, pid, node = died.groups()
            self._job.event("actor died", "warning", kind=_KINDS.get(kind, kind), node=node, pid=int(pid))
        if again:
            why = reason(error)
            self._job.event("slide requeued", "warning", slide=slide_id, attempt=under.attempt, reason=why)
            metrics.count_slide("requeued")

    def ended(self, outcome: SlideOutcome) -> None:
        """Nothing more is done for a slide."""
        with self._lock:
            self._progress.finished += 1
            self._progress.failed += outcome.status == "failed"
            self._ended[outcome.status] += 1
            under = self._leave(outcome.slide_id)
            if outcome.status == "failed":
                why = mask(outcome.reason)
                self._failures.append({"slide": outcome.slide_id, "reason": why, "attempts": under.attempt})
        name, level = _EVENTS[outcome.status]
        facts = {"slide": outcome.slide_id, "attempt": under.attempt, "reason": outcome.reason}
        self._job.event(name, level, patches=outcome.patches, **facts)
        metrics.count_slide(outcome.status)

    def overall(self) -> dict[str, StageRate]:
        """The stages' rates since the first block."""
        with self._lock:
            now = self._sums()
            return rates_between(self._first or now, now)

    def snapshot(self) -> dict[str, Any]:
        """Counts of the moment and rates of the last half minute; to be called about once a second."""
        with self._lock:
            now, p = self._sums(), self._progress
            self._recent.append(now)
            while len(self._recent) > 1 and self._recent[1].at <= now.at - WINDOW_S:
                self._recent.popleft()
            first = self._first
            early = first is None or now.at - first.at < EARLY_S
            since = now if first is None else max(first, self._recent[0], key=lambda sums: sums.at)
            rates = rates_between(since, now)
            left = p.planned_patches - p.written_patches
            to_survey = p.slides - p.finished - sum(under.surveyed for under in self._under.values())
            expected = left + (to_survey * p.planned_patches / self._surveyed if self._surveyed > 0 else 0)
            pace = rates["write"].patches_per_s
            ended = {status: n + self.before.get(status, 0) for status, n in self._ended.items()}
            under = len(self._under)
            slides = {**ended, "in_flight": under, "waiting": p.slides - p.finished - under}
            failures = list(self._failures)
        in_flight = self._blocks * self._block_bytes
        metrics.show_in_flight(in_flight)
        return {
            "slides": {"all": p.slides + sum(self.before.values()), **slides},
            "patches": {"planned": p.planned_patches, "written": p.written_patches},
            "remaining_s": round(expected / pace, 1) if not early and pace > 0 and self._surveyed > 0 else None,
            "stages": shown(rates),
            "in_flight": {"blocks": self._blocks, "bytes": in_flight, "embedders": self._embedders},
            "bottleneck": None if early else bottleneck_of(rates),
            "requeued": self._requeued,
            "failures": failures,
        }

    def _leave(self, slide_id: str) -> _Under:
        """A slide is no longer under way. One that another job did was not begun here."""
        under = self._under.pop(slide_id, None) or _Under(0, time.monotonic())
        self._slide_seconds += time.monotonic() - under.since
        return under

    def _sums(self) -> Sums:
        now, counted = time.monotonic(), self._counted
        slide_seconds = self._slide_seconds + sum(now - under.since for under in self._under.values())
        embedder_seconds = self._embedder_seconds + self._embedders * (now - self._embedders_at)
        return Sums(
            now, dict(counted.patches), dict(counted.nbytes), dict(counted.busy), slide_seconds, embedder_seconds
        )


def shown(rates: Mapping[str, StageRate]) -> dict[str, dict[str, float]]:
    """Rates as JSON has them."""
    return {
        stage: {
            "patches_per_s": round(rate.patches_per_s, 1),
            "bytes_per_s": round(rate.bytes_per_s),
            "busy": round(rate.busy, 3),
        }
        for stage, rate in rates.items()
    }
