"""The fixed test set, scored and drawn into the sweep's directory: what is there, what is kept, what fails alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from cluster.scoring import open_models
from cluster.testset import score_and_draw_test_set
from tests.scored import scored_sweep
from trainers.results import read_csv


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose test set is scored and drawn, but for two slides whose files are not on this machine."""
    sweep = scored_sweep(tmp_path_factory.mktemp("project"))
    for name in ("s1.tif", "s3.tif"):
        (sweep.parent / name).unlink()
    score_and_draw_test_set(sweep, bags=40)
    return sweep.parent


@pytest.fixture
def sweep(original: Path, tmp_path: Path) -> Path:
    """A copy of it, moved with its slides and store."""
    project = tmp_path / "project"
    shutil.copytree(original, project)
    where = {"cohort": str(project / "cohort.csv"), "store": str(project / "store")}
    (project / "sweep" / "environment.json").write_text(json.dumps(where))
    return project / "sweep"


def times(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_what_is_written(sweep: Path) -> None:
    rows = read_csv(sweep, "scores.csv")
    assert [(row["embedder"], row["slide_id"]) for row in rows] == [
        (embedder, f"s{k}") for embedder in ("two", "one") for k in range(4)
    ]
    assert {row["part"] for row in rows} == {"test"}
    models = open_models(sweep, embedder="one")
    for row, slide in zip(rows[4:], models.test_slides(sweep), strict=True):
        score = models.score(slide, 40)
        assert float(row["expected_score"]) == score.expected_score
        assert float(row["p_2"]) == score.probabilities[2]
    cases = read_csv(sweep, "case_scores.csv")
    assert [(row["embedder"], row["case_id"], row["n_slides"]) for row in cases[:2]] == [
        ("two", "c0", "1"),
        ("two", "c1", "1"),
    ]
    assert list(cases[0])[:7] == [
        *("embedder", "case_id", "her2_score", "n_slides", "predicted_score", "predicted", "expected_score")
    ]
    assert [(row["embedder"], row["bags"]) for row in read_csv(sweep, "auc_by_bags.csv")][9:11] == [
        ("two", "1000"),
        ("one", "1"),
    ]
    index = read_csv(sweep / "heatmaps", "index.csv")
    assert [row["slide_id"] for row in index] == ["s0", "s2"]
    assert [row["has_ihc"] for row in index] == ["True", "False"]
    assert [bool(row["truth_auc"]) for row in index] == [True, False]
    assert {row["run_id"] for row in index} == {"two-f1"}
    assert {p.name for p in (sweep / "heatmaps").iterdir()} == {
        "index.csv",
        *(f"s{k}{end}" for k in (0, 2) for end in (".png", ".top.png")),
    }


def test_what_is_current_is_kept(sweep: Path) -> None:
    before = times(sweep)
    seen: list[tuple[int, int]] = []
    report = score_and_draw_test_set(sweep, bags=40, watch=lambda done, total: seen.append((done, total)))
    assert [s.status for s in report.slides] == ["skipped"] * 4
    assert seen[-1] == (12, 12)  # slides by two embedders, and their heatmaps
    assert list(report.truth_aucs) == ["s0"]
    after = times(sweep)
    assert {name for name in after if after[name] != before[name]} == {"heatmaps/index.csv"}


def test_what_changed_is_made_anew(sweep: Path) -> None:
    before = times(sweep)
    shutil.copy(sweep / "checkpoints" / "one-f0.safetensors", sweep / "checkpoints" / "one-f2.safetensors")
    (sweep / "heatmaps" / "s2.png").unlink()
    states = {s.id: s.status for s in score_and_draw_test_set(sweep, bags=40).slides}
    assert states == {"s0": "skipped", "s1": "skipped", "s2": "done", "s3": "skipped"}
    after = times(sweep)
    assert after["scores.csv"] != before["scores.csv"]
    assert after["heatmaps/s0.png"] == before["heatmaps/s0.png"]  # by a model of embedder two


def test_heatmaps_stay_where_the_slides_are_not(sweep: Path) -> None:
    before = times(sweep)
    for name in ("s0.tif", "s2.tif", "s0-ihc.tif", "truth/s0.npz"):
        (sweep.parent / name).unlink()
    report = score_and_draw_test_set(sweep, bags=40)
    assert [s.status for s in report.slides] == ["skipped"] * 4
    assert ["its heatmap stays as it is" in s.reason for s in report.slides] == [True, False, False, False]
    assert "s0.tif is not on this machine" in report.slides[0].reason
    index = read_csv(sweep / "heatmaps", "index.csv")
    assert [(row["slide_id"], row["has_ihc"]) for row in index] == [("s0", "True"), ("s2", "False")]
    assert list(report.truth_aucs) == ["s0"]
    after = times(sweep)
    assert {name for name in after if after[name] != before[name]} == {"heatmaps/index.csv"}
    (sweep / "heatmaps" / "s2.top.png").unlink()
    shutil.copy(sweep / "checkpoints" / "two-f0.safetensors", sweep / "checkpoints" / "two-f1.safetensors")
    score_and_draw_test_set(sweep, bags=40)
    assert read_csv(sweep / "heatmaps", "index.csv") == []  # they are of another model


def test_copies_of_another_time_are_no_other_files(sweep: Path) -> None:
    for path in sweep.parent.rglob("*.*"):
        if path.suffix in {".tif", ".npz", ".csv"} and path.is_file():
            os.utime(path, (0, 0))
    assert {s.reason for s in score_and_draw_test_set(sweep, bags=40).slides if s.id in {"s0", "s2"}} == {
        "its heatmap is current"
    }


def test_another_truth_map_of_the_same_size(sweep: Path) -> None:
    path = sweep.parent / "truth" / "s0.npz"
    with np.load(path) as truth:
        other = {name: truth[name] for name in truth.files}
    size = path.stat().st_size
    np.savez(path, allow_pickle=False, **(other | {"tumour_fraction": other["tumour_fraction"][::-1]}))
    assert path.stat().st_size == size
    states = {s.id: s.status for s in score_and_draw_test_set(sweep, bags=40).slides}
    assert states == {"s0": "done", "s1": "skipped", "s2": "skipped", "s3": "skipped"}


@pytest.mark.slow
def test_another_number_of_bags_makes_all_anew(sweep: Path) -> None:
    assert [s.status for s in score_and_draw_test_set(sweep, bags=60).slides] == ["done", "skipped"] * 2
    assert {row["bags"] for row in read_csv(sweep, "scores.csv")} == {"60"}


def test_one_slide_or_embedder_that_fails_does_not_stop_the_rest(sweep: Path) -> None:
    (sweep.parent / "s1.tif").write_bytes(b"another slide")
    (sweep.parent / "s2.tif").unlink()
    (sweep / "checkpoints" / "one-f0.safetensors").unlink()
    shutil.rmtree(sweep / "heatmaps")
    (sweep / "scored.json").write_text("{}")
    report = score_and_draw_test_set(sweep, bags=40)
    found = [(s.id, s.status, s.reason) for s in report.slides]
    assert [(name, status) for name, status, _ in found] == [
        ("one", "failed"),
        ("s1", "failed"),
        ("s0", "done"),
        ("s1", "failed"),
        ("s2", "skipped"),
        ("s3", "skipped"),
    ]
    assert "not scored: " in found[0][2]
    assert "not scored by two: " in found[1][2]
    assert "not the file that was embedded" in found[1][2]
    assert "is not on this machine" in found[4][2]
    rows = read_csv(sweep, "scores.csv")
    assert [(row["embedder"], row["slide_id"]) for row in rows] == [("two", "s0"), ("two", "s2"), ("two", "s3")]
    assert read_csv(sweep, "auc_by_bags.csv") == []  # of fewer cases than the sweep tested
    assert [row["slide_id"] for row in read_csv(sweep / "heatmaps", "index.csv")] == ["s0"]


def test_slides_of_a_sweep_whose_cohort_is_gone(sweep: Path) -> None:
    (sweep.parent / "cohort.csv").unlink()
    slides = open_models(sweep).test_slides(sweep)
    assert [slide.slide_id for slide in slides] == ["s0", "s1", "s2", "s3"]
    assert slides[0].stain == "HE"
