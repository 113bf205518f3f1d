"""What a sweep found, from its files alone: the paper's Table 2 and the ROC curves.

Bag-level numbers follow the paper (2,500 bags of few slides count as 2,500) and are labelled so; beside
each stands the slide-level number. Intervals are `fold_ci95`, the paper's equation 3.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.markup import escape
from rich.table import Table

from her2cache.errors import SweepError
from trainers.cases import CaseLevel, case_level
from trainers.metrics import MACRO, fold_ci95
from trainers.resampling import FEW_CASES
from trainers.roc import Curve, draw_roc, roc_curves
from trainers.tasks import find_task

Row = Mapping[str, Any]
LEVELS = {"bag": "paper protocol", "slide": "slide level"}
CI_CAPTION = "± is fold_ci95 (1.96 SD / √K): spread over training folds, not over patients"

_HEADINGS = {"precision": "Precision", "recall": "Recall", "f1": "F1 score", "auc": "AUC-ROC"}


def read_results(sweep_dir: Path) -> list[dict[str, Any]]:
    """The tested runs of a sweep, a row each.

    Raises:
        SweepError: no run has been tested.
    """
    rows = _read(sweep_dir, "results.parquet").to_pylist()
    if not rows:
        raise SweepError(
            f"{sweep_dir}/results.parquet is empty: every run of the sweep failed or was stopped; "
            "see the reasons in its runs, then run `her2cache sweep --resume`"
        )
    return rows


def slides_tested(sweep_dir: Path) -> list[str]:
    """Ids of the slides that the runs were tested on, sorted."""
    return sorted(set(_read(sweep_dir, "predictions.parquet", columns=["slide_id"])["slide_id"].to_pylist()))


def selected_runs(results: Iterable[Row]) -> dict[str, list[Row]]:
    """The runs of each embedder's selected configuration, by fold; embedders by mean validation loss.

    A configuration is selected by its mean, over folds, of the lowest validation loss; ties go to the
    larger weight decay, then to the smaller learning rate (science.md rule 2.8). One that lacks a fold,
    because a run failed, loses to one that does not. The test set takes no part in this.
    """
    selected: dict[str, list[Row]] = {}
    for (embedder,), runs in _group(results, "embedder"):
        configurations = [rows for _, rows in _group(runs, "learning_rate", "weight_decay")]
        chosen = min(configurations, key=_selection_order)
        selected[embedder] = sorted(chosen, key=lambda row: (row["fold"], row["seed"]))
    return dict(sorted(selected.items(), key=lambda item: mean_val_loss(item[1])))


def mean_val_loss(runs: Sequence[Row]) -> float:
    """Mean validation loss of the runs of a configuration."""
    return math.fsum(row["val_loss"] for row in runs) / len(runs)


def table2_rows(results: Iterable[Row], cases: Mapping[str, CaseLevel] | None = None) -> list[dict[str, Any]]:
    """The paper's Table 2, a row an embedder and level, best mean bag-level AUC first.

    Args:
        results: the tested runs.
        cases: what each embedder says of the test cases; its numbers go into every row of the embedder.

    `<metric>` is the mean over folds and `<metric>_ci95` its half-width; `<metric>_class_ci95` is the mean
    of the half-widths of the classes, another reading of the paper's "across the 4 classes". A number is
    None where it is undefined, and where the folds do not hold the same classes.
    """
    selected = selected_runs(results)
    rows: list[dict[str, Any]] = [
        _table2_row(embedder, level, runs) | (cases[embedder].columns() if cases else {})
        for embedder, runs in selected.items()
        for level in LEVELS
    ]
    auc = {row["embedder"]: row["auc"] for row in rows if row["level"] == "bag"}
    return sorted(rows, key=lambda row: math.inf if auc[row["embedder"]] is None else -auc[row["embedder"]])


def _table2_row(embedder: str, level: str, runs: Sequence[Row]) -> dict[str, Any]:
    row: dict[str, Any] = {"embedder": embedder, "level": level, "protocol": LEVELS[level]}
    same_classes = all(_classes_of(run, level) == _classes_of(runs[0], level) for run in runs)
    for metric in (*MACRO, "accuracy", "balanced_accuracy"):
        comparable = same_classes or metric == "accuracy"
        mean, half = fold_ci95(_by_fold(runs, f"{level}_{metric}")) if comparable else (None, None)
        row |= {metric: mean, f"{metric}_ci95": half}
    row |= {f"{metric}_class_ci95": _mean_class_ci95(runs, f"{level}_{metric}") for metric in MACRO}
    first = runs[0]
    return row | {
        "n_folds": len({run["fold"] for run in runs}),
        "n_classes": first[f"{level}_n_classes"] if same_classes else None,
        **{key: first[key] for key in ("n_cases", "n_slides", "n_bags", "learning_rate", "weight_decay")},
        "val_loss": mean_val_loss(runs),
    }


def table(sweep_dir: Path) -> Table:
    """Table 2 for the terminal, in the paper's form `0.622 ± 0.027`."""
    results = read_results(sweep_dir)
    classes = find_task(results[0]["task"]).classes
    cases = _cases(sweep_dir, selected_runs(results), len(classes))
    rows = table2_rows(results, cases)
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    shown.add_column("Patch embedder", overflow="fold")
    for metric in MACRO:
        shown.add_column(_HEADINGS[metric], justify="right", no_wrap=True)
    for level, meaning in LEVELS.items():
        shown.add_row(f"[italic]{meaning}")
        for row in rows:
            if row["level"] == level:
                cells = (_mean_and_half(row[metric], row[f"{metric}_ci95"]) for metric in MACRO)
                shown.add_row(f" {escape(row['embedder'])}", *cells)
        shown.add_section()
    shown.add_row("[italic]case level")
    for embedder in dict.fromkeys(row["embedder"] for row in rows):
        shown.add_row(f" {escape(embedder)}", "", "", "", _with_range(cases[embedder]))
    shown.caption = (
        f"\nPaper protocol: every bag of a test slide counts; slide level: one prediction a slide.\n{CI_CAPTION}.\n"
        "Case level: the folds' models together, and the 95 % bootstrap of cases within their class"
        f"{_caveat(cases.values())}.\n{_baselines(sweep_dir)}{_chance(cases.values())}{_test_set(sweep_dir, classes)}."
    )
    shown.caption_justify = "left"
    return shown


