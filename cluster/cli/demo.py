"""`her2cache demo`: the whole path on a synthetic cohort."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.markup import escape

from cluster.cli.bars import bar
from cluster.cli.files import FOLDERS, SWEEP_FILES
from cluster.cli.output import Item, Outcome, err
from cluster.cli.verb import verb

_WHAT = {
    "cohort.csv": "the slides, their cases and scores",
    "pcam": "synthetic patches in PatchCamelyon's format",
    "weights": "alexnet-pcam and alexnet-ihc, as trained here",
    "store": "features, a Zarr group a slide and embedder",
    **SWEEP_FILES,
    **FOLDERS,
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
    """Run the whole path on a synthetic cohort: slides, features, sweep, scores, heatmaps, report.

    Uses the ImageNet weights where they can be had, and says so where they cannot. What an earlier call
    has finished is not done again.
    """
    from cluster import demo as steps
    from cluster.cli.score import said_of_truth
    from cluster.resources import ray_session
    from trainers.report import table
    from trainers.results import read_csv
    from trainers.table1 import FILE as TABLE1
    from trainers.table1 import table1_table

    say = _Steps(8)
    with say.step("embedders that need no training"):
        recipes, missing = steps.ready_made(imagenet, offline=offline)
    if missing:
        say.note(f"  without alexnet-imagenet: {missing}")
    with say.bar("synthetic slides", "slides of cases") as watch:
        cohort = steps.make_cohort(out, size, watch)
    with say.bar("synthetic PatchCamelyon", "patches") as watch:
        pcam = steps.make_pcam(out, size, watch)
    names = [*(recipe.spec.name for recipe in recipes), "alexnet-pcam", "alexnet-ihc"]
    experiment = steps.write_experiment(out, names, size)
    with ray_session():
        with say.bar("alexnet-pcam, trained on it", "epochs") as watch:
            recipes.append(steps.train_pcam(out, size, pcam, watch))
        with say.bar("alexnet-ihc, trained on the IHC slides", "epochs") as watch:
            recipes.append(steps.train_ihc(out, size, cohort, experiment, watch))
        with say.bar("patches through every embedder", "patches") as watch:
            embedded = steps.embed_cohort(
                cohort, out / "store", recipes, lambda p: watch(p.written_patches, p.planned_patches)
            )
        with say.bar("sweep", "epochs of fits") as watch:
            swept = steps.run_demo_sweep(out, experiment, lambda p: watch(p.epochs_done, p.epochs))
    with say.bar("scores and heatmaps of the test slides", "slides") as watch:
        scores = steps.score_test_slides(out, watch)
    folders = {name: out / name for name in ("pcam", "weights", "store")}
    files = {"cohort.csv": cohort, **folders, **swept.written, **scores.files}

    def place(path: Path) -> str:
        return str(path.absolute().relative_to(out.absolute()))

    return Outcome(
        items=[
            *(Item(o.slide_id, o.status, o.reason) for o in embedded.outcomes),
            *(Item(s.id, s.status, s.reason) for s in scores.scored.slides if s.status == "failed"),
        ],
        outputs={name: str(path) for name, path in files.items()},
        extra={
            "patches": embedded.patches,
            "left_out": swept.left_out,
            "without": missing,
            "truth_auc": scores.scored.truth_aucs,
        },
        summary=[
            "",
            table1_table(read_csv(out / "sweep", TABLE1)),
            "",
            table(out / "sweep"),
            *said_of_truth(scores.scored.truth_aucs),
            "",
            "The cohort is synthetic and the link between score and morphology was put in: ranks of embedders",
            "here say nothing about real tissue.",
            *([f"This run is without alexnet-imagenet: {escape(missing)}"] if missing else []),
            "",
            f"Files, all under {out}:",
            *(f"  {place(files[name]):<28}{_WHAT[name]}" for name in _WHAT if name in files),
            "",
            f"Open {out / place(files['report.html'])} in a browser first.",
        ],
    )


class _Steps:
    """Says on stderr, where that is a terminal, which step is under way."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def note(self, text: str) -> None:
        if err.is_terminal:
            err.print(text, markup=False)

    @contextmanager
    def step(self, name: str) -> Generator[None]:
        from time import perf_counter

        self._done += 1
        started = perf_counter()
        yield
        self.note(f"[{self._done}/{self._total}] {name}: {perf_counter() - started:.0f} s")

    @contextmanager
    def bar(self, name: str, unit: str) -> Generator[Callable[[int, int], None]]:
        with self.step(name), bar(name, unit) as watch:
            yield watch
