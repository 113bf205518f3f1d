"""How the AUC of a cohort settles as its slides are scored with more bags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from trainers.palette import COLOURS, DPI, STYLES
from trainers.results import Row, group

FILE = "auc_by_bags.csv"


def draw_auc_by_bags(rows: Sequence[Row], *, caption: str, out: Path) -> None:
    """Writes a PNG: a line an embedder, with the range over repeated drawings of the bags.

    Args:
        rows: of auc_by_bags.csv.
        caption: of the figure.
        out: the file to write.
    """
    figure = Figure(figsize=(6.5, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for k, ((embedder,), own) in enumerate(group((row for row in rows if row["auc"]), "embedder")):
        bags, auc, low, high = ([float(row[key]) for row in own] for key in ("bags", "auc", "auc_p2.5", "auc_p97.5"))
        colour = COLOURS[k % len(COLOURS)]
        axes.fill_between(bags, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(bags, auc, color=colour, linestyle=STYLES[k % len(STYLES)], marker="o", markersize=3, label=embedder)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("bags a slide", fontsize=9)
    axes.set_ylabel("macro AUC over cases", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92", linewidth=0.6)
    if axes.lines:
        for text in axes.legend(fontsize=8, frameon=False).get_texts():
            text.set_parse_math(False)
    figure.suptitle(caption, fontsize=8, parse_math=False)
    figure.savefig(out, format="png")
