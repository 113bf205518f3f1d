"""What an embed job is told, what it counts, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from her2cache.cohort import Slide

ALREADY_EMBEDDED = "already embedded"
STOPPED = "not tried, or not to the end: the job stopped at the first failure"


@dataclass
class Task:
    """A slide to be embedded.

    Attributes:
        slide: which.
        which: indices of the spaces that lack it.
        attempts: begun so far; one that ended with its node does not count.
    """

    slide: Slide
    which: list[int]
    attempts: int = 0


@dataclass(frozen=True)
class SlideOutcome:
    """What became of a slide: "done", "skipped" (all of it was there) or "failed"."""

    slide_id: str
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    patches: int = 0


@dataclass
class Progress:
    """Counts of a running job, for whoever watches."""

    slides: int
    finished: int = 0
    failed: int = 0
    planned_patches: int = 0
    written_patches: int = 0


@dataclass(frozen=True)
class EmbedOptions:
    """How a job runs.

    Attributes:
        max_attempts: how often a slide is tried when actors die under it.
        on_error: "skip" goes on with the other slides, "fail" stops at the first.
        address: of Ray, see `resources.ray_session`.
        replace: whether a slide whose file changed is embedded anew; otherwise it fails.
    """

    max_attempts: int = 3
    on_error: str = "skip"
    address: str = "local"
    replace: bool = False
