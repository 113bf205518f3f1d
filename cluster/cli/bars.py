"""Progress bars on stderr, for people at a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cluster.cli.output import err

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def bar(name: str, unit: str) -> Generator[Callable[[int, int], None]]:
    """A bar that is called with (done, in all); quiet where stderr is no terminal, gone at the end.

    It shows how many a second are done, what comes before the first call not counting, and the time that remains.
    """
    began: tuple[float, int] | None = None
    with live(name) as progress:
        task = progress.add_task(name, total=None, unit=unit, pace="")

        def watch(done: int, total: int) -> None:
            nonlocal began
            began = began or (time.monotonic(), done)
            text = pace(done - began[1], total - done, time.monotonic() - began[0])
            progress.update(task, completed=done, total=total, pace=text)

        yield watch


def live(name: str) -> Progress:
    """A bar whose tasks have the fields unit, what is counted, and pace; quiet where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("{task.fields[pace]}", style="dim"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def pace(done: float, left: float, seconds: float, unit: str = "") -> str:
    """For instance `12.5/s, 40 s left`; empty as long as nothing can be said.

    Args:
        done: within `seconds`.
        left: to do.
        seconds: since the first was done.
        unit: what is counted, where it is not plain: `12.5 patches/s, 40 s left`.
    """
    if done <= 0 or seconds <= 0:
        return ""
    rate, of = done / seconds, unit and f" {unit}"
    shown = (f"{rate:,.0f}{of}/s" if rate >= 100 else f"{rate:.1f}{of}/s") if rate >= 1 else f"{rate * 60:.1f}{of}/min"
    return f"{shown}, {span(left / rate)} left" if left > 0 else shown


def span(seconds: float) -> str:
    """For instance 40 s, 12 min, 3 h 05 min, 2 days 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    days, hours = divmod(round(minutes / 60), 24)
    return f"{days} day{'s' if days > 1 else ''} {hours} h"
