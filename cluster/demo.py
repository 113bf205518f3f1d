"""The whole path on the synthetic cohort: slides, source tasks, features, sweep, scores, heatmaps, report."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cluster.embed_job import EmbedReport, embed_slides
from cluster.job import EmbedOptions, Progress
from cluster.pretraining import cut_slides, train_network
from cluster.sweep import SweepOptions, SweepProgress, SweepReport, run_sweep
from cluster.testset import ScoringReport, Watch, score_and_draw_test_set
from her2cache.backbones.registry import load_recipe
from her2cache.cohort import read_cohort
from her2cache.embedder import Recipe
from her2cache.errors import ConfigError, EmbedderError
from her2cache.ids import encode_slide_id
from her2cache.ingest import ReadOptions
from her2cache.store.reader import FeatureStore
from her2cache.synthetic.cohort import write_synthetic_cohort
from her2cache.synthetic.pcam import write_synthetic_pcam
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from trainers.pretraining.heldout import held_out_cases
from trainers.pretraining.ihc import ihc_data, part_slides
from trainers.pretraining.loop import PretrainSettings
from trainers.pretraining.patches import SourceData
from trainers.pretraining.pcam import open_pcam
from trainers.report import write_report
from trainers.results import read_csv, read_results, selected_runs, write_csv


@dataclass(frozen=True)
class DemoSize:
    """How much the demo does.

    Attributes:
        cases: of the cohort, an H&E and an IHC slide each.
        experiment: sections of the experiment file; a key that is left out has the paper's value.
        pcam: training patches of the synthetic PatchCamelyon.
        ihc: patches of an IHC slide, at most.
        epochs: of either source task.
        width_px: of a slide.
    """

    cases: int
    experiment: str
    pcam: int
    ihc: int
    epochs: int
    width_px: int = 1536


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
epochs = 6
learning_rate = [1e-3, 1e-4]
weight_decay = [1e-3, 1e-5]
"""

SIZES = {
    "small": DemoSize(32, _SMALL, pcam=480, ihc=16, epochs=3),
    "paper": DemoSize(52, "", pcam=16_384, ihc=7500, epochs=40),
}

PATCH_PX, IHC_PX = 96, 224


def ready_made(imagenet: Path | None, *, offline: bool) -> tuple[list[Recipe], str]:
    """The embedders that need no training, and why ImageNet's is missing, if it is.

    Raises:
        EmbedderError: a weights file was given and is none.
    """
    random = [load_recipe("alexnet-random", PATCH_PX)]
    request = "alexnet-imagenet" if imagenet is None else f"alexnet-imagenet={imagenet}"
    try:
        return [*random, load_recipe(request, PATCH_PX, offline=offline)], ""
    except EmbedderError as error:
        if imagenet is not None:
            raise
        return random, str(error)


def make_pcam(out: Path, size: str, progress: Callable[[int, int], None]) -> Path:
    """Writes synthetic PatchCamelyon files, or takes those that are there; returns their folder."""
    folder = out / "pcam"
    with suppress(ConfigError):  # there are none yet
        if open_pcam(folder).train.size == SIZES[size].pcam:
            return folder
    return write_synthetic_pcam(folder, SIZES[size].pcam, progress=progress)


def train_pcam(out: Path, size: str, folder: Path, watch: Callable[[int, int], None]) -> Recipe:
    """Trains alexnet-pcam, unless that is done."""
    return _train(out, size, "alexnet-pcam", partial(open_pcam, folder.absolute()), watch)


def train_ihc(out: Path, size: str, table: Path, experiment: Path, watch: Callable[[int, int], None]) -> Recipe:
    """Trains alexnet-ihc on the cases that the sweep does not test on, unless that is done."""
    held_out = held_out_cases(table, experiment)
    parts = part_slides(read_cohort(table).with_stain("IHC").slides, held_out.cases, seed=0)
    reading = ReadOptions(PatchSpec(patch_px=IHC_PX, stride_px=IHC_PX), preset("IHC"))
    report = cut_slides(parts.slides, reading, SIZES[size].ihc, (out / "weights" / "ihc-patches").absolute())
    return _train(out, size, "alexnet-ihc", partial(ihc_data, report.cut, parts, reading.patch.mpp), watch)


