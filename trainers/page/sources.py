"""What the page of a sweep is made from: the sweep's own files, and the feature spaces of its store if it is there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from her2cache.errors import ConfigError, StoreError
from her2cache.store.reader import FeatureStore, SpaceInfo
from trainers.config import Experiment, read_experiment
from trainers.confusion import Confusion, confusions
from trainers.convergence import FILE as AUC_BY_BAGS
from trainers.findings import Findings
from trainers.pictures import losses, tried
from trainers.results import Row, read_csv, read_table
from trainers.roc import Curve, embedder_curves
from trainers.table1 import FILE as TABLE1
from trainers.table2 import table2_rows


@dataclass(frozen=True)
class Sources:
    """Everything that the page shows. What the sweep has no file of is empty.

    Attributes:
        folder: sweep directory.
        found: what the sweep found.
        environment: environment.json.
        experiment: its settings; None where experiment.toml is missing or of another version.
        experiment_text: experiment.toml as it was written.
        splits, table1, baselines, scores, case_scores, auc_by_bags, maps: rows of the CSV files.
        table2: rows of table2.csv, numbers as numbers.
        curves: embedder -> ROC curves of its selected runs.
        confusions: counts of every embedder and level.
        losses, tried: embedder -> rows of runs.parquet and of selection.csv, of the fixed test set's models.
        failed: rows of runs.parquet of the runs that failed, of every round.
        spaces: name -> feature space; none where the store is elsewhere now.
        synthetic: whether the cohort is a made-up one.
    """

    folder: Path
    found: Findings
    environment: Mapping[str, Any]
    experiment: Experiment | None
    experiment_text: str
    splits: Sequence[Row]
    table1: Sequence[Row]
    baselines: Sequence[Row]
    scores: Sequence[Row]
    case_scores: Sequence[Row]
    auc_by_bags: Sequence[Row]
    maps: Sequence[Row]
    table2: Sequence[Row]
    curves: Mapping[str, Sequence[Curve]]
    confusions: Sequence[Confusion]
    losses: Mapping[str, Sequence[Row]]
    tried: Mapping[str, Sequence[Row]]
    failed: Sequence[Row]
    spaces: Mapping[str, SpaceInfo]
    synthetic: bool

    @property
    def classes(self) -> tuple[str, ...]:
        """Display names of the task's classes."""
        return self.found.task.classes


def read_sources(folder: Path, found: Findings) -> Sources:
    """Reads the files of a sweep directory.

    Raises:
        SweepError: runs.parquet is missing or damaged.
    """
    environment = _environment(folder)
    maps = read_csv(folder / "heatmaps", "index.csv") if (folder / "heatmaps").is_dir() else []
    return Sources(
        folder=folder,
        found=found,
        environment=environment,
        experiment=_experiment(folder),
        experiment_text=_text(folder / "experiment.toml"),
        splits=read_csv(folder, "splits.csv"),
        table1=read_csv(folder, TABLE1),
        baselines=read_csv(folder, "baselines.csv"),
        scores=_ranked(read_csv(folder, "scores.csv"), found),
        case_scores=_ranked(read_csv(folder, "case_scores.csv"), found),
        auc_by_bags=_ranked(read_csv(folder, AUC_BY_BAGS), found),
        maps=maps,
        table2=table2_rows(found.results, found.fixed),
        curves=embedder_curves(found),
        confusions=confusions(found),
        losses=losses(folder, found),
        tried=tried(folder, found),
        failed=_failed(folder),
        spaces=_spaces(environment),
        synthetic=any(row.get("truth_auc") for row in maps) or _has_truth(environment),
    )


def _ranked(rows: list[dict[str, str]], found: Findings) -> list[dict[str, str]]:
    """Rows of several embedders in the order of the other tables, the best embedder first."""
    rank = {embedder: k for k, embedder in enumerate(found.embedders)}
    return sorted(rows, key=lambda row: rank.get(row["embedder"], len(rank)))


def _environment(folder: Path) -> dict[str, Any]:
    try:
        return json.loads(_text(folder / "environment.json") or "{}")
    except ValueError:
        return {}


def _experiment(folder: Path) -> Experiment | None:
    try:
        return read_experiment(folder / "experiment.toml")
    except ConfigError:
        return None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _failed(folder: Path) -> list[Row]:
    runs = read_table(folder, "runs.parquet")
    return runs.filter(pc.not_equal(runs["reason"], "")).to_pylist()  # pyright: ignore[reportAttributeAccessIssue]


def _spaces(environment: Mapping[str, Any]) -> dict[str, SpaceInfo]:
    try:
        spaces = {space.key: space for space in FeatureStore.open(environment["store"]).spaces()}
    except (KeyError, StoreError):
        return {}
    return {name: spaces[key] for name, key in environment.get("spaces", {}).items() if key in spaces}


def _has_truth(environment: Mapping[str, Any]) -> bool:
    """Whether the cohort lies beside truth maps, as only a synthetic one does (`her2cache.synthetic.cohort`)."""
    cohort = environment.get("cohort")
    return bool(cohort) and any((Path(cohort).parent / "truth").glob("*.npz"))
