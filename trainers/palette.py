"""Colours, dashes and figures that colour-blind readers can tell apart."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#56B4E9", "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7")
"""Okabe and Ito's palette: blue for the negative scores, warm for 2+ and 3+."""

STYLES = ("-", (0, (5, 1.5)), "-.", (0, (1.2, 1.2)), "-", "--")
"""A dash a class, so that lines can be told apart without colour."""

MAP = "Blues"
"""Colour map of heatmaps: one hue, light to dark, which prints in grey and is the same to colour-blind readers."""

DPI = 160


def panels(n: int, width: float, height: float, *, share: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of `n` panels, at most three in a row; sizes of a panel in inches."""
    columns = n if n <= 3 else math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    figure = Figure(figsize=(max(width * columns, 6.5), height * rows + 0.8), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    for unused in axes.flat[n:]:
        unused.set_axis_off()
    return figure, list(axes.flat[:n])


def ink(share: float) -> str:
    """Colour of text on a cell of `MAP` that is so far, 0 to 1, along it."""
    return "white" if share > 0.55 else "black"
