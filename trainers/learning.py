"""Learning curves of a sweep: how the losses of the selected configuration ran, with those of all others behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from trainers.palette import COLOURS, panels
from trainers.results import Row, group

_TRAIN, _VAL = COLOURS[2], COLOURS[1]
_HEADROOM = 0.35
"""How much of the height is left above the curves of the selected configuration, for others that ran away."""


def draw_learning_curves(embedders: Mapping[str, Sequence[Row]], *, caption: str, out: Path) -> None:
    """Writes a PNG with a panel an embedder.

    Args:
        embedders: name -> the rows of runs.parquet of one round.
        caption: of the figure.
        out: the file to write.
    """
    figure, axes = panels(len(embedders), 3.6, 2.7, share=False)
    for panel, (embedder, rows) in zip(axes, embedders.items(), strict=True):
        _draw_panel(panel, [row for row in rows if not row["reason"]])
        panel.set_title(embedder, fontsize=10, parse_math=False)
        panel.set_xlabel("epoch", fontsize=8)
        panel.set_ylabel("cross-entropy a bag", fontsize=8)
    handles: list[Any] = [
        Line2D([], [], color=_VAL, label="validation, selected configuration, a line a run"),
        Line2D([], [], color=_TRAIN, linestyle=(0, (4, 1.5)), label="training, the same"),
        Line2D([], [], color=_VAL, marker="o", linestyle="", markersize=4, label="epoch that was kept"),
        Line2D([], [], color="0.8", label="validation, other configurations"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.suptitle(caption, fontsize=8, parse_math=False)
    figure.savefig(out, format="png")


def _draw_panel(axes: Axes, rows: Sequence[Row]) -> None:
    low, high = np.inf, -np.inf
    for (is_selected, _), run in group(rows, "selected", "run_id"):
        epochs, val = _column(run, "epoch") + 1, _column(run, "val_loss")
        if not is_selected:
            axes.plot(epochs, val, color="0.8", linewidth=0.5, zorder=1)
            continue
        train = _column(run, "train_loss")
        axes.plot(epochs, train, color=_TRAIN, linewidth=0.9, linestyle=(0, (4, 1.5)), zorder=2)
        axes.plot(epochs, val, color=_VAL, linewidth=1.1, zorder=3)
        best = [k for k, row in enumerate(run) if row["best"]]
        axes.plot(epochs[best], val[best], "o", color=_VAL, markersize=4, markeredgecolor="white", zorder=4)
        low, high = min(low, val.min(), train.min()), max(high, val.max(), train.max())
    if low < high:
        axes.set_ylim(low - 0.05 * (high - low), high + _HEADROOM * (high - low))
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.93", linewidth=0.6)


def _column(run: Sequence[Row], name: str) -> NDArray[np.float64]:
    return np.array([row[name] for row in run], np.float64)
