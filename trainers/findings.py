"""What a sweep found, from its files alone: selected runs, their cases, and how embedders compare."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trainers.cases import CaseLevel, Cases, case_level, pool_cases
from trainers.comparison import Comparison, compare
from trainers.overlap import Overlap, gravest, sentence
from trainers.results import Row, read_csv, read_results, read_table, selected_predictions, selected_runs
from trainers.tasks import Task, find_task

NESTED, FIXED = "nested cross-validation", "fixed test set"
"""Which cases a number rests on."""

Place = tuple[int, int]
"""Seed of an embedder, outer fold."""


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
            of which every seed was tested on every outer fold: fewer cases would not be comparable.
        outer_folds: of the nested cross-validation; 0 where there is none.
        without_headline: embedder -> why it is not in `nested`, where others may be.
        comparisons: of embedders, on the cases of the headline, or of the fixed test set where there is none.
    """

    task: Task
    results: list[dict[str, Any]]
    selected: dict[str, list[Row]]
    predictions: pa.Table
    fixed: dict[str, CaseLevel]
    nested: dict[str, CaseLevel]
    outer_folds: int
    without_headline: dict[str, str]
    comparisons: list[Comparison]

    @property
    def fraction(self) -> float:
        """Share of each slide's patches that was used; files of an earlier version do not say it, and used all."""
        return self.results[0].get("fraction", 1.0)

    @property
    def left_out(self) -> int:
        """Slides of the cohort that took no part."""
        return self.results[0].get("n_left_out", 0)

    @property
    def notes(self) -> list[str]:
        """What a reader must know before any number: sentences."""
        notes: list[str] = []
        if self.fraction < 1:
            share = f"{100 * self.fraction:.4g} %"
            notes.append(f"A screening: only {share} of each slide's patches took part, in tests as well.")
        if self.left_out:
            slides = "slide" if self.left_out == 1 else "slides"
            notes.append(f"{self.left_out} {slides} of the cohort took no part (environment.json says why).")
        seen = {
            embedder: gravest(self.overlap(embedder, nested=n) for n in (False, True)) for embedder in self.embedders
        }
        return notes + [sentence(embedder, found) for embedder, found in seen.items() if found]

    def overlap(self, embedder: str, *, nested: bool = False) -> Overlap:
        """Which cases' labels the embedder's weights have seen, of the fixed test set's models or the nested ones."""
        return gravest(
            run.get("embedder_overlap", "")  # sweeps of an earlier version have no such column
            for run in self.results
            if run["embedder"] == embedder and (run["outer"] is not None) == nested
        )

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
    asked, trained = _asked(sweep_dir, outer_folds), _trained(sweep_dir, outer_folds)
    fixed: dict[str, Cases] = {}
    nested: dict[str, Cases] = {}
    for embedder in dict.fromkeys(predictions["embedder"].to_pylist()):
        own = predictions.filter(pc.equal(predictions["embedder"], embedder))  # pyright: ignore[reportAttributeAccessIssue]
        is_fixed = pc.is_null(own["outer"])  # pyright: ignore[reportAttributeAccessIssue]
        on_fixed, on_outer = own.filter(is_fixed), own.filter(pc.invert(is_fixed))  # pyright: ignore[reportAttributeAccessIssue]
        if len(on_fixed):
            fixed[embedder] = pool_cases(on_fixed, len(task.classes))
        if outer_folds and _places(on_outer) >= asked[embedder]:
            nested[embedder] = pool_cases(on_outer, len(task.classes))
    return Findings(
        task=task,
        results=results,
        selected=selected_runs(results),
        predictions=predictions,
        fixed={embedder: case_level(cases) for embedder, cases in fixed.items()},
        nested={embedder: case_level(cases) for embedder, cases in nested.items()},
        outer_folds=outer_folds,
        without_headline={
            embedder: "a run on an outer fold is missing"
            if trained[embedder] >= places
            else "its weights have seen labels of cases that outer folds test, so it took no part in them"
            for embedder, places in asked.items()
            if embedder not in nested
        },
        comparisons=compare(nested if outer_folds else fixed),
    )


def _asked(sweep_dir: Path, outer_folds: int) -> dict[str, set[Place]]:
    """Embedder -> where it has to be tested for a headline: every seed on every outer fold, failed runs included."""
    if not outer_folds:
        return {}
    runs = read_table(sweep_dir, "runs.parquet", columns=["embedder", "embedder_seed"])
    asked: dict[str, set[Place]] = {}
    for run in runs.group_by(["embedder", "embedder_seed"]).aggregate([]).to_pylist():
        asked.setdefault(run["embedder"], set()).update((run["embedder_seed"], outer) for outer in range(outer_folds))
    return asked


def _trained(sweep_dir: Path, outer_folds: int) -> dict[str, set[Place]]:
    """Embedder -> where it was trained for a headline, well or not."""
    if not outer_folds:
        return {}
    runs = read_table(sweep_dir, "runs.parquet", columns=["embedder", "embedder_seed", "outer"])
    names = runs["embedder"].unique().to_pylist()
    return {name: _places(runs.filter(pc.equal(runs["embedder"], name))) for name in names}  # pyright: ignore[reportAttributeAccessIssue]


def _places(predictions: pa.Table) -> set[Place]:
    """Where predictions were made."""
    rows = predictions.group_by(["embedder_seed", "outer"]).aggregate([]).to_pylist()
    return {(row["embedder_seed"], row["outer"]) for row in rows}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