def _train(
    out: Path, size: str, embedder: str, load: Callable[[], SourceData], watch: Callable[[int, int], None]
) -> Recipe:
    settings = PretrainSettings(epochs=SIZES[size].epochs)
    file = (out / "weights" / f"{embedder}.safetensors").absolute()
    file.parent.mkdir(parents=True, exist_ok=True)
    train_network(load, settings, file, watch=lambda epoch: watch(epoch.epoch, settings.epochs))
    return load_recipe(f"{embedder}={file}", PATCH_PX)


def make_cohort(out: Path, size: str, progress: Callable[[int, int], None]) -> Path:
    """Writes the synthetic cohort, or takes the one that is there; returns its table."""
    table = out / "cohort" / "cohort.csv"
    if table.exists() and len(read_cohort(table, check_files=True).with_stain("HE").slides) == SIZES[size].cases:
        return table
    wanted = SIZES[size]
    return write_synthetic_cohort(out / "cohort", slides=wanted.cases, width_px=wanted.width_px, progress=progress)


def embed_cohort(table: Path, store: Path, recipes: list[Recipe], watch: Callable[[Progress], None]) -> EmbedReport:
    """Embeds the H&E slides of the cohort."""
    slides = read_cohort(table).with_stain("HE").slides
    reading = ReadOptions(PatchSpec(patch_px=PATCH_PX, stride_px=PATCH_PX), preset("HE"))
    return embed_slides(slides, recipes, FeatureStore.create(store), reading, EmbedOptions(), watch)


def write_experiment(out: Path, embedders: Sequence[str], size: str) -> Path:
    """Writes the experiment file of the demo; returns its path."""
    names = ", ".join(f'"{name}"' for name in embedders)
    data = f'[data]\ncohort = "cohort/cohort.csv"\nstore = "store"\nembedders = [{names}]\n\n'
    path = out / "experiment.toml"
    path.write_text(data + SIZES[size].experiment, encoding="utf-8")
    return path


def run_demo_sweep(out: Path, experiment: Path, watch: Callable[[SweepProgress], None]) -> SweepReport:
    """Runs the sweep of the demo, or goes on with the one that is there."""
    return run_sweep(experiment, out / "sweep", SweepOptions(resume=(out / "sweep").exists()), watch)


@dataclass(frozen=True)
class DemoScores:
    """What the trained models say of the test slides.

    Attributes:
        scored: what was scored and drawn, in the sweep's directory.
        pictured: the slide of heatmap.png, that of the highest expected score; "" where none could be drawn.
        files: name -> path of what was written.
    """

    scored: ScoringReport
    pictured: str
    files: dict[str, Path]


def score_test_slides(out: Path, watch: Watch, *, bags: int = 1000) -> DemoScores:
    """Scores and draws the test slides and writes the report; the best embedder's scores and one heatmap lie on top."""
    sweep = out / "sweep"
    scored = score_and_draw_test_set(sweep, bags=bags, watch=watch)
    files = {**scored.written, **write_report(sweep)}
    best = next(iter(selected_runs(read_results(sweep))))
    write_csv(out / "scores.csv", [row for row in read_csv(sweep, "scores.csv") if row["embedder"] == best])
    files["scores.csv"] = out / "scores.csv"
    drawn = read_csv(sweep / "heatmaps", "index.csv")
    if not drawn:
        return DemoScores(scored, "", files)
    pictured = max(drawn, key=lambda row: float(row["expected_score"]))["slide_id"]
    shutil.copyfile(sweep / "heatmaps" / f"{encode_slide_id(pictured)}.png", out / "heatmap.png")
    return DemoScores(scored, pictured, files | {"heatmap.png": out / "heatmap.png"})
