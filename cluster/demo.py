"""The whole path on the synthetic cohort: slides, features, sweep, scores, heatmap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.embed_job import EmbedReport, embed_slides
from cluster.job import EmbedOptions, Progress
from cluster.scoring import draw_slide_heatmap, open_models, score_row
from cluster.sweep import SweepOptions, SweepProgress, SweepReport, run_sweep
from her2cache.backbones import Trunk, load_trunk
from her2cache.cohort import read_cohort
from her2cache.errors import EmbedderError
from her2cache.ingest import ReadOptions
from her2cache.store.reader import FeatureStore
from her2cache.synthetic.cohort import write_synthetic_cohort
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from trainers.results import slides_tested, write_csv


@dataclass(frozen=True)
class DemoSize:
    """How much the demo does."""

    cases: int
    experiment: str


_SMALL = """\
[splits]
folds = 3
test_slides = 8

[bags]
size = 100
per_epoch = 640
validation = 500
test = 500

[training]
epochs = 8
learning_rate = [1e-3, 1e-4]
weight_decay = [1e-3, 1e-5]
"""

SIZES = {"small": DemoSize(32, _SMALL), "paper": DemoSize(52, "")}
"""An experiment file without further keys has the paper's settings."""

PATCH_PX = 96


def demo_trunks(imagenet: Path | None, *, offline: bool) -> tuple[list[Trunk], str]:
    """The embedders of the demo, and why ImageNet's is missing, if it is.

    Raises:
        EmbedderError: a weights file was given and is none.
    """
    trunks = [load_trunk("alexnet-random", PATCH_PX)]
    request = "alexnet-imagenet" if imagenet is None else f"alexnet-imagenet={imagenet}"
    try:
        return [*trunks, load_trunk(request, PATCH_PX, offline=offline)], ""
    except EmbedderError as error:
        if imagenet is not None:
            raise
        return trunks, str(error)


def make_cohort(out: Path, size: str, progress: Callable[[int, int], None]) -> Path:
    """Writes the synthetic cohort, or takes the one that is there; returns its table."""
    table = out / "cohort" / "cohort.csv"
    if table.exists() and len(read_cohort(table, check_files=True).with_stain("HE").slides) == SIZES[size].cases:
        return table
    return write_synthetic_cohort(out / "cohort", slides=SIZES[size].cases, progress=progress)


def embed_cohort(table: Path, store: Path, trunks: list[Trunk], watch: Callable[[Progress], None]) -> EmbedReport:
    """Embeds the H&E slides of the cohort."""
    slides = read_cohort(table).with_stain("HE").slides
    reading = ReadOptions(PatchSpec(patch_px=PATCH_PX, stride_px=PATCH_PX), preset("HE"))
    return embed_slides(slides, trunks, FeatureStore.create(store), reading, EmbedOptions(), watch)


def write_experiment(out: Path, trunks: list[Trunk], size: str) -> Path:
    """Writes the experiment file of the demo; returns its path."""
    names = ", ".join(f'"{trunk.spec.name}"' for trunk in trunks)
    data = f'[data]\ncohort = "cohort/cohort.csv"\nstore = "store"\nembedders = [{names}]\n\n'
    path = out / "experiment.toml"
    path.write_text(data + SIZES[size].experiment, encoding="utf-8")
    return path


def run_demo_sweep(out: Path, trunks: list[Trunk], size: str, watch: Callable[[SweepProgress], None]) -> SweepReport:
    """Runs the sweep of the demo, or goes on with the one that is there."""
    experiment = write_experiment(out, trunks, size)
    return run_sweep(experiment, out / "sweep", SweepOptions(resume=(out / "sweep").exists()), watch)


@dataclass(frozen=True)
class DemoScores:
    """What the trained models say of the test slides.

    Attributes:
        rows: a row a test slide, see `scoring.score_row`.
        pictured: the slide of the heatmap, that of the highest expected score.
        files: name -> path of what was written.
    """

    rows: list[dict[str, Any]]
    pictured: str
    files: dict[str, Path]


def score_test_slides(out: Path, *, bags: int = 1000) -> DemoScores:
    """Scores the test slides and draws the heatmap of the one that the models call most positive."""
    sweep = out / "sweep"
    models = open_models(sweep)
    tested = set(slides_tested(sweep))
    slides = [s for s in read_cohort(Path(models.experiment.data.cohort)).slides if s.slide_id in tested]
    scores = [models.score(slide, bags) for slide in slides]
    rows = [score_row(slide, score, models.task) for slide, score in zip(slides, scores, strict=True)]
    write_csv(out / "scores.csv", rows)
    top = max(zip(slides, scores, strict=True), key=lambda pair: pair[1].expected_score)[0]
    draw_slide_heatmap(open_models(sweep, best_fold=True), top, out / "heatmap.png", bags=bags)
    files = {"scores.csv": out / "scores.csv", "heatmap.png": out / "heatmap.png"}
    return DemoScores(rows, top.slide_id, files)