def write_report(sweep_dir: Path) -> dict[str, Path]:
    """Writes `table2.csv`, `roc.csv` and `roc.png` into a sweep directory from its Parquet files.

    Returns:
        What was written: name -> file.

    Raises:
        SweepError: the sweep has no tested run, or a file is missing.
    """
    results = read_results(sweep_dir)
    selected = selected_runs(results)
    classes = find_task(results[0]["task"]).classes
    rows = table2_rows(results, _cases(sweep_dir, selected, len(classes)))
    ranked = list(dict.fromkeys(row["embedder"] for row in rows))
    curves = {embedder: _curves(sweep_dir, selected[embedder], len(classes)) for embedder in ranked}
    # one model, as the paper's figure 4; the test set has no say in which
    marked = {embedder: min(runs, key=lambda run: run["val_loss"])["run_id"] for embedder, runs in selected.items()}

    written = {name: sweep_dir / name for name in ("table2.csv", "roc.csv", "roc.png")}
    write_csv(written["table2.csv"], rows)
    write_csv(written["roc.csv"], _roc_rows(curves, marked, classes))
    caption = (
        f"Bag level (paper protocol). {_test_set(sweep_dir, classes)}.\n"
        "Thick: the fold of lowest validation loss; thin: the other folds. In brackets: mean ± fold_ci95 over folds,\n"
        "the spread over training folds, not over patients."
    )
    draw_roc(curves, marked, classes, caption=caption, out=written["roc.png"])
    return written


def _cases(sweep_dir: Path, selected: Mapping[str, Sequence[Row]], classes: int) -> dict[str, CaseLevel]:
    predictions = _read(sweep_dir, "predictions.parquet")
    return {e: case_level(predictions, [run["run_id"] for run in runs], classes) for e, runs in selected.items()}


def _baselines(sweep_dir: Path) -> str:
    """A sentence on the baselines; none where the sweep has no file of them."""
    path = sweep_dir / "baselines.csv"
    if not path.exists():
        return ""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    parts: list[str] = []
    for (name,), own in _group(rows, "baseline"):
        aucs = [f"{float(r['test_auc']):.2f}" if r["test_auc"] else "undefined" for r in own]
        whose = [f"{auc} ({escape(r['embedder'])})" if r["embedder"] else auc for auc, r in zip(aucs, own, strict=True)]
        parts.append(f"{name} {', '.join(whose)}")
    return f"Baselines, case-level AUC by logistic regression: {'; '.join(parts)}.\n"


def _with_range(case: CaseLevel) -> str:
    if case.auc is None or case.bootstrap is None:
        return "undefined"
    return f"{case.auc:.2f} {case.bootstrap.low:.2f}–{case.bootstrap.high:.2f}"


