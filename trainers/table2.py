"""The paper's Table 2, and every metric of it with what the paper leaves out.

Bag-level numbers follow the paper (2,500 bags of few slides count as 2,500) and are labelled so; beside each stands the
slide-level number. Intervals are `fold_ci95`, the paper's equation 3. Seeds of the untrained embedder are averaged
within a fold first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainers.cases import CaseLevel
from trainers.findings import Findings
from trainers.metrics import MACRO, fold_ci95
from trainers.overlap import gravest
from trainers.results import Row, group, mean_val_loss, selected_runs
from trainers.tasks import Task

LEVELS = {"bag": "paper protocol", "slide": "slide level"}
CI_CAPTION = "± is fold_ci95 (1.96 SD / √K): spread over training folds, not over patients"
ORDINAL = ("accuracy", "balanced_accuracy", "quadratic_kappa", "mae", "expected_score_mae")


def table2_rows(results: Iterable[Row], cases: Mapping[str, CaseLevel] | None = None) -> list[dict[str, Any]]:
    """The paper's Table 2, a row an embedder and level, best mean bag-level AUC first.

    Args:
        results: the tested runs.
        cases: what each embedder says of the test cases; its macro AUC goes into every row of the embedder.

    `<metric>` is the mean over folds and `<metric>_ci95` its half-width, fold_ci95; `<metric>_class_ci95` is the mean
    of the half-widths of the classes, another reading of the paper's "across the 4 classes". A number is
    None where it is undefined, and where the folds do not hold the same classes.
    """
    rows = [
        _table2_row(embedder, level, runs) | (_case_columns(cases[embedder]) if cases else {})
        for embedder, runs in selected_runs(results).items()
        for level in LEVELS
    ]
    auc = {row["embedder"]: row["auc"] for row in rows if row["level"] == "bag"}
    return sorted(rows, key=lambda row: math.inf if auc[row["embedder"]] is None else -auc[row["embedder"]])


def metric_rows(found: Findings) -> list[dict[str, Any]]:
    """Every metric of every embedder, a row each: the paper's protocol, and beside it what its cases support.

    `class` is empty for metrics of all classes together; the cases are those of the class, or else all.
    """
    return [
        _metric_row(found, embedder, runs, metric, of_class)
        for embedder, runs in found.selected.items()
        for metric, of_class in _metrics(found.task)
    ]


def nested_rows(found: Findings) -> list[dict[str, Any]]:
    """The headline, a row an embedder: every metric over all cases, pooled over the outer folds.

    Empty where a seed of the embedder was not tested on every outer fold: fewer cases would not be comparable.
    """
    names = [metric for metric, of_class in _metrics(found.task) if of_class is None]
    rows: list[dict[str, Any]] = []
    for embedder in found.embedders:
        level = found.nested.get(embedder)
        row: dict[str, Any] = {
            "embedder": embedder,
            "outer_folds": found.outer_folds,
            "n_cases": level and len(level.cases.ids),
            "cases_per_class": level and level.cases.named(),
            "reliable": level and level.reliable,
            "fraction": found.fraction,
            "n_left_out": found.left_out,
            "embedder_overlap": found.overlap(embedder, nested=True),
        }
        for name in names:
            empty = dict.fromkeys((name, f"{name}_low", f"{name}_high", f"chance_{name}_low", f"chance_{name}_high"))
            row |= level.columns(name, prefix="") if level else empty
        rows.append(row)
    return rows


def by_fold(runs: Sequence[Row], key: str) -> list[float | None]:
    """A metric of each fold, averaged over its seeds first."""
    values: list[float | None] = []
    for _, own in group(runs, "fold"):
        known = [run[key] for run in own if run[key] is not None]
        values.append(math.fsum(known) / len(known) if len(known) == len(own) else None)
    return values


def _table2_row(embedder: str, level: str, runs: Sequence[Row]) -> dict[str, Any]:
    row: dict[str, Any] = {"embedder": embedder, "level": level, "protocol": LEVELS[level]}
    comparable = _comparable(runs, level)
    for metric in (*MACRO, "accuracy", "balanced_accuracy"):
        mean, half = (
            fold_ci95(by_fold(runs, f"{level}_{metric}")) if comparable or metric == "accuracy" else (None,) * 2
        )
        row |= {metric: mean, f"{metric}_ci95": half}
    row |= {f"{metric}_class_ci95": _mean_class_ci95(runs, f"{level}_{metric}") for metric in MACRO}
    first = runs[0]
    return row | {
        "n_folds": len({run["fold"] for run in runs}),
        "n_seeds": len({run["embedder_seed"] for run in runs}),
        "n_classes": first[f"{level}_n_classes"] if comparable else None,
        **{key: first[key] for key in ("n_cases", "n_slides", "n_bags", "learning_rate", "weight_decay")},
        "val_loss": mean_val_loss(runs),
        "fraction": first.get("fraction", 1.0),
        "n_left_out": first.get("n_left_out", 0),
        "embedder_overlap": gravest(run.get("embedder_overlap", "") for run in runs),
    }


def _case_columns(level: CaseLevel) -> dict[str, Any]:
    of_auc = level.columns("auc")
    return {
        **{key: of_auc[key] for key in ("case_auc", "case_auc_low", "case_auc_high")},
        "case_auc_reliable": level.reliable,
        **{key: of_auc[key] for key in ("chance_auc_low", "chance_auc_high")},
        "cases_per_class": level.cases.named(),
    }


def _metrics(task: Task) -> list[tuple[str, int | None]]:
    """Names of all metrics, and the class of those that are of one."""
    every = range(len(task.classes))
    named: list[tuple[str, int | None]] = [(metric, None) for metric in (*MACRO, *ORDINAL)]
    named += [(f"auc_ge_{c}", None) for c in every[1:]]
    return named + [(f"{metric}_{c}", c) for metric in MACRO for c in every]


def _metric_row(
    found: Findings, embedder: str, runs: Sequence[Row], metric: str, of_class: int | None
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "embedder": embedder,
        "metric": metric if of_class is None else metric.removesuffix(f"_{of_class}"),
        "class": None if of_class is None else found.task.classes[of_class],
        "embedder_overlap": found.overlap(embedder),
    }
    for level, name in LEVELS.items():
        mixed = metric in {*MACRO, "balanced_accuracy"} and not _comparable(runs, level)
        mean, half = (None, None) if mixed else fold_ci95(by_fold(runs, f"{level}_{metric}"))
        key = name.replace(" ", "_")
        row |= {key: mean, f"{key}_ci95": half}
    row |= _ranges("case_level", found.fixed[embedder], metric, of_class)
    return row | (_ranges("nested", found.nested.get(embedder), metric, of_class) if found.outer_folds else {})


def _ranges(name: str, level: CaseLevel | None, metric: str, of_class: int | None) -> dict[str, Any]:
    """A metric over cases, with its ranges and how many cases it rests on."""
    keys = (name, f"{name}_low", f"{name}_high", f"{name}_chance_low", f"{name}_chance_high")
    if level is None:
        return dict.fromkeys((*keys, f"{name}_cases", f"{name}_cases_per_class", f"{name}_reliable"))
    n = len(level.cases.ids) if of_class is None else level.cases.per_class[of_class]
    values = level.columns(metric).values()
    cases = {f"{name}_cases": n, f"{name}_cases_per_class": level.cases.named(), f"{name}_reliable": level.reliable}
    return dict(zip(keys, values, strict=True)) | cases


def _comparable(runs: Sequence[Row], level: str) -> bool:
    """Whether the folds hold the same classes, without which macro means do not compare."""
    present = [{key for key in run if key.startswith(f"{level}_recall_") and run[key] is not None} for run in runs]
    return all(classes == present[0] for classes in present)


def _mean_class_ci95(runs: Sequence[Row], key: str) -> float | None:
    """Mean over classes of the half-widths, over the classes that have one."""
    classes = itertools.takewhile(lambda c: f"{key}_{c}" in runs[0], itertools.count())
    halves = [fold_ci95(by_fold(runs, f"{key}_{c}"))[1] for c in classes]
    known = [half for half in halves if half is not None]
    return math.fsum(known) / len(known) if known else None
