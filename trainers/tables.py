"""The Parquet tables of a sweep: typed, one row a run and epoch, a tested run, a test bag."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainers.assessment import Assessment
from trainers.ledger import Run
from trainers.splits import Assignment
from trainers.tasks import Task

_RUN: list[tuple[str, Any]] = [
    ("run_id", pa.string()),
    ("space_key", pa.string()),
    ("embedder", pa.string()),
    ("fold", pa.int32()),
    ("seed", pa.int64()),
    ("learning_rate", pa.float64()),
    ("weight_decay", pa.float64()),
    ("epoch", pa.int32()),
]
_RUNS = pa.schema(
    [
        *_RUN,
        ("train_loss", pa.float64()),
        ("val_loss", pa.float64()),
        ("val_accuracy", pa.float64()),
        ("seconds", pa.float64()),
        ("best", pa.bool_()),
        ("reason", pa.string()),
    ]
)


def write_runs(runs: Sequence[Run], path: Path) -> None:
    """Writes runs.parquet: one row a run and epoch, from 0.

    A failed run ends in a row without losses whose `reason` says why; in all other rows it is empty.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        for number, e in enumerate(run.epochs):
            losses = {"train_loss": e.train_loss, "val_loss": e.val_loss, "val_accuracy": e.val_accuracy}
            rows.append(
                {**_fields(run, number), **losses, "seconds": e.seconds, "best": number == run.best, "reason": ""}
            )
        if run.reason:
            rows.append({**_fields(run, len(run.epochs)), "best": False, "reason": run.reason})
    _write(pa.Table.from_pylist(rows, _RUNS), path)


def write_results(
    tested: Sequence[tuple[Run, Assessment]], slides: Sequence[Assignment], task: Task, path: Path
) -> None:
    """Writes results.parquet: one row a tested run, with the metrics of bags and of slides."""
    sizes = {"n_slides": len(slides), "n_cases": len({s.case_id for s in slides})}
    rows = [
        {
            **_fields(run, run.best),
            "val_loss": run.val_loss,
            "task": task.name,
            "n_bags": len(a.slide),
            **sizes,
            **a.metrics,
        }
        for run, a in tested
    ]
    counts = [(name, pa.int32()) for name in ("n_bags", "n_slides", "n_cases")]
    metrics = [(name, pa.int32() if "_n_" in name else pa.float64()) for name in tested[0][1].metrics]
    schema = pa.schema([*_RUN, ("val_loss", pa.float64()), ("task", pa.string()), *counts, *metrics])
    _write(pa.Table.from_pylist(rows, schema), path)


def write_predictions(tested: Sequence[tuple[Run, Assessment]], slides: Sequence[Assignment], path: Path) -> None:
    """Writes predictions.parquet: one row a test bag of a tested run, `p_0` being the probability of class 0."""
    parts = [_predictions(run, a, slides) for run, a in tested]
    _write(pa.concat_tables(parts), path)


def _predictions(run: Run, a: Assessment, slides: Sequence[Assignment]) -> pa.Table:
    n = len(a.slide)
    columns: dict[str, Any] = {
        "run_id": pa.array([run.run_id] * n),
        "embedder": pa.array([run.embedder] * n),
        "fold": pa.array(np.full(n, run.fold, np.int32)),
        "slide_id": pa.array([slides[i].slide_id for i in a.slide]),
        "case_id": pa.array([slides[i].case_id for i in a.slide]),
        "bag": pa.array(np.arange(n, dtype=np.int32)),
        "label": pa.array(np.array([slides[i].label for i in a.slide], np.int32)),
    }
    return pa.table({**columns, **{f"p_{c}": p for c, p in enumerate(a.probabilities.T)}})


def _fields(run: Run, epoch: int | None) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "space_key": run.space_key,
        "embedder": run.embedder,
        "fold": run.fold,
        "seed": run.seed,
        "learning_rate": run.configuration.learning_rate,
        "weight_decay": run.configuration.weight_decay,
        "epoch": epoch,
    }


def _write(table: pa.Table, path: Path) -> None:
    partial = path.with_name(f".{path.name}")
    pq.write_table(table, partial)
    partial.replace(path)
