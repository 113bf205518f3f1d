"""`her2cache score`, `heatmap` and `report` on a sweep directory: results, JSON, exit codes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from click.testing import CliRunner, Result
from PIL import Image

from cluster.cli.score import heatmap, report, score
from her2cache.cohort import Slide, write_cohort
from her2cache.embedder import EmbedderSpec, FeatureSpace
from her2cache.slide import file_identity
from her2cache.store.reader import FeatureStore
from her2cache.store.writer import SlideShape
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from trainers.metrics import evaluate
from trainers.model import AttentionMIL, Origin, TrainedModel
from trainers.results import write_csv
from trainers.score import score_slide
from trainers.tasks import find_task

DIM, FOLDS, SIDE = 16, 3, 96
COORDS = np.array([(x, y) for y in range(0, 768, SIDE) for x in range(0, 960, SIDE)], np.int32)  # (80, 2)


def _space(name: str) -> FeatureSpace:
    embedder = EmbedderSpec(name, DIM, SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), name)
    return FeatureSpace(PatchSpec(), preset("HE"), embedder)


def _write_slide(path: Path) -> None:
    rng = np.random.default_rng(len(path.name))
    pixels = rng.integers(120, 240, (768, 960, 3), np.uint8)
    options = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}  # 0.5 um/px
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", **options)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of untrained models of two embedders over four embedded slides."""
    root = tmp_path_factory.mktemp("project")
    rng = np.random.default_rng(0)
    slides = [Slide(f"s{k}", f"c{k}", root / f"s{k}.tif", "HE", k) for k in range(4)]
    for slide in slides:
        _write_slide(slide.path)
    write_cohort(slides, root / "cohort.csv")

    store = FeatureStore.create(root / "store")
    for name in ("one", "two"):
        key = store.add_space(_space(name))
        for slide in slides:
            provenance = {"path": str(slide.path), **file_identity(slide.path), "mpp": 0.5}
            writer = store.writer(SlideShape(slide.slide_id, key, COORDS, 1, DIM, "float16", float(SIDE), provenance))
            features = rng.normal(size=(1, len(COORDS), DIM)).astype(np.float16)
            writer.write(0, features, np.ones(len(COORDS), np.bool_))
            assert writer.commit({}) == "committed"

    out = root / "sweep"
    results: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for name, loss in (("one", 1.3), ("two", 1.1)):
        for fold in range(FOLDS):
            run_id, key = f"{name}-f{fold}", _space(name).key
            model = AttentionMIL.seeded(DIM, 4, 8, seed=fold)
            origin = Origin(run_id, key, name, "digest", fold, 0, find_task("four"))
            TrainedModel(model, origin).save(out / "checkpoints" / f"{run_id}.safetensors")
            p = rng.dirichlet(np.ones(4), size=40)
            label = np.arange(40) % 4
            levels = {"bag": evaluate(label, p, 4), "slide": evaluate(np.arange(4), p[:4], 4)}
            setting = {"learning_rate": 1e-3, "weight_decay": 1e-5, "seed": fold, "epoch": 0, "task": "four"}
            of_run = {"embedder_seed": 0, "outer": None, "selected": True}
            results.append(
                {"run_id": run_id, "space_key": key, "embedder": name, "fold": fold, "val_loss": loss + (fold - 1) ** 2}
                | setting
                | of_run
                | {"n_bags": 40, "n_slides": 4, "n_cases": 4}
                | {f"{level}_{metric}": v for level, found in levels.items() for metric, v in found.items()}
            )
            predictions += [
                {"run_id": run_id, "embedder": name, "slide_id": f"s{c}", "case_id": f"c{c}", "label": c}
                | of_run
                | {f"p_{k}": float(p[i, k]) for k in range(4)}
                for i, c in enumerate(label.tolist())
            ]
    pq.write_table(pa.Table.from_pylist(results), out / "results.parquet")
    pq.write_table(pa.Table.from_pylist(predictions), out / "predictions.parquet")
    losses = {"train_loss": 1.0, "best": True, "reason": ""}
    pq.write_table(pa.Table.from_pylist([row | losses for row in results]), out / "runs.parquet")
    write_csv(out / "selection.csv", [row for row in results if row["fold"] == 0])
    (out / "experiment.toml").write_text(
        '[data]\ncohort = "cohort.csv"\nstore = "store"\nembedders = ["one", "two"]\n[bags]\nsize = 20\n'
    )  # a copy: its relative paths start at the folder it came from, which environment.json tells
    where = {"cohort": str(root / "cohort.csv"), "store": str(root / "store")}
    (out / "environment.json").write_text(json.dumps(where))
    return out


