"""What the README says is run: its Python, and every verb and option it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.cli.files import FOLDERS, SWEEP_FILES
from cluster.cli.main import main
from tests.conftest import ROOT
from tests.planted import DIM, planted_store
from trainers.assessment import Assessment
from trainers.ledger import Epoch, Run
from trainers.metrics import evaluate
from trainers.splits import Assignment
from trainers.stack import Configuration
from trainers.tables import AssessedRun, result_files
from trainers.tasks import find_task

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted_store(tmp_path, {"alexnet-imagenet": 4.0}, 8)
    monkeypatch.chdir(tmp_path)
    example, _ = blocks("python")
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["features"].shape == (60, DIM)
    assert names["coords"].shape == (60, 2)
    bag, label = names["bags"][0]
    assert bag.shape == (50, DIM)
    assert label in range(4)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results of a sweep as the README asks of them: 2 embedders, 3 folds and 1 outer fold."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "sweep").mkdir()
    runs = [
        Run(f"{e}-{o}-{f}", "k" * 64, e, f, 1, Configuration(1e-3, 1e-4), (Epoch(1.0, 1.0, 0.5, 0.1),), 0, outer=o)
        for e in ("a", "b")
        for o in (None, 0)
        for f in range(3)
    ]
    slides = [Assignment(f"s{k}", f"c{k}", k, k, "test", None) for k in range(4)]
    p = np.random.default_rng(0).dirichlet(np.ones(4), (len(runs), 4)).astype(np.float32)
    with result_files(find_task("four"), folder / "sweep") as files:
        for run, own in zip(runs, p, strict=True):
            found = evaluate(range(4), own, 4)
            metrics = {f"{level}_{name}": value for level in ("bag", "slide") for name, value in found.items()}
            files.add(
                AssessedRun(run, run.embedder == "a" or run.fold > 0, Assessment(metrics, np.arange(4), own), slides)
            )
    return folder


def test_the_pandas_example_runs(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(swept)
    names: dict[str, Any] = {}
    exec(blocks("python")[1], names)
    assert names["best"]["count"].to_dict() == {"a": 3, "b": 2}
    of_a = [r["bag_auc"] for r in pq.read_table("sweep/results.parquet").to_pylist()[:3]]
    assert names["best"]["mean"]["a"] == pytest.approx(np.mean(of_a))


def test_the_duckdb_example_runs(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(swept)
    (query,) = re.findall(r'duckdb -c "(.*)"', README)
    assert {row[0] for row in duckdb.sql(query).fetchall()} == {"a", "b"}


def test_every_file_of_a_sweep_is_named() -> None:
    (section,) = re.findall(r"^## What a sweep leaves\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)
    for name in (*SWEEP_FILES, *(f"{folder}/" for folder in FOLDERS)):
        assert f"`{name}" in section, name


def commands() -> list[list[str]]:
    lines = [line.partition(" #")[0] for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("her2cache ")]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[:2]))
def test_every_command_parses(words: list[str]) -> None:
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, f"the README names a verb that does not exist: {words[0]}"
        command, words = found, words[1:]
    command.make_context("her2cache", words)
