"""The Parquet files of a sweep: typed, one row a run and epoch, a tested run, a test bag."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainers.assessment import Assessment
from trainers.columns import PREDICTIONS, RESULTS, RUNS, metric_columns, probability_columns, schema
from trainers.files import whole
from trainers.ledger import Run
from trainers.splits import Assignment
from trainers.tasks import Task


@dataclass(frozen=True)
class AssessedRun:
    """A run with its test.

    Attributes:
        run: which.
        is_selected: whether its configuration was selected.
        assessment: what the test found.
        slides: the test slides that `assessment` counts.
    """

    run: Run
    is_selected: bool
    assessment: Assessment
    slides: Sequence[Assignment]


def write_runs(runs: Sequence[Run], selected: Collection[str], path: Path) -> None:
    """Writes runs.parquet: one row a run and epoch, from 0.

    A failed run ends in a row without losses whose `reason` says why; in all other rows it is empty.

    Args:
        runs: all of them.
        selected: ids of those whose configuration was selected.
        path: of the file.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        common = {**_fields(run), "selected": run.run_id in selected, "stopped": run.stopped}
        for number, e in enumerate(run.epochs):
            losses = {"train_loss": e.train_loss, "val_loss": e.val_loss, "val_accuracy": e.val_accuracy}
            ends = {"epoch": number, "seconds": e.seconds, "best": number == run.best, "reason": ""}
            rows.append({**common, **losses, **ends})
        if run.reason:
            rows.append({**common, "epoch": len(run.epochs), "best": False, "reason": run.reason})
    _write(pa.Table.from_pylist(rows, schema(RUNS)), path)


class ResultFiles:
    """results.parquet and predictions.parquet, filled run by run; the predictions of one run are in memory."""

    def __init__(self, common: dict[str, Any], predictions: pq.ParquetWriter, columns: pa.Schema) -> None:
        self._common = common
        self._predictions = predictions
        self._columns = columns
        self.rows: list[dict[str, Any]] = []

    def add(self, tested: AssessedRun) -> None:
        """Takes the test of a run."""
        run, a, slides = tested.run, tested.assessment, tested.slides
        self.rows.append(
            {
                **_fields(run),
                "epoch": run.best,
                "val_loss": run.val_loss,
                "selected": tested.is_selected,
                "n_bags": len(a.slide),
                "n_slides": len(slides),
                "n_cases": len({s.case_id for s in slides}),
                **self._common,
                **a.metrics,
            }
        )
        self._predictions.write_table(_predictions(tested, self._columns))


@contextmanager
def result_files(task: Task, folder: Path, *, fraction: float = 1.0, left_out: int = 0) -> Generator[ResultFiles]:
    """Writes both files into a folder; a reader sees the whole files or none.

    Args:
        task: of all runs.
        folder: of the files.
        fraction: share of each slide's patches that was used.
        left_out: how many slides of the cohort took no part.
    """
    common = {"task": task.name, "fraction": fraction, "n_left_out": left_out}
    columns = schema((*PREDICTIONS, *probability_columns(task)))
    with whole(folder / "predictions.parquet") as partial, pq.ParquetWriter(partial, columns) as writer:
        files = ResultFiles(common, writer, columns)
        yield files
    _write(pa.Table.from_pylist(files.rows, schema((*RESULTS, *metric_columns(task)))), folder / "results.parquet")


def _predictions(tested: AssessedRun, columns: pa.Schema) -> pa.Table:
    """One row a test bag of a run, `p_0` being the probability of class 0."""
    run, a, slides = tested.run, tested.assessment, tested.slides
    of_run = {**_fields(run), "selected": tested.is_selected}
    rows: dict[str, Any] = {
        "slide_id": [slides[i].slide_id for i in a.slide],
        "case_id": [slides[i].case_id for i in a.slide],
        "bag": np.arange(len(a.slide), dtype=np.int32),
        "label": np.array([slides[i].label for i in a.slide], np.int32),
        **{f"p_{c}": p for c, p in enumerate(a.probabilities.T)},
    }
    arrays = [
        pa.array(rows[f.name], f.type) if f.name in rows else pa.repeat(pa.scalar(of_run[f.name], f.type), len(a.slide))
        for f in columns
    ]
    return pa.Table.from_arrays(arrays, schema=columns)


def _fields(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "space_key": run.space_key,
        "embedder": run.embedder,
        "embedder_seed": run.embedder_seed,
        "embedder_overlap": run.embedder_overlap,
        "outer": run.outer,
        "fold": run.fold,
        "seed": run.seed,
        "learning_rate": run.configuration.learning_rate,
        "weight_decay": run.configuration.weight_decay,
    }


def _write(table: pa.Table, path: Path) -> None:
    with whole(path) as partial:
        pq.write_table(table, partial)
