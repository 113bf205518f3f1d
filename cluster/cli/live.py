"""The live table of a sweep on stderr: a row an embedder, and when it will be done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from cluster.cli.bars import span
from cluster.cli.output import err

if TYPE_CHECKING:
    from cluster.progress import EmbedderProgress, SweepProgress

_REFRESH_HZ = 4


class LiveTable:
    """Shows a `SweepProgress` while a sweep runs. Call it with one; it is quiet where `console` is no terminal."""

    def __init__(self, console: Console = err) -> None:
        self._progress: SweepProgress | None = None
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=_REFRESH_HZ, transient=True)
        self._shown = console.is_terminal

    def __enter__(self) -> LiveTable:
        if self._shown:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._live.stop()

    def __call__(self, progress: SweepProgress) -> None:
        self._progress = progress

    def _render(self) -> RenderableType:
        if self._progress is None:
            return Text("reading the cohort, starting Ray ...", style="dim")
        return render(self._progress)


def render(progress: SweepProgress) -> RenderableType:
    """The table of a moment."""
    table = Table(
        Column("embedder", overflow="ellipsis", no_wrap=True),
        Column("epochs", no_wrap=True),
        *(Column(name, justify="right", no_wrap=True) for name in ("fits", "run", "wait", "fail", "loss")),
        Column("at rate, decay", no_wrap=True),
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        header_style="dim",
    )
    for name, counts in progress.embedders.items():
        table.add_row(name, *_cells(counts))
    return Group(table, Text(_foot(progress), style="dim"))


def _cells(counts: EmbedderProgress) -> list[RenderableType]:
    c = counts.configuration
    return [
        ProgressBar(
            max(counts.epochs, 1),
            counts.epochs_done if counts.epochs else 1,
            width=10,
            complete_style="cyan",
            finished_style="green",
        ),
        f"{counts.done}/{counts.fits}",
        _number(counts.running, "cyan"),
        _number(counts.waiting, ""),
        _number(counts.failed, "red"),
        "" if c is None else f"{counts.val_loss:.3f}",
        "" if c is None else f"{c.learning_rate:g}, {c.weight_decay:g}",
    ]


def _number(n: int, style: str) -> Text:
    return Text(str(n), style=style) if n else Text("-", style="dim")


def _foot(progress: SweepProgress) -> str:
    if progress.fits and not any(e.running or e.waiting for e in progress.embedders.values()):
        return "all fits have ended: selecting, testing, drawing ..."
    if progress.rate is None or progress.remaining is None:
        return "the first epochs are under way" if progress.running else "starting the processes of the fits ..."
    return f"{_rate(progress.rate)}, about {span(progress.remaining)} left"


def _rate(epochs_a_second: float) -> str:
    if epochs_a_second >= 1:
        return f"{epochs_a_second:.1f} epochs/s"
    return f"{epochs_a_second * 60:.1f} epochs/min"
