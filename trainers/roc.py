"""ROC curves of a sweep, one class against the rest, as in the paper's figure 4, with their spread over folds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from trainers.findings import Findings
from trainers.metrics import fold_ci95
from trainers.palette import COLOURS, DPI

GRID = np.linspace(0, 1, 201)
"""False positive rates at which curves are averaged."""


@dataclass(frozen=True)
class Curve:
    """The ROC curve of one class of one run.

    Attributes:
        run_id, fold: of the run.
        label: the class that counts as positive.
        fpr, tpr, thresholds: false and true positive rates at falling thresholds, (points,) each; the
            first threshold is infinite.
        auc: area under the curve.
    """

    run_id: str
    fold: int
    label: int
    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    auc: float


@dataclass(frozen=True)
class Band:
    """The curves of one class over all folds, averaged at the false positive rates of `GRID`.

    Attributes:
        mean, low, high: true positive rates, (len(GRID),): their mean over folds, and the lowest and highest fold.
        auc, auc_ci95: mean over folds of the area, and its `fold_ci95`.
    """

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    auc: float | None
    auc_ci95: float | None


def roc_curves(run_id: str, fold: int, labels: ArrayLike, probabilities: ArrayLike) -> list[Curve]:
    """One-vs-rest curves of a run, none for a class without positives or without negatives.

    Args:
        run_id, fold: of the run.
        labels: true classes, integers (n,).
        probabilities: (n, classes).
    """
    y, p = np.asarray(labels), np.asarray(probabilities)
    curves: list[Curve] = []
    for c in range(p.shape[1]):
        positive = y == c
        if positive.any() and not positive.all():
            fpr, tpr, thresholds = roc_curve(positive, p[:, c])
            curves.append(Curve(run_id, fold, c, fpr, tpr, thresholds, float(roc_auc_score(positive, p[:, c]))))
    return curves


def embedder_curves(found: Findings) -> dict[str, list[Curve]]:
    """Embedder -> the curves of its selected runs on the test bags; without embedders whose runs failed there."""
    return {embedder: _curves(found, embedder) for embedder in found.embedders if embedder in found.selected}


def _curves(found: Findings, embedder: str) -> list[Curve]:
    predictions, classes = found.of(embedder), len(found.task.classes)
    run_ids, labels = predictions["run_id"].to_numpy(), predictions["label"].to_numpy()
    p = np.column_stack([predictions[f"p_{c}"].to_numpy() for c in range(classes)])  # (bags, classes)
    curves: list[Curve] = []
    for run in found.selected[embedder]:
        own = run_ids == run["run_id"]
        curves += roc_curves(run["run_id"], run["fold"], labels[own], p[own])
    return curves


def band(curves: Sequence[Curve]) -> Band:
    """Averages the curves of one class; the seeds of a fold first."""
    folds = sorted({curve.fold for curve in curves})
    own = [[curve for curve in curves if curve.fold == fold] for fold in folds]
    tpr = np.array([np.mean([at_grid(curve) for curve in seeds], axis=0) for seeds in own])  # (folds, points)
    auc, half = fold_ci95([float(np.mean([curve.auc for curve in seeds])) for seeds in own])
    return Band(tpr.mean(axis=0), tpr.min(axis=0), tpr.max(axis=0), auc, half)


def at_grid(curve: Curve) -> NDArray[np.float64]:
    """True positive rates at `GRID`, (len(GRID),)."""
    tpr = np.interp(GRID, curve.fpr, curve.tpr)
    tpr[0] = 0  # a curve may rise at 0; all of them start at the origin
    return tpr


def roc_rows(embedders: Mapping[str, Sequence[Curve]], classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of roc.csv: every point of every run, then mean, lowest and highest fold (`fold` empty) at `GRID`."""
    for embedder, curves in embedders.items():
        for curve in curves:
            of = _row(embedder, curve.run_id, curve.fold, classes, curve.label, curve.auc)
            for fpr, tpr, threshold in zip(curve.fpr, curve.tpr, curve.thresholds, strict=True):
                yield of | {"fpr": float(fpr), "tpr": float(tpr), "threshold": float(threshold)}
        for label in sorted({curve.label for curve in curves}):
            mean = band([curve for curve in curves if curve.label == label])
            of = _row(embedder, None, None, classes, label, mean.auc)
            for fpr, tpr, low, high in zip(GRID, mean.mean, mean.low, mean.high, strict=True):
                yield of | {"fpr": float(fpr), "tpr": float(tpr), "tpr_low": float(low), "tpr_high": float(high)}


def _row(
    embedder: str, run_id: str | None, fold: int | None, classes: Sequence[str], label: int, auc: float | None
) -> dict[str, Any]:
    of_run = {"embedder": embedder, "run_id": run_id, "fold": fold}
    points = dict.fromkeys(("fpr", "tpr", "threshold", "tpr_low", "tpr_high"))
    return {**of_run, "class": label, "class_name": classes[label], **points, "auc": auc}


def draw_roc(embedders: Mapping[str, Sequence[Curve]], classes: Sequence[str], *, caption: str, out: Path) -> None:
    """Writes a PNG: a row an embedder, a column a class.

    Args:
        embedders: name -> the curves of all its folds.
        classes: names of the classes.
        caption: what the curves rest on.
        out: the file to write.
    """
    rows, columns = len(embedders), len(classes)
    figure = Figure(figsize=(max(2.3 * columns + 0.4, 6.5), 2.3 * rows + 1.1), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    colours = COLOURS if columns > 2 else COLOURS[1::2]
    for line, (embedder, curves) in zip(axes, embedders.items(), strict=True):
        for c, panel in enumerate(line):
            _draw_panel(panel, [curve for curve in curves if curve.label == c], colours[c % len(colours)])
        line[0].set_ylabel(f"{embedder}\ntrue positive rate", fontsize=8, parse_math=False)
    for c, name in enumerate(classes):
        axes[0][c].set_title(f"{name} against the rest", fontsize=9, parse_math=False)
        axes[-1][c].set_xlabel("false positive rate", fontsize=8)
    figure.suptitle(caption, fontsize=8, parse_math=False)
    figure.savefig(out, format="png")


def _draw_panel(axes: Axes, curves: Sequence[Curve], colour: str) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    text = "undefined"
    if curves:
        over = band(curves)
        axes.fill_between(GRID, over.low, over.high, color=colour, alpha=0.25, linewidth=0)
        for curve in curves:
            axes.plot(curve.fpr, curve.tpr, color=colour, linewidth=0.5, alpha=0.6)
        axes.plot(GRID, over.mean, color="black", linewidth=1.4)
        text = f"AUC {over.auc:.2f}" + ("" if over.auc_ci95 is None else f" ± {over.auc_ci95:.2f}")
    axes.text(0.97, 0.05, text, ha="right", fontsize=8, transform=axes.transAxes)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    axes.tick_params(labelsize=7)
    axes.grid(color="0.92", linewidth=0.6)
