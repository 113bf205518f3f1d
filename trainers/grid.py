"""Mean validation loss over the hyperparameters: a heatmap of a grid, a scatter of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter

from trainers.palette import MAP, ink, panels
from trainers.results import Row

_MARK = "#D55E00"
_LARGEST_GRID = 12
"""Rates of a grid along one axis; more are drawn as a scatter, for their numbers would not be readable."""


def axes_of(embedders: Mapping[str, Sequence[Row]]) -> tuple[list[float], list[float]]:
    """Learning rates and weight decays of a grid, the largest first; none where the configurations are no grid, or one
    too large to be read."""
    rows = [row for own in embedders.values() for row in own]
    rates, decays = (sorted({row[key] for row in rows}, reverse=True) for key in ("learning_rate", "weight_decay"))
    is_grid = max(len(rates), len(decays)) <= _LARGEST_GRID and all(
        len(own) == len(rates) * len(decays) for own in embedders.values()
    )
    return (rates, decays) if is_grid else ([], [])


def draw_grid(embedders: Mapping[str, Sequence[Row]], *, caption: str, out: Path) -> None:
    """Writes a PNG with a panel an embedder; the selected configuration is marked.

    Args:
        embedders: name -> the rows of selection.csv of one round, numbers as numbers.
        caption: of the figure.
        out: the file to write.
    """
    rates, decays = axes_of(embedders)
    is_grid = bool(rates)
    width = max(3.4, 0.55 * len(decays) + 1.0) if is_grid else 3.6
    figure, axes = panels(len(embedders), width, max(2.2, 0.42 * len(rates) + 0.9) if is_grid else 3.0)
    for panel, (embedder, own) in zip(axes, embedders.items(), strict=True):
        if is_grid:
            _draw_heatmap(panel, own, rates, decays)
        else:
            shown = _draw_scatter(panel, own)
            figure.colorbar(shown, ax=panel, shrink=0.8).ax.tick_params(labelsize=7)
        panel.set_title(embedder, fontsize=10, parse_math=False)
        panel.label_outer() if is_grid else None
    figure.suptitle(caption, fontsize=8, parse_math=False)
    figure.savefig(out, format="png")


def _draw_heatmap(axes: Axes, rows: Sequence[Row], rates: Sequence[float], decays: Sequence[float]) -> None:
    loss = np.full((len(rates), len(decays)), np.nan)
    for row in rows:
        if row["val_loss"] is not None:
            loss[rates.index(row["learning_rate"]), decays.index(row["weight_decay"])] = row["val_loss"]
    low, high = limits(rows)
    axes.imshow(
        loss, cmap=f"{MAP}_r", vmin=low, vmax=high, aspect="auto", interpolation="nearest"
    )  # the darker, the better
    for (i, j), value in np.ndenumerate(loss):
        text = "failed" if np.isnan(value) else f"{value:.3f}"
        colour = "black" if np.isnan(value) else ink((high - value) / (high - low))
        axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
    for row in rows:
        if row["selected"]:
            corner = (decays.index(row["weight_decay"]) - 0.5, rates.index(row["learning_rate"]) - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=_MARK, linewidth=2.5, clip_on=False))
    axes.set_xticks(range(len(decays)), [short(x) for x in decays], fontsize=7)
    axes.set_yticks(range(len(rates)), [short(x) for x in rates], fontsize=7)
    axes.set_xlabel("weight decay", fontsize=8)
    axes.set_ylabel("learning rate", fontsize=8)
    axes.tick_params(length=0)


def _draw_scatter(axes: Axes, rows: Sequence[Row]) -> Any:
    known = [row for row in rows if row["val_loss"] is not None]
    failed = [row for row in rows if row["val_loss"] is None]
    x, y = ([row[key] for row in known] for key in ("weight_decay", "learning_rate"))
    low, high = limits(rows)
    shown = axes.scatter(
        x,
        y,
        c=[r["val_loss"] for r in known],
        cmap=f"{MAP}_r",
        vmin=low,
        vmax=high,
        s=40,
        zorder=2,
        edgecolors="0.4",
        linewidths=0.4,
    )
    axes.plot([r["weight_decay"] for r in failed], [r["learning_rate"] for r in failed], "x", color="0.4", markersize=5)
    for row in known:
        if row["selected"]:
            place = (row["weight_decay"], row["learning_rate"])
            axes.plot(*place, "o", markersize=11, markerfacecolor="none", markeredgecolor=_MARK, markeredgewidth=2)
            behind = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
            text = f"{row['val_loss']:.3f}"
            axes.annotate(text, place, (9, -3), textcoords="offset points", fontsize=8, bbox=behind, zorder=3)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("weight decay", fontsize=8)
    axes.set_ylabel("learning rate", fontsize=8)
    axes.tick_params(labelsize=7)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.93", linewidth=0.6)
    return shown


def short(value: float) -> str:
    """`1e-5`, as experiment files have it; 0.003 stays as it is."""
    text = f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return text if float(text) == value and value < 1e-2 else f"{value:g}"


def limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Of the colours: the worst tenth is cut off, lest one run that went astray leaves no contrast to the others."""
    losses = [row["val_loss"] for row in rows if row["val_loss"] is not None]
    if not losses:
        return 0.0, 1.0
    low, high = min(losses), float(np.percentile(losses, 90, method="lower"))
    return low, high if high > low else low + 1e-3