def _run(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def _document(command: click.Command, *arguments: object) -> dict[str, Any]:
    result = _run(command, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_score_equals_the_library(sweep: Path) -> None:
    document = _document(score, "s2", "--sweep", sweep, "--bags", 50)
    assert document["items"] == [{"id": "s2", "status": "done", "reason": ""}]
    assert document["runs"] == ["two-f0", "two-f1", "two-f2"]  # the embedder of least validation loss
    store = FeatureStore.open(sweep.parent / "store")
    models = [TrainedModel.load(sweep / "checkpoints" / f"{run_id}.safetensors") for run_id in document["runs"]]
    scores = [model.patch_scores(store.features("s2", _space("two").key)) for model in models]
    expected = score_slide(scores, len(COORDS), bags=50, size=20)
    (row,) = document["scores"]
    assert {key: row[key] for key in expected.as_row()} == expected.as_row()
    assert row["predicted_score"] == find_task("four").classes[expected.predicted]
    assert (row["case_id"], row["her2_score"]) == ("c2", 2)


def test_score_a_cohort_into_a_csv(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "scores.csv"
    result = _run(score, sweep.parent / "cohort.csv", "--sweep", sweep, "--bags", 20, "--out", out)
    assert result.exit_code == 0, result.output
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["slide_id"] for row in rows] == ["s0", "s1", "s2", "s3"]
    assert all(sum(float(row[f"p_{c}"]) for c in range(4)) == pytest.approx(1) for row in rows)
    assert {"mc_se", "bag_p2.5", "bag_p97.5", "model_sd"} <= set(rows[0])
    assert "None of these is a confidence interval" in " ".join(result.stdout.split())


def test_score_by_file_with_one_run(sweep: Path) -> None:
    document = _document(score, sweep.parent / "s1.tif", "--sweep", sweep, "--run", "one-f2", "--bags", 20)
    (row,) = document["scores"]
    assert (row["slide_id"], row["case_id"], row["model_sd"]) == ("s1", "c1", None)
    assert document["runs"] == ["one-f2"]


def test_heatmap(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.png"
    document = _document(heatmap, "s3", "--sweep", sweep, "--out", out, "--embedder", "one", "--bags", 2)
    assert document["runs"] == ["one-f1"]  # the fold of least validation loss
    assert document["bags"] == 4  # raised to a whole pass: 80 patches in bags of 20
    with Image.open(out) as picture:
        assert picture.format == "PNG"


def test_report(sweep: Path) -> None:
    document = _document(report, sweep)
    assert all(Path(path).is_file() for path in document["outputs"].values())
    shown = _run(report, sweep)
    assert "fold_ci95" in shown.stdout
    assert "table2.csv" in shown.stdout


def test_another_file_under_the_id_of_an_embedded_slide(sweep: Path, tmp_path: Path) -> None:
    other = tmp_path / "s0.tif"
    other.write_bytes(b"not that slide")
    result = _run(score, other, "s1", "--sweep", sweep, "--bags", 20, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [item["status"] for item in document["items"]] == ["failed", "done"]
    assert "is not the file that was embedded as 's0'" in document["items"][0]["reason"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.svs"], "neither a file on this machine nor a slide_id"),
        (["s1", "--run", "x"], "no tested run 'x'; name one of: one-f0"),
        (["s1", "--embedder", "x"], "no tested run of embedder 'x'; name one of: two, one"),
    ],
)
def test_usage_errors_are_one_line(sweep: Path, arguments: list[str], message: str) -> None:
    result = _run(score, *arguments, "--sweep", sweep)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_sweep_copied_in_part(sweep: Path, tmp_path: Path) -> None:
    for name in ("results.parquet", "experiment.toml"):
        shutil.copy(sweep / name, tmp_path)
    result = _run(score, "s1", "--sweep", tmp_path)
    assert result.exit_code == 2
    assert "environment.json cannot be read" in result.stderr


def test_no_sweep(tmp_path: Path) -> None:
    result = _run(report, tmp_path)
    assert result.exit_code == 2
    assert "results.parquet does not exist" in result.stderr
