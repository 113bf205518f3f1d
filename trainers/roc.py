"""ROC curves of a sweep, one class against the rest, as in the paper's figure 4."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from trainers.metrics import fold_ci95

COLOURS = ("#56B4E9", "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7")
"""Okabe and Ito's palette, safe for colour-blind readers: blue for the negative scores, warm for 2+ and 3+."""

STYLES = ("-", (0, (5, 1.5)), "-.", (0, (1.2, 1.2)), "-", "--")
"""A dash a class, so that the curves can be told apart without colour."""


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


def draw_roc(
    panels: Mapping[str, Sequence[Curve]],
    marked: Mapping[str, str],
    classes: Sequence[str],
    *,
    caption: str,
    out: Path,
) -> None:
    """Writes a PNG with a panel an embedder.

    Args:
        panels: embedder -> the curves of all its folds.
        marked: embedder -> id of the run drawn thick, the one model of the paper's figure 4.
        classes: names of the classes.
        caption: what the curves rest on.
        out: the file to write.
    """
    columns = len(panels) if len(panels) <= 3 else math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(4.3 * columns, 6.5), 4.5 * rows + 0.9), dpi=160, layout="compressed")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for panel, (embedder, curves) in zip(axes.flat, panels.items(), strict=False):
        _draw_panel(panel, curves, marked[embedder], classes)
        panel.set_title(embedder, fontsize=11, parse_math=False)
    for unused in axes.flat[len(panels) :]:
        unused.set_axis_off()
    for panel in axes[-1]:
        panel.set_xlabel("false positive rate")
    for panel in axes[:, 0]:
        panel.set_ylabel("true positive rate")
    figure.suptitle(caption, fontsize=8.5, parse_math=False)
    figure.savefig(out, format="png")


def _draw_panel(axes: Axes, curves: Sequence[Curve], marked: str, classes: Sequence[str]) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    colours = COLOURS if len(classes) > 2 else COLOURS[1::2]
    for c, name in enumerate(classes):
        own = [curve for curve in curves if curve.label == c]
        colour, style = colours[c % len(colours)], STYLES[c % len(STYLES)]
        text = f"{name}:  undefined"
        for curve in own:
            if curve.run_id == marked:
                mean, half = fold_ci95([each.auc for each in own])
                spread = f"{mean:.2f}" if half is None else f"{mean:.2f} ± {half:.2f}"
                text = f"{name}:  {curve.auc:.2f}  ({spread})"
                axes.plot(curve.fpr, curve.tpr, color=colour, linewidth=2, linestyle=style, zorder=3)
            else:
                axes.plot(curve.fpr, curve.tpr, color=colour, linewidth=0.7, alpha=0.6)
        axes.plot([], [], color=colour, linewidth=2, linestyle=style, label=text)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.grid(color="0.92", linewidth=0.6)
    axes.legend(loc="lower right", fontsize=8, title="AUC: thick (mean of folds)", title_fontsize=8)
