"""The report's numbers are those of the predictions, chosen without the test set."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console, Group
from sklearn.metrics import auc as area
from sklearn.metrics import roc_auc_score

from her2cache.errors import SweepError
from tests.predictions import CASES, FOLDS, write_sweep
from trainers.cases import case_level, pool_cases
from trainers.files import whole
from trainers.grid import draw_grid
from trainers.report import table, write_report
from trainers.results import read_results, selected_runs, slides_tested, write_csv
from trainers.table2 import table2_rows


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep"), {"alexnet-random": 0.0, "alexnet-imagenet": 1.5})


def test_table2_by_hand(sweep: Path) -> None:
    predictions = pq.read_table(sweep / "predictions.parquet").to_pylist()
    auc: list[float] = []
    for fold in range(FOLDS):
        own = [r for r in predictions if r["run_id"] == f"alexnet-imagenet-0.001-{fold}"]
        p = np.array([[r[f"p_{c}"] for c in range(4)] for r in own])
        auc.append(float(roc_auc_score([r["label"] for r in own], p, multi_class="ovr")))
    mean = sum(auc) / 3
    half = 1.96 * (sum((a - mean) ** 2 for a in auc) / 2) ** 0.5 / 3**0.5

    rows = table2_rows(read_results(sweep))
    assert [(r["embedder"], r["level"]) for r in rows] == [
        ("alexnet-imagenet", "bag"),
        ("alexnet-imagenet", "slide"),
        ("alexnet-random", "bag"),
        ("alexnet-random", "slide"),
    ]
    first = rows[0]
    assert first["protocol"].startswith("paper protocol")
    assert first["auc"] == pytest.approx(mean)
    assert first["auc_ci95"] == pytest.approx(half)
    assert (first["n_folds"], first["n_cases"], first["n_classes"]) == (FOLDS, CASES, 4)
    assert (first["learning_rate"], first["weight_decay"]) == (1e-3, 1e-5)
    assert first["auc_class_ci95"] > 0


def test_seeds_are_averaged_within_a_fold(sweep: Path) -> None:
    """Two seeds of the untrained embedder are two values of a fold, not two folds."""
    results = [r for r in read_results(sweep) if r["embedder"] == "alexnet-random" and r["selected"]]
    seeds = [r | {"embedder_seed": 1, "bag_auc": r["bag_auc"] + 0.1 * r["fold"]} for r in results]
    both, one = table2_rows(results + seeds)[0], table2_rows(results)[0]
    means = [r["bag_auc"] + 0.05 * r["fold"] for r in sorted(results, key=lambda r: r["fold"])]
    assert (both["n_folds"], both["n_seeds"], one["n_seeds"]) == (FOLDS, 2, 1)
    assert both["auc"] == pytest.approx(np.mean(means))
    assert both["auc_ci95"] == pytest.approx(1.96 * np.std(means, ddof=1) / FOLDS**0.5)


def test_selected_runs_are_those_that_the_sweep_marked(sweep: Path) -> None:
    results = read_results(sweep)
    outer = [r | {"outer": 0, "run_id": "other", "val_loss": 0.0} for r in results[:1]]
    selected = selected_runs([*results, *outer])
    assert list(selected) == ["alexnet-imagenet", "alexnet-random"]  # by mean validation loss
    for embedder, runs in selected.items():
        assert [r["run_id"] for r in runs] == [f"{embedder}-0.001-{fold}" for fold in range(FOLDS)]


def test_slides_tested(sweep: Path) -> None:
    assert slides_tested(sweep) == [f"s{k}" for k in range(CASES)]


def test_folds_with_different_classes_have_no_mean(sweep: Path) -> None:
    results = read_results(sweep)
    odd = next(r for r in results if r["run_id"] == "alexnet-imagenet-0.001-1")
    odd |= {"bag_recall_3": None, "bag_f1_3": None, "bag_auc_3": None, "bag_n_classes": 3}
    row = table2_rows(results)[-2]  # no mean, so last
    assert (row["embedder"], row["level"]) == ("alexnet-imagenet", "bag")
    assert [row[key] for key in ("auc", "auc_ci95", "f1", "balanced_accuracy", "n_classes")] == [None] * 5
    assert row["accuracy"] is not None


def test_files(sweep: Path) -> None:
    written = write_report(sweep)
    tables = {"table2.csv", "metrics.csv", "comparison.csv", "roc.csv", "confusion.csv"}
    pictures = {"roc.png", "confusion.png", "learning_curves.png", "grid.png"}
    assert {path.name for path in written.values()} == tables | pictures | {"report.html"}
    with written["table2.csv"].open() as file:
        rows = list(csv.DictReader(file))
    expected = table2_rows(read_results(sweep))
    assert [float(r["auc"]) for r in rows] == [r["auc"] for r in expected]

    with written["roc.csv"].open() as file:
        points = list(csv.DictReader(file))
    curves: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for point in points:
        curves.setdefault((point["embedder"], point["run_id"], point["class"]), []).append(point)
    assert len(curves) == 2 * (FOLDS + 1) * 4  # only the selected configurations, and the mean of their folds
    results = {r["run_id"]: r for r in read_results(sweep)}
    for (embedder, run_id, c), curve in curves.items():
        fpr, tpr = ([float(q[key]) for q in curve] for key in ("fpr", "tpr"))
        if run_id:
            assert area(fpr, tpr) == pytest.approx(results[run_id][f"bag_auc_{c}"])
            assert float(curve[0]["auc"]) == pytest.approx(area(fpr, tpr))
            continue
        folds = [curves[embedder, f"{embedder}-0.001-{fold}", c] for fold in range(FOLDS)]
        at = [np.interp(fpr[1:], [float(q["fpr"]) for q in f], [float(q["tpr"]) for q in f]) for f in folds]
        np.testing.assert_allclose(tpr[1:], np.mean(at, axis=0))
        np.testing.assert_allclose([float(q["tpr_low"]) for q in curve[1:]], np.min(at, axis=0))
        np.testing.assert_allclose([float(q["tpr_high"]) for q in curve[1:]], np.max(at, axis=0))
        assert tpr[0] == 0
        assert float(curve[0]["auc"]) == pytest.approx(np.mean([float(f[0]["auc"]) for f in folds]))
    for name in pictures:
        with Image.open(written[name]) as picture:
            assert picture.width >= 1000


def test_a_search_is_drawn_as_a_scatter(sweep: Path, tmp_path: Path) -> None:
    """Configurations that are no grid; one of them failed, and one ran away."""
    rates = np.random.default_rng(0).uniform(-4, -2, (8, 2))
    losses = [1.2, 1.1, None, 1.3, 9.0, 1.0, 1.15, 1.25]
    rows = [
        {"embedder": "e", "learning_rate": 10**a, "weight_decay": 10**b, "val_loss": loss, "selected": loss == 1.0}
        for (a, b), loss in zip(rates.tolist(), losses, strict=True)
    ]
    draw_grid({"e": rows}, caption="", out=tmp_path / "scatter.png")
    with Image.open(tmp_path / "scatter.png") as picture:
        assert picture.width >= 1000


def printed(shown: Group) -> str:
    file = StringIO()
    Console(width=80, file=file).print(shown)
    return file.getvalue()


def test_terminal_table_fits_80_columns(sweep: Path) -> None:
    text = printed(table(sweep))
    rows = table2_rows(read_results(sweep))
    assert f"{rows[0]['auc']:.3f} ± {rows[0]['auc_ci95']:.3f}" in text
    assert "paper protocol" in text
    assert "spread over training folds, not over patients" in " ".join(text.split())
    assert "No headline: this sweep has no nested cross-validation" in text
    how = "(paired bootstrap, Holm-corrected, unreliable under 5 cases a class as here)"
    assert f"case-level AUC on the fixed test set {how}" in " ".join(text.split())
    assert "8 cases (0: 2; 1+: 2; 2+: 2; 3+: 2)" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_a_screening_says_so_wherever_its_numbers_stand(sweep: Path, tmp_path: Path) -> None:
    assert "screening" not in printed(table(sweep))
    assert {(row["fraction"], row["n_left_out"]) for row in table2_rows(read_results(sweep))} == {(1.0, 0)}
    shutil.copytree(sweep, tmp_path / "sweep")
    results = pq.read_table(sweep / "results.parquet").to_pylist()
    screened = [row | {"fraction": 0.1, "n_left_out": 2} for row in results]
    pq.write_table(pa.Table.from_pylist(screened), tmp_path / "sweep" / "results.parquet")
    with write_report(tmp_path / "sweep")["table2.csv"].open() as file:
        assert {(row["fraction"], row["n_left_out"]) for row in csv.DictReader(file)} == {("0.1", "2")}
    caption = printed(table(tmp_path / "sweep")).partition("case level")[2]
    said = " ".join(caption.split())
    notes = "A screening: only 10 % of each slide's patches took part, in tests as well. 2 slides of the cohort took no"
    assert said.index(notes) < said.index("Paper protocol")


def test_a_report_that_breaks_off_leaves_the_files_as_they_were(sweep: Path, tmp_path: Path) -> None:
    shutil.copytree(sweep, tmp_path / "sweep")
    before = {path: path.read_bytes() for path in write_report(tmp_path / "sweep").values()}

    def rows() -> Iterator[dict[str, int]]:
        yield {"a": 1}
        raise KeyError

    for path in before:
        with pytest.raises(KeyError), whole(path) as partial:
            write_csv(partial, rows())
    assert {path: path.read_bytes() for path in before} == before


def test_a_test_set_of_one_class_is_reported_with_gaps(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s", {"alexnet-random": 0.0}, classes=2, held=1)
    written = write_report(sweep)
    with written["table2.csv"].open() as file:
        assert {r["auc"] for r in csv.DictReader(file)} == {""}
    assert "undefined" in printed(table(sweep))


def test_what_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"results\.parquet does not exist"):
        write_report(tmp_path)
    (tmp_path / "results.parquet").write_text("run_id,auc\n")
    with pytest.raises(SweepError, match="cannot be read"):
        write_report(tmp_path)
    pq.write_table(pa.table({"run_id": ["r"]}), tmp_path / "results.parquet")
    with pytest.raises(SweepError, match="an earlier version wrote it"):
        write_report(tmp_path)
    pq.write_table(pa.table({"run_id": pa.array([], pa.string())}), tmp_path / "results.parquet")
    with pytest.raises(SweepError, match="is empty"):
        table(tmp_path)


def test_the_case_level_pools_bags_folds_and_slides(tmp_path: Path) -> None:
    """Against a plain computation from the predictions, one case after the other."""
    sweep = write_sweep(tmp_path / "sweep", {"good": 2.0, "none": 0.0})
    predictions = pq.read_table(sweep / "predictions.parquet")
    rows = predictions.to_pylist()
    for embedder, runs in selected_runs(read_results(sweep)).items():
        ids = [run["run_id"] for run in runs]
        cases = pool_cases(predictions.filter(pc.is_in(predictions["run_id"], pa.array(ids))), 4)
        found = case_level(cases)
        p, y = np.zeros((CASES, 4)), np.arange(CASES) % 4
        for k in range(CASES):
            for run_id in ids:
                of_case = [r for r in rows if (r["run_id"], r["case_id"]) == (run_id, f"c{k}")]
                own = [[r[f"p_{c}"] for c in range(4)] for r in of_case]
                p[k] += np.mean(own, axis=0) / len(ids)
        np.testing.assert_allclose(cases.p[0], p)
        assert cases.named() == "2/2/2/2"
        value, bootstrap, chance = (of["auc"] for of in (found.values, found.bootstrap, found.chance))
        assert value == pytest.approx(np.mean([roc_auc_score(y == c, p[:, c]) for c in range(4)]))
        assert not found.reliable
        assert value is not None
        assert bootstrap is not None
        assert chance is not None
        assert bootstrap.low <= value <= bootstrap.high
        assert chance.low < 0.35
        assert chance.high > 0.65
        assert (value > chance.high) == (embedder == "good")
    with (write_report(sweep)["table2.csv"]).open() as file:
        written = list(csv.DictReader(file))
    assert {(row["embedder"], row["case_auc_reliable"]) for row in written} == {("good", "False"), ("none", "False")}
    shown = " ".join(printed(table(sweep)).split())
    assert "chance alone reaches an AUC from" in shown
    assert "unreliable under 5 cases a class" in shown
