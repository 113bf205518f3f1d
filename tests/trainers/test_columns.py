"""Every column of a Parquet file has a type and a meaning, in the file and in the README."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT
from trainers.assessment import Assessment
from trainers.columns import MAIN, PREDICTIONS, RESULTS, RUNS, metric_columns, probability_columns, readme_table
from trainers.ledger import Epoch, Run
from trainers.metrics import evaluate
from trainers.splits import Assignment
from trainers.stack import Configuration
from trainers.tables import AssessedRun, result_files, write_runs
from trainers.tasks import PRESETS, Task


@pytest.mark.parametrize("task", PRESETS.values(), ids=list(PRESETS))
def test_columns_are_those_of_the_metrics(task: Task) -> None:
    classes = len(task.classes)
    metrics = evaluate([0, 1], np.eye(classes)[:2], classes)
    assert [c.name for c in metric_columns(task)] == [
        f"{level}_{name}" for level in ("bag", "slide") for name in metrics
    ]
    for columns in (RUNS, (*RESULTS, *metric_columns(task)), (*PREDICTIONS, *probability_columns(task))):
        names = [c.name for c in columns]
        assert len(set(names)) == len(names)
        assert all(c.meaning for c in columns)


def test_meanings_are_in_the_files(tmp_path: Path) -> None:
    task = PRESETS["four"]
    run = Run("r", "k" * 64, "e", 0, 1, Configuration(1e-3, 1e-4), (Epoch(1.0, 1.0, 0.5, 0.1),), 0, outer=2)
    slides = [Assignment(f"s{k}", f"c{k}", k, k, "test", None) for k in range(4)]
    p = np.eye(4, dtype=np.float32)
    metrics = {f"{level}_{k}": v for level in ("bag", "slide") for k, v in evaluate(range(4), p, 4).items()}
    write_runs([run], {"r"}, tmp_path / "runs.parquet")
    with result_files(task, tmp_path, fraction=0.1, left_out=3) as files:
        files.add(AssessedRun(run, True, Assessment(metrics, np.arange(4), p), slides))
    expected = {
        "runs.parquet": RUNS,
        "results.parquet": (*RESULTS, *metric_columns(task)),
        "predictions.parquet": (*PREDICTIONS, *probability_columns(task)),
    }
    for name, columns in expected.items():
        found = pq.read_schema(tmp_path / name)
        assert [(f.name, f.type) for f in found] == [(c.name, c.type) for c in columns]
        assert [f.metadata[b"description"].decode() for f in found] == [c.meaning for c in columns]
        rows = pq.read_table(tmp_path / name).to_pylist()
        assert {(r["run_id"], r["outer"], r["selected"]) for r in rows} == {("r", 2, True)}
    (result,) = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert (result["task"], result["fraction"], result["n_left_out"]) == ("four", 0.1, 3)
    assert [r["slide_id"] for r in pq.read_table(tmp_path / "predictions.parquet").to_pylist()] == [
        "s0",
        "s1",
        "s2",
        "s3",
    ]


def test_a_test_that_breaks_off_leaves_no_files(tmp_path: Path) -> None:
    with pytest.raises(KeyError), result_files(PRESETS["four"], tmp_path):
        raise KeyError
    assert not {"results.parquet", "predictions.parquet"} & {path.name for path in tmp_path.iterdir()}


def test_the_readme_shows_the_main_columns() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme_table() in text, "print trainers.columns.readme_table() into the README"
    assert set(MAIN) == set(re.findall(r"\| `\w+` \| `(\w+\.parquet)` \|", text))
