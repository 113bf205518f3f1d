"""What a sweep found, from its files alone: selected runs, their cases, and how embedders compare."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from trainers.cases import CaseLevel, Cases, case_level, pool_cases
from trainers.comparison import Comparison, compare
from trainers.results import Row, read_csv, read_results, selected_predictions, selected_runs
from trainers.tasks import Task, find_task

NESTED, FIXED = "nested cross-validation", "fixed test set"
"""Which cases a number rests on."""


@dataclass(frozen=True)
class Findings:
    """Everything that tables and pictures show.

    Attributes:
        task: gives the classes.
        results: rows of results.parquet.
        selected: embedder -> its selected runs on the fixed test set, by least mean validation loss.
        predictions: rows of predictions.parquet of all selected runs.
        fixed: embedder -> the cases of the fixed test set.
        nested: embedder -> all cases, each predicted by models that have not seen it; the headline. Only embedders
            that were tested on every outer fold.
        outer_folds: of the nested cross-validation; 0 where there is none.
        comparisons: of embedders, on the cases of the headline, or of the fixed test set where there is none.
    """

    task: Task
    results: list[dict[str, object]]
    selected: dict[str, list[Row]]
    predictions: pa.Table
    fixed: dict[str, CaseLevel]
    nested: dict[str, CaseLevel]
    outer_folds: int
    comparisons: list[Comparison]

    @property
    def compared_on(self) -> str:
        """Which cases the comparisons rest on."""
        return NESTED if self.outer_folds else FIXED

    @property
    def embedders(self) -> list[str]:
        """All that were tested: as the headline ranks them, or else by mean bag-level AUC; undefined ones last."""
        means = {e: _mean([run["bag_auc"] for run in runs]) for e, runs in self.selected.items()}
        headline = {e: level.values["auc"] for e, level in self.nested.items()}
        names = dict.fromkeys([*self.selected, *(str(row["embedder"]) for row in self.results)])
        best = sorted(names, key=lambda e: -(means.get(e) or -1.0))
        return sorted(best, key=lambda e: -(headline.get(e) or -1.0)) if self.nested else best

    def test_set(self) -> str:
        """How many cases the fixed test set has, in all and a class."""
        rows = self.predictions.select(["case_id", "label", "outer"])
        distinct = rows.group_by(["case_id", "label", "outer"]).aggregate([]).to_pylist()
        labels = {row["case_id"]: row["label"] for row in distinct if row["outer"] is None}
        n = Counter(labels.values())
        by_class = "; ".join(f"{name}: {n[c]}" for c, name in enumerate(self.task.classes))
        return f"Fixed test set: {len(labels)} cases ({by_class})"

    def of(self, embedder: str) -> pa.Table:
        """Predictions of an embedder's selected runs on the fixed test set."""
        wanted = [run["run_id"] for run in self.selected[embedder]]
        return self.predictions.filter(pc.is_in(self.predictions["run_id"], pa.array(wanted)))  # pyright: ignore[reportAttributeAccessIssue]


def find(sweep_dir: Path) -> Findings:
    """Reads a sweep.

    Raises:
        SweepError: no run has been tested, or a file is missing or damaged.
    """
    results = read_results(sweep_dir)
    task = find_task(results[0]["task"])
    predictions = selected_predictions(sweep_dir)
    outer_folds = len({row["outer"] for row in read_csv(sweep_dir, "nested_splits.csv")})
    fixed: dict[str, Cases] = {}
    nested: dict[str, Cases] = {}
    for embedder in dict.fromkeys(predictions["embedder"].to_pylist()):
        own = predictions.filter(pc.equal(predictions["embedder"], embedder))  # pyright: ignore[reportAttributeAccessIssue]
        is_fixed = pc.is_null(own["outer"])  # pyright: ignore[reportAttributeAccessIssue]
        on_fixed, on_outer = own.filter(is_fixed), own.filter(pc.invert(is_fixed))  # pyright: ignore[reportAttributeAccessIssue]
        if len(on_fixed):
            fixed[embedder] = pool_cases(on_fixed, len(task.classes))
        if outer_folds and len(on_outer["outer"].unique()) == outer_folds:
            nested[embedder] = pool_cases(on_outer, len(task.classes))
    return Findings(
        task=task,
        results=results,
        selected=selected_runs(results),
        predictions=predictions,
        fixed={embedder: case_level(cases) for embedder, cases in fixed.items()},
        nested={embedder: case_level(cases) for embedder, cases in nested.items()},
        outer_folds=outer_folds,
        comparisons=compare(nested if outer_folds else fixed),
    )


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
