"""How far a sweep has come: counts of its fits and epochs, an embedder each, and when it will be done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from trainers.lockstep import Step
from trainers.plan import FitPlan
from trainers.stack import Configuration


class Listener(Protocol):
    """Is told what becomes of fits while they are trained."""

    def started(self, plan: FitPlan) -> None:
        """A process took the fit, for the first time or again."""
        ...

    def stepped(self, plan: FitPlan, steps: Sequence[Step]) -> None:
        """Epochs of its runs. They begin anew at 1 when another process goes on with the fit."""
        ...

    def paused(self, plan: FitPlan) -> None:
        """The fit gave up its process until its search says whether it goes on."""
        ...

    def ended(self, plan: FitPlan, reason: str) -> None:
        """The fit has ended; `reason` says why it failed."""
        ...


@dataclass
class EmbedderProgress:
    """Counts of one embedder.

    Attributes:
        fits: all of them.
        done, failed: those that ended well, or not.
        running: those under way.
        epochs: of the fits that are not done, each of all its runs at once.
        epochs_done: of those.
        val_loss: least validation loss of a run.
        configuration: of that run.
    """

    fits: int = 0
    done: int = 0
    failed: int = 0
    running: int = 0
    epochs: int = 0
    epochs_done: int = 0
    val_loss: float = float("inf")
    configuration: Configuration | None = None

    @property
    def waiting(self) -> int:
        return self.fits - self.done - self.failed - self.running


@dataclass
class _Course:
    """Of one fit: epochs that it has, and how many of them this process has seen trained."""

    weight: float
    epochs: int = 0
    trained: int = 0
    running: bool = False


@dataclass
class SweepProgress:
    """Counts of a running sweep; a `Listener`.

    Attributes:
        embedders: name -> counts.
        watch: called after every change.
    """

    embedders: dict[str, EmbedderProgress] = field(default_factory=dict[str, EmbedderProgress])
    watch: Callable[[SweepProgress], None] = lambda _: None

    def __post_init__(self) -> None:
        self._courses: dict[str, _Course] = {}
        self._dims: Mapping[str, int] = {}
        self._waiting_work = 0.0
        self._began: float | None = None

    def expect(self, plans: Sequence[FitPlan], done: Mapping[str, int], dims: Mapping[str, int]) -> None:
        """Announces fits.

        Args:
            plans: those that are to be trained.
            done: embedder -> how many of its fits have ended before.
            dims: space key -> numbers a patch.
        """
        self._dims = dims
        for embedder, fits in done.items():
            counts = self.embedders.setdefault(embedder, EmbedderProgress())
            counts.fits += fits
            counts.done += fits
        for plan in plans:
            counts = self.embedders.setdefault(plan.embedder, EmbedderProgress())
            counts.fits += 1
            counts.epochs += plan.settings.epochs
            self._waiting_work += work_of(plan, dims)
        self.watch(self)

    @property
    def fits(self) -> int:
        return sum(e.fits for e in self.embedders.values())

    @property
    def epochs(self) -> int:
        return sum(e.epochs for e in self.embedders.values())

    @property
    def epochs_done(self) -> int:
        return sum(e.epochs_done for e in self.embedders.values())

    @property
    def running(self) -> int:
        return sum(e.running for e in self.embedders.values())

    @property
    def val_loss(self) -> float:
        return min((e.val_loss for e in self.embedders.values()), default=float("inf"))

    @property
    def rate(self) -> float | None:
        """Epochs a second since the first fit began; None as long as nothing can be said."""
        trained = sum(c.trained for c in self._courses.values())
        return trained / self._elapsed if trained and self._elapsed > 0 else None

    @property
    def remaining(self) -> float | None:
        """Seconds that the rest will take if it goes on as it went; None as long as nothing can be said."""
        done = sum(c.weight * c.trained for c in self._courses.values())
        if not done or not self._waiting_work:
            return None
        given = sum(c.weight * (c.epochs - c.trained) for c in self._courses.values())
        return max(0.0, self._waiting_work - given - done) * self._elapsed / done

    @property
    def _elapsed(self) -> float:
        return 0.0 if self._began is None else time.monotonic() - self._began

    def started(self, plan: FitPlan) -> None:
        self._began = self._began or time.monotonic()
        course = self._course(plan)
        if not course.running:
            course.running = True
            self.embedders[plan.embedder].running += 1
        self.watch(self)

    def stepped(self, plan: FitPlan, steps: Sequence[Step]) -> None:
        if not steps:
            return
        counts, course = self.embedders[plan.embedder], self._course(plan)
        course.trained += len({step.epoch for step in steps if step.is_new})
        self._set_epochs(counts, course, max(step.epoch for step in steps))
        best = min(steps, key=lambda step: step.result.val_loss)
        if best.result.val_loss < counts.val_loss:
            counts.val_loss = best.result.val_loss
            counts.configuration = dict(zip(plan.run_ids(), plan.configurations, strict=True))[best.run_id]
        self.watch(self)

    def paused(self, plan: FitPlan) -> None:
        course = self._course(plan)
        if course.running:
            course.running = False
            self.embedders[plan.embedder].running -= 1
        self.watch(self)

    def ended(self, plan: FitPlan, reason: str) -> None:
        self.paused(plan)
        counts, course = self.embedders[plan.embedder], self._course(plan)
        counts.failed += bool(reason)
        counts.done += not reason
        self._set_epochs(counts, course, plan.settings.epochs)  # those that patience or a scheduler spared as well
        self.watch(self)

    def _course(self, plan: FitPlan) -> _Course:
        """Of a fit; one whose process dies before it has begun ends without having started."""
        return self._courses.setdefault(plan.stack_id(), _Course(work_of(plan, self._dims) / plan.settings.epochs))

    def _set_epochs(self, counts: EmbedderProgress, course: _Course, epochs: int) -> None:
        counts.epochs_done += epochs - course.epochs
        course.epochs = epochs


def work_of(plan: FitPlan, dims: Mapping[str, int]) -> float:
    """How long a fit takes next to others: epochs x runs x numbers a patch, the last by space key."""
    return float(plan.settings.epochs * len(plan.configurations) * dims[plan.space_key])
