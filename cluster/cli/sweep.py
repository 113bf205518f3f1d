"""`her2cache sweep` and `her2cache init`: train, select and test; and the files that say what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.cli.files import describe
from cluster.cli.logfile import log_file_option
from cluster.cli.output import Item, Outcome
from cluster.cli.verb import verb

if TYPE_CHECKING:
    from cluster.sweep import SweepReport


@click.command()
@click.argument("experiment", metavar="EXPERIMENT.toml", type=click.Path(path_type=Path))
@click.option("--out", required=True, metavar="SWEEP_DIR", type=click.Path(path_type=Path), help="Results go here.")
@click.option("--address", default="local", show_default=True, help="Ray: local, auto or HOST:PORT.")
@click.option("--resume", is_flag=True, help="Go on with the sweep in SWEEP_DIR.")
@click.option(
    "--stack",
    type=click.IntRange(1),
    metavar="R",
    help="Most runs trained in lockstep. [default: as memory and cores allow]",
)
@click.option(
    "--fraction",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    metavar="F",
    help="Use only this share of each slide's patches, for a first screening.",
)
@click.option(
    "--gpus-per-fit",
    type=click.FloatRange(0, 1),
    metavar="F",
    help="Share of a GPU for each fit; 0 trains on processors. [default: as memory allows]",
)
@click.option(
    "--allow-embedder-overlap",
    is_flag=True,
    help="Test an embedder on cases whose labels its weights have seen, as the paper did; every table says so.",
)
@log_file_option
@verb
def sweep(
    experiment: Path,
    out: Path,
    address: str,
    resume: bool,
    stack: int | None,
    fraction: float,
    gpus_per_fit: float | None,
    allow_embedder_overlap: bool,
) -> Outcome:
    """Train, select and test attention-MIL models on stored features.

    A run that fails is recorded with its reason and the others go on. Of each embedder the configuration of least
    mean validation loss is tested, or all of them if [testing] says so. Losses stream to SWEEP_DIR/tensorboard.
    """
    from cluster.cli.live import LiveTable
    from cluster.sweep import SweepOptions, run_sweep
    from trainers.report import table

    options = SweepOptions(address, resume, stack, fraction, gpus_per_fit, allow_embedder_overlap)
    with LiveTable() as live:
        report = run_sweep(experiment, out, options, live)
    return Outcome(
        items=[
            Item(r.run_id, "failed" if r.reason else "skipped" if r.run_id in report.resumed else "done", r.reason)
            for r in report.runs
        ],
        outputs={name: str(path) for name, path in report.written.items()},
        extra={"warnings": list(report.warnings), "left_out": report.left_out, "seconds": round(report.seconds, 3)},
        summary=[table(out), "", *summarise(report), "", f"Files, all under {out}:", *describe(report.written, out)],
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
