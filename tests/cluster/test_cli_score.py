"""`her2cache score`, `heatmap` and `report` on a sweep directory: results, JSON, exit codes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from sklearn.metrics import roc_auc_score

from cluster.cli.bars import pace
from cluster.cli.score import heatmap, report, score, score_each
from cluster.scoring import open_models
from her2cache.cohort import Slide, write_cohort
from her2cache.store.reader import FeatureStore
from tests.scored import COORDS, TRUTH, scored_sweep, space_of
from trainers.columns import schema
from trainers.model import TrainedModel
from trainers.results import read_csv, write_csv
from trainers.score import score_slide
from trainers.score_tables import case_columns, slide_columns
from trainers.tasks import find_task


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scored_sweep(tmp_path_factory.mktemp("project"))


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
    scores = [model.patch_scores(store.features("s2", space_of("two").key)) for model in models]
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
    assert {row["part"] for row in rows} == {""}  # the sweep's directory has no splits.csv
    assert [f" {float(row['mc_se']):#.2g} " in result.stdout for row in rows] == [True] * 4
    assert "warning" not in result.stdout
    assert "no splits.csv" in result.stdout
    assert "None of these is a confidence interval" in " ".join(result.stdout.split())


def test_slides_that_the_models_were_trained_on(sweep: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sweep, tmp_path / "sweep"))
    splits = [("s0", "test", ""), ("s1", "train", 0), ("s2", "train", 1), ("s3", "test", "")]
    rows = [{"slide_id": s, "case_id": f"c{s[1]}", "split": split, "fold": fold} for s, split, fold in splits]
    write_csv(copy / "splits.csv", rows)
    cohort, out = sweep.parent / "cohort.csv", tmp_path / "scores.csv"
    shown = _run(score, cohort, "--sweep", copy, "--bags", 20, "--out", out)
    assert [row["part"] for row in read_csv(tmp_path, "scores.csv")] == ["test", "trained on", "trained on", "test"]
    assert shown.stdout.count("trained on") == 3  # the slides', and that of the warning
    assert "warning the models were trained on 2 of 4 slides" in shown.stdout
    document = _document(score, "s1", "s3", "--sweep", copy, "--bags", 20)
    assert [row["part"] for row in document["scores"]] == ["trained on", "test"]
    assert "1 of 2 slides" in document["warnings"][0]
    assert _document(score, "--sweep", copy, "s0", "--bags", 20)["warnings"] == []


def test_every_slide_is_counted(sweep: Path) -> None:
    models = open_models(sweep)
    slides, reasons, seen = models.test_slides(sweep), {"s3": "lost"}, list[tuple[int, int]]()
    scores = score_each(slides, models, 20, None, reasons, lambda done, total: seen.append((done, total)))
    assert list(scores) == ["s0", "s1", "s2"]
    assert seen == [(k, 4) for k in range(5)]


def test_score_by_file_with_one_run(sweep: Path) -> None:
    document = _document(score, sweep.parent / "s1.tif", "--sweep", sweep, "--run", "one-f2", "--bags", 20)
    (row,) = document["scores"]
    assert (row["slide_id"], row["case_id"], row["model_sd"]) == ("s1", "c1", None)
    assert document["runs"] == ["one-f2"]


def test_without_a_target_it_is_the_test_set_and_the_tolerance_is_said(sweep: Path) -> None:
    document = _document(score, "--sweep", sweep, "--bags", 20)
    assert [row["slide_id"] for row in document["scores"]] == ["s0", "s1", "s2", "s3"]
    assert "tolerance" not in document
    error = document["scores"][0]["mc_se"]
    missed = _run(score, "s0", "--sweep", sweep, "--bags", 20, "--tolerance", error / 2)
    assert "0 of 1 slide, the others by 20 bags not" in missed.stdout
    met = _document(score, "s0", "--sweep", sweep, "--bags", 5000, "--tolerance", error)
    assert (met["tolerance"], met["within_tolerance"]) == (error, 1)
    assert met["scores"][0]["bags"] == 250
    shown = _run(score, "s0", "--sweep", sweep, "--bags", 5000, "--tolerance", error).stdout
    assert " drawn " in shown
    assert " 250 " in shown


def test_slides_of_a_case_are_combined(sweep: Path, tmp_path: Path) -> None:
    slides = [Slide(f"s{k}", f"c{k // 2}", sweep.parent / f"s{k}.tif", "HE", k // 2) for k in range(3)]
    write_cohort(slides, tmp_path / "cohort.csv")
    out, cases = tmp_path / "slides.parquet", tmp_path / "cases.parquet"
    result = _run(score, tmp_path / "cohort.csv", "--sweep", sweep, "--bags", 20, "--out", out, "--cases", cases)
    assert result.exit_code == 0, result.output
    assert result.stdout.index("c0 ") > result.stdout.index("s2 ")
    by_slide, by_case = pq.read_table(out), pq.read_table(cases)
    assert by_slide.schema.equals(schema(slide_columns(find_task("four"))), check_metadata=True)
    assert by_case.schema.equals(schema(case_columns(find_task("four"))), check_metadata=True)
    first, second = by_case.to_pylist()
    assert (first["case_id"], first["n_slides"], second["n_slides"]) == ("c0", 2, 1)
    rows = by_slide.to_pylist()
    assert first["p_3"] == pytest.approx((rows[0]["p_3"] + rows[1]["p_3"]) / 2)
    assert second["expected_score"] == pytest.approx(rows[2]["expected_score"])
    assert first["model_sd"] < rows[0]["model_sd"] + rows[1]["model_sd"]


def test_heatmap(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "map.png"
    document = _document(heatmap, "s3", "--sweep", sweep, "--out", out, "--embedder", "one", "--bags", 2)
    assert document["runs"] == ["one-f1"]  # the fold of least validation loss
    assert document["bags"] == 4  # raised to a whole pass: 80 patches in bags of 20
    assert (document["ihc"], document["truth_auc"]) == (None, None)
    with Image.open(out) as picture:
        assert picture.format == "PNG"


def test_a_heatmap_with_all_that_belongs_to_it(sweep: Path, tmp_path: Path) -> None:
    asked = [f"--{name}={tmp_path / name}" for name in ("out", "geojson", "patches")]
    document = _document(heatmap, "s0", "--sweep", sweep, *asked, "--top", 3, "--map", "signed")
    assert document["ihc"] == str(sweep.parent / "s0-ihc.tif")
    features = json.loads((tmp_path / "geojson").read_text())["features"]
    store, key = FeatureStore.open(sweep.parent / "store"), space_of("two").key
    x0, y0 = store.coords("s0", key)[5].tolist()
    assert features[5]["geometry"]["coordinates"][0][2] == [x0 + 96, y0 + 96]
    values = features[5]["properties"]["measurements"]
    truth = [TRUTH[y // 96, x // 96] for x, y in store.coords("s0", key).tolist()]
    assert values["tumour fraction (truth)"] == pytest.approx(truth[5], abs=1e-5)
    assert values["attention-weighted score"] == pytest.approx(
        values["attention-weighted p(2+)"] + values["attention-weighted p(3+)"], abs=1e-5
    )
    attention = [f["properties"]["measurements"]["attention"] for f in features]
    assert document["truth_auc"] == pytest.approx(roc_auc_score(np.array(truth) >= 0.5, attention))
    with Image.open(tmp_path / "patches") as sheet, Image.open(tmp_path / "out") as picture:
        assert sheet.format == picture.format == "PNG"
    shown = _run(heatmap, "s0", "--sweep", sweep, *asked)
    assert f"AUC of attention against the truth map {document['truth_auc']:.3f}" in shown.stdout


def test_an_ihc_slide_that_cannot_be_read(sweep: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(sweep.parent, project)
    (project / "s0-ihc.tif").write_bytes(b"no slide")
    where = {"cohort": str(project / "cohort.csv"), "store": str(project / "store")}
    (project / "sweep" / "environment.json").write_text(json.dumps(where))
    call = ["s0", "--sweep", project / "sweep", "--out", tmp_path / "map.png"]
    document = _document(heatmap, *call)  # a sister that nobody asked for does not stop the map
    assert document["ihc"] is None
    assert "drawn without the IHC slide" in document["notes"][0]
    named = _run(heatmap, *call, "--ihc", "s0-ihc")
    assert named.exit_code == 2
    assert "s0-ihc.tif cannot be opened" in named.stderr


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        (heatmap, ["s1", "--out", "x.png", "--map", "class:5+"], "class:0, class:1+, class:2+, class:3+"),
        (heatmap, ["s1", "--out", "x.png", "--truth", "missing.npz"], "cannot be read as a truth map"),
        (score, ["s1", "--out", "scores.xlsx"], "neither .csv nor .parquet"),
        (score, ["s1", "--cases", "cases"], "neither .csv nor .parquet"),
    ],
)
def test_what_was_asked_wrongly(
    sweep: Path,
    tmp_path: Path,
    verb: click.Command,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = _run(verb, *arguments, "--sweep", sweep)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("done", "left", "seconds", "text"),
    [
        (0, 10, 3.0, ""),
        (5, 10, 0.0, ""),
        (50, 100, 20.0, "2.5/s, 40 s left"),
        (4000, 8000, 2.0, "2,000/s, 4 s left"),
        (1, 3, 60.0, "1.0/min, 3 min left"),
        (20, 0, 2.0, "10.0/s"),
    ],
)
def test_the_pace_of_a_bar(done: int, left: int, seconds: float, text: str) -> None:
    assert pace(done, left, seconds) == text
    assert pace(done, left, seconds, "patches") == text.replace("/", " patches/")


@pytest.mark.slow
def test_report(sweep: Path) -> None:
    shown = _run(report, sweep)
    assert shown.exit_code == 0, shown.output
    assert "fold_ci95" in shown.stdout
    assert "Attention finds the synthetic tumour with an AUC" in shown.stdout
    for name in ("table2.csv", "scores.csv", "auc_by_bags.csv", "heatmaps/s3.top.png", "report.html"):
        assert (sweep / name).is_file()
        assert name.partition("/")[0] in shown.stdout


@pytest.mark.slow
def test_a_report_where_neither_store_nor_slides_are(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep, tmp_path / "copy")
    (tmp_path / "copy" / "environment.json").write_text('{"cohort": "/gone/cohort.csv", "store": "/gone/store"}')
    document = _document(report, tmp_path / "copy")
    assert "no new scores and heatmaps: " in document["notes"][0]
    assert "table2.csv" in document["outputs"]


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