def _caveat(cases: Iterable[CaseLevel]) -> str:
    few = any(case.bootstrap is not None and not case.bootstrap.reliable for case in cases)
    return f", unreliable under {FEW_CASES} cases a class as here" if few else ""


def _chance(cases: Iterable[CaseLevel]) -> str:
    ranges = [case.chance for case in cases if case.chance is not None]
    if not ranges:
        return ""
    low, high = min(r.low for r in ranges), max(r.high for r in ranges)
    return f"With this many cases chance alone reaches an AUC from {low:.2f} to {high:.2f} (labels permuted).\n"


def _read(sweep_dir: Path, name: str, **options: Any) -> pa.Table:
    path = sweep_dir / name
    try:
        return pq.read_table(path, **options)
    except FileNotFoundError as error:
        raise SweepError(
            f"{path} does not exist: this is no sweep directory, or no run of it has been tested yet; "
            "give the --out of `her2cache sweep`, or finish it with --resume"
        ) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise SweepError(f"{path} cannot be read ({error}); write it anew with `her2cache sweep --resume`") from error


def _curves(sweep_dir: Path, runs: Sequence[Row], classes: int) -> list[Curve]:
    wanted = [run["run_id"] for run in runs]
    predictions = _read(sweep_dir, "predictions.parquet", filters=[("run_id", "in", wanted)])
    run_ids = predictions["run_id"].to_numpy()
    labels = predictions["label"].to_numpy()
    p = np.column_stack([predictions[f"p_{c}"].to_numpy() for c in range(classes)])  # (rows, classes)
    curves: list[Curve] = []
    for run in runs:
        own = run_ids == run["run_id"]
        curves += roc_curves(run["run_id"], run["fold"], labels[own], p[own])
    return curves


def _roc_rows(
    curves: Mapping[str, Sequence[Curve]], marked: Mapping[str, str], classes: Sequence[str]
) -> Iterable[dict[str, Any]]:
    for embedder, own in curves.items():
        for curve in own:
            for fpr, tpr, threshold in zip(curve.fpr, curve.tpr, curve.thresholds, strict=True):
                yield {
                    "embedder": embedder,
                    "run_id": curve.run_id,
                    "fold": curve.fold,
                    "marked": int(curve.run_id == marked[embedder]),
                    "class": curve.label,
                    "class_name": classes[curve.label],
                    "fpr": float(fpr),
                    "tpr": float(tpr),
                    "threshold": float(threshold),
                    "auc": curve.auc,
                }


def _test_set(sweep_dir: Path, classes: Sequence[str]) -> str:
    """How many cases everything rests on, in all and a class."""
    predictions = _read(sweep_dir, "predictions.parquet", columns=["case_id", "label"])
    pairs = predictions.group_by(["case_id", "label"]).aggregate([])
    n = Counter(pairs["label"].to_pylist())
    by_class = "; ".join(f"{name}: {n[c]}" for c, name in enumerate(classes))
    return f"Test set: {len(set(pairs['case_id'].to_pylist()))} cases ({by_class})"


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows under the keys of the first; None becomes an empty cell."""
    rows = iter(rows)
    first = next(rows, {})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(first))
        writer.writeheader()
        writer.writerows(itertools.chain([first] if first else [], rows))


def _group(rows: Iterable[Row], *keys: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.items())


def _selection_order(runs: Sequence[Row]) -> tuple[int, float, float, float]:
    return -len(runs), mean_val_loss(runs), -runs[0]["weight_decay"], runs[0]["learning_rate"]


def _by_fold(runs: Sequence[Row], key: str) -> list[float | None]:
    """A metric of each fold, averaged over its seeds first."""
    values: list[float | None] = []
    for _, own in _group(runs, "fold"):
        known = [run[key] for run in own if run[key] is not None]
        values.append(math.fsum(known) / len(known) if len(known) == len(own) else None)
    return values


def _classes_of(run: Row, level: str) -> list[str]:
    return [key for key in run if key.startswith(f"{level}_recall_") and run[key] is not None]


def _mean_class_ci95(runs: Sequence[Row], key: str) -> float | None:
    """Mean over classes of the half-widths, over the classes that have one."""
    classes = itertools.takewhile(lambda c: f"{key}_{c}" in runs[0], itertools.count())
    halves = [fold_ci95(_by_fold(runs, f"{key}_{c}"))[1] for c in classes]
    known = [half for half in halves if half is not None]
    return math.fsum(known) / len(known) if known else None


def _mean_and_half(mean: float | None, half: float | None) -> str:
    if mean is None:
        return "undefined"
    return f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"
