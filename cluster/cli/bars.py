"""Progress bars on stderr, for people at a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from cluster.cli.output import err


@contextmanager
def bar(name: str, unit: str) -> Generator[Callable[[int, int], None]]:
    """A bar that is called with (done, in all); quiet where stderr is no terminal, gone at the end.

    It shows how many a second are done, what comes before the first call not counting, and the time that remains.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[pace]}", style="dim"),
        TimeElapsedColumn(),
    )
    began: tuple[float, int] | None = None
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(name, total=None, pace="")

        def watch(done: int, total: int) -> None:
            nonlocal began
            began = began or (time.monotonic(), done)
            text = pace(done - began[1], total - done, time.monotonic() - began[0])
            progress.update(task, completed=done, total=total, pace=text)

        yield watch


def pace(done: int, left: int, seconds: float) -> str:
    """For instance `12.5/s, 40 s left`; empty as long as nothing can be said.

    Args:
        done: within `seconds`.
        left: to do.
        seconds: since the first was done.
    """
    if done <= 0 or seconds <= 0:
        return ""
    rate = done / seconds
    shown = (f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s") if rate >= 1 else f"{rate * 60:.1f}/min"
    return f"{shown}, {span(left / rate)} left"


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
