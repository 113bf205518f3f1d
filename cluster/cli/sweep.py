"""`her2cache sweep` and `her2cache init`: train, select and test; and the files that say what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.cli.output import Item, Outcome, err
from cluster.cli.verb import verb

if TYPE_CHECKING:
    from cluster.sweep import SweepProgress, SweepReport


@click.command()
@click.argument("experiment", metavar="EXPERIMENT.toml", type=click.Path(path_type=Path))
@click.option("--out", required=True, metavar="SWEEP_DIR", type=click.Path(path_type=Path), help="Results go here.")
@click.option("--address", default="local", show_default=True, help="Ray: local, auto or HOST:PORT.")
@click.option("--resume", is_flag=True, help="Go on with the sweep in SWEEP_DIR.")
@click.option(
    "--stack",
    type=click.IntRange(1),
    metavar="R",
    help="Most runs trained in lockstep. [default: the whole grid]",
)
@verb
def sweep(experiment: Path, out: Path, address: str, resume: bool, stack: int | None) -> Outcome:
    """Train, select and test attention-MIL models on stored features.

    A run that fails is recorded with its reason and the others go on. Only the configuration of least mean
    validation loss is tested, for each embedder.
    """
    from cluster.sweep import SweepOptions, run_sweep
    from trainers.report import table

    options = SweepOptions(address, resume, stack)
    with SweepBar() as bar:
        report = run_sweep(experiment, out, options, bar)
    return Outcome(
        items=[
            Item(r.run_id, "failed" if r.reason else "skipped" if r.run_id in report.resumed else "done", r.reason)
            for r in report.runs
        ],
        outputs={name: str(path) for name, path in report.written.items()},
        extra={"warnings": list(report.warnings), "left_out": report.left_out, "seconds": round(report.seconds, 3)},
        summary=[table(out), *summarise(report), f"sweep {out}"],
    )


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@verb
def init(folder: Path) -> Outcome:
    """Write paper.toml and quick.toml, experiment files with every key explained.

    A file that is there already is left as it is.
    """
    from trainers.presets import PAPER, QUICK

    folder.mkdir(parents=True, exist_ok=True)
    items: list[Item] = []
    paths = {name: folder / name for name in ("paper.toml", "quick.toml")}
    for (name, path), text in zip(paths.items(), (PAPER, QUICK), strict=True):
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
            items.append(Item(name, "done"))
        except FileExistsError:
            items.append(Item(name, "skipped", "it is there already"))
    lines = [f"{i.status} {folder / i.id}" + (f": {i.reason}" if i.reason else "") for i in items]
    return Outcome(items, outputs={name: str(path) for name, path in paths.items()}, summary=lines)


def summarise(report: SweepReport) -> list[str]:
    """Lines for a person."""
    failed = sum(bool(r.reason) for r in report.runs)
    lines = [f"{len(report.runs) - failed} of {len(report.runs)} runs in {report.seconds:.0f} s"]
    if report.resumed:
        lines.append(f"{len(report.resumed)} of them had ended before")
    return [*lines, *(f"[yellow]note[/] {w}" for w in report.warnings)]


class SweepBar:
    """A progress bar of a sweep on stderr, when that is a terminal. Call it with a `SweepProgress`."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs of {task.fields[fits]} fits, best validation loss {task.fields[loss]:.3f}"),
            TimeElapsedColumn(),
            console=err,
            disable=not err.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, fits=0, loss=float("inf"))

    def __enter__(self) -> SweepBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, progress: SweepProgress) -> None:
        self._bar.update(
            self._task,
            total=progress.epochs,
            completed=progress.epochs_done,
            fits=progress.fits,
            loss=progress.val_loss,
        )
