"""`her2cache demo`: the whole path on a synthetic cohort."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.markup import escape

from cluster.cli.files import SWEEP_FILES
from cluster.cli.output import Item, Outcome, err
from cluster.cli.verb import verb

_WHAT = {
    "cohort.csv": "the slides, their cases and scores",
    "store": "features, a Zarr group a slide and embedder",
    **SWEEP_FILES,
    "scores.csv": "Monte-Carlo scores of the test slides",
    "heatmap.png": "attention over the slide of the highest expected score",
}


@click.command()
@click.option(
    "--out", default="demo-out", show_default=True, type=click.Path(file_okay=False, path_type=Path), help="Folder."
)
@click.option(
    "--size",
    type=click.Choice(["small", "paper"]),
    default="small",
    show_default=True,
    help="small: minutes. paper: 52 slides and the paper's whole grid, many hours.",
)
@click.option(
    "--imagenet", metavar="FILE", type=click.Path(path_type=Path), help="ImageNet weights of AlexNet or of its trunk."
)
@click.option("--offline", is_flag=True, help="Do not try to download the ImageNet weights.")
@verb
def demo(out: Path, size: str, imagenet: Path | None, offline: bool) -> Outcome:
    """Run the whole path on a synthetic cohort: slides, features, sweep, scores, heatmap.

    Uses the ImageNet weights where they can be had, and says so where they cannot. What an earlier call
    has finished is not done again.
    """
    from cluster import demo as steps
    from cluster.resources import ray_session
    from trainers.report import table

    say = _Steps(5)
    with say.step("embedders"):
        trunks, missing = steps.demo_trunks(imagenet, offline=offline)
    if missing:
        say.note(f"without alexnet-imagenet: {missing}")
    with say.bar("synthetic slides", "slides of cases") as bar:
        cohort = steps.make_cohort(out, size, bar)
    with ray_session():
        with say.bar("patches through every embedder", "patches") as bar:
            embedded = steps.embed_cohort(
                cohort, out / "store", trunks, lambda p: bar(p.written_patches, p.planned_patches)
            )
        with say.bar("sweep", "epochs of fits") as bar:
            swept = steps.run_demo_sweep(out, trunks, size, lambda p: bar(p.epochs_done, p.epochs))
    with say.step("scores and heatmap of the test slides"):
        scored = steps.score_test_slides(out)
    files = {"cohort.csv": cohort, "store": out / "store", **swept.written, **scored.files}

    def place(path: Path) -> str:
        return str(path.absolute().relative_to(out.absolute()))

    return Outcome(
        items=[Item(o.slide_id, o.status, o.reason) for o in embedded.outcomes],
        outputs={name: str(path) for name, path in files.items()},
        extra={"patches": embedded.patches, "left_out": swept.left_out, "without": missing},
        summary=[
            "",
            table(out / "sweep"),
            "",
            "The cohort is synthetic and the link between score and morphology was put in: ranks of embedders",
            "here say nothing about real tissue.",
            *([f"This run is without alexnet-imagenet: {escape(missing)}"] if missing else []),
            "",
            f"Files, all under {out}:",
            *(f"  {place(files[name]):<28}{_WHAT[name]}" for name in _WHAT if name in files),
            "",
            f"Look at {out / place(files['heatmap.png'])} and {out / place(files['roc.png'])} first.",
        ],
    )


class _Steps:
    """Says on stderr which step is under way; a bar where that is a terminal, a line where not."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def note(self, text: str) -> None:
        err.print(f"  {text}", markup=False)

    @contextmanager
    def step(self, name: str) -> Generator[None]:
        from time import perf_counter

        self._done += 1
        started = perf_counter()
        yield
        err.print(f"[{self._done}/{self._total}] {name}: {perf_counter() - started:.0f} s", markup=False)

    @contextmanager
    def bar(self, name: str, unit: str) -> Generator[Callable[[int, int], None]]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn())
        with self.step(name), Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
