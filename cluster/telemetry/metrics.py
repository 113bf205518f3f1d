"""What Ray exports for Prometheus, which sees the names with `ray_` before them and, of counters, `_total` behind.

Recording costs some microseconds and is done a block or an epoch at a time. Without `ray[default]` Ray exports
nothing, and recording is all that happens.
"""

from __future__ import annotations

from functools import cache
from typing import TypeVar

import ray
from ray.util.metrics import Counter, Gauge, Histogram

_SECONDS = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
"""Bounds of the histogram of blocks."""

_Kind = TypeVar("_Kind", Counter, Gauge)


@cache
def _made(kind: type[_Kind], name: str, says: str, tag: str = "") -> _Kind:
    return kind(f"her2cache_{name}", says, (tag,) if tag else ())


@cache
def _block_seconds() -> Histogram:
    return Histogram("her2cache_block_seconds", "Seconds that a stage worked on a block.", _SECONDS, ("stage",))


def count_stage(stage: str, patches: int, nbytes: int, seconds: float) -> None:
    """Counts what a stage of embedding did: "decode", "forward" or "write"."""
    if not ray.is_initialized():  # an actor's class used as it is
        return
    tags = {"stage": stage}
    if patches:
        _made(Counter, "patches", "Patches that a stage finished.", "stage").inc(patches, tags)
        _block_seconds().observe(seconds, tags)
    if nbytes:
        _made(Counter, "bytes", "Bytes that a stage made or wrote.", "stage").inc(nbytes, tags)
    if seconds > 0:
        _made(Counter, "busy_seconds", "Seconds in which processes of a stage worked.", "stage").inc(seconds, tags)


def count_slide(outcome: str) -> None:
    """Counts a slide that was "done", "failed", "skipped" or "requeued"."""
    _made(Counter, "slides", "Slides, by what became of them.", "outcome").inc(1, {"outcome": outcome})


def show_in_flight(nbytes: int) -> None:
    """Shows how many bytes of patches are read and not yet written."""
    _made(Gauge, "in_flight_bytes", "Bytes of patches that are read and not yet written.").set(nbytes)


def count_epochs(epochs: int, seconds: float) -> None:
    """Counts what a trial trained, an epoch of all its runs once."""
    if epochs:
        _made(Counter, "epochs", "Epochs of trials, of all their runs at once.").inc(epochs)
        _made(Counter, "fit_seconds", "Seconds that trials trained.").inc(seconds)


def count_fit(outcome: str) -> None:
    """Counts a fit that was "done" or "failed"."""
    _made(Counter, "fits", "Fits, by what became of them.", "outcome").inc(1, {"outcome": outcome})
