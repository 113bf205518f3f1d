"""The leaderboard of a comparison: what an embedder achieves, and what it costs.

What it achieves rests on cases of the nested cross-validation. Rows that the paired test (science.md rule 2.5) cannot
tell from the best are marked: their order among each other means nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.markup import escape
from rich.table import Table

from her2cache.store.reader import FeatureStore, SpaceInfo
from trainers.cases import CaseLevel
from trainers.findings import Findings, find
from trainers.palette import COLOURS, DPI
from trainers.results import Row

FILE, PICTURE = "leaderboard.csv", "leaderboard.png"

BEST, LIKE_BEST, BEHIND = "best", "not distinguishable", "behind"
"""What the paired test says of a row."""

_KEY = re.compile("@[0-9a-f]{8}$")  # as a sweep adds it to names that several spaces share


@dataclass(frozen=True)
class Cost:
    """What the features of an embedder cost.

    Attributes:
        patches_per_second: pushed through the embedder, on one device, views counted; None where they were made
            elsewhere, or by an earlier version.
        bytes_a_slide: of features and coordinates, mean.
        dim: numbers a patch.
        mpp: scale of the patches, um/px.
        patch_px: their side.
    """

    patches_per_second: float | None
    bytes_a_slide: float
    dim: int
    mpp: float
    patch_px: int


def cost_of(store: FeatureStore, space: SpaceInfo, slides: Sequence[str]) -> Cost:
    """What the features of some slides cost, by their commit records."""
    records = store.committed(space, slides)
    seconds = [record.made.get("embed_seconds") for record in records]
    known = [s for s in seconds if s]
    patches = sum(record.n_patches * record.views for record in records)
    return Cost(
        patches_per_second=patches / sum(known) if len(known) == len(records) else None,
        bytes_a_slide=sum(record.bytes for record in records) / len(records),
        dim=space.dim,
        mpp=space.document["patch"]["mpp"],
        patch_px=space.document["patch"]["patch_px"],
    )


def leaderboard_rows(sweep_dir: Path, costs: Mapping[str, Cost]) -> list[dict[str, Any]]:
    """The rows of leaderboard.csv, best first; an embedder without a headline comes last, and says why.

    Args:
        sweep_dir: a finished sweep with nested cross-validation.
        costs: of each embedder, by its name in the sweep.

    Raises:
        SweepError: no run of the sweep was tested.
    """
    found = find(sweep_dir)
    compared = {each.embedder: each for each in found.comparisons}
    ranked = sorted(found.nested, key=lambda e: -(found.nested[e].values["auc"] or 0.0))
    rows: list[dict[str, Any]] = []
    for place, embedder in enumerate(ranked):
        level, against = found.nested[embedder], compared.get(embedder)
        said = BEST if place == 0 else LIKE_BEST if against is None or not against.distinguishable else BEHIND
        rows.append(
            {
                "rank": place + 1,
                "embedder": embedder,
                **_costs(costs[embedder]),
                **_achieved(level),
                "against_best": said,
                "behind_best_by": against and against.difference,
                "behind_best_low": against and against.low,
                "behind_best_high": against and against.high,
                "p_holm": against and against.p_holm,
                "embedder_overlap": found.overlap(embedder, nested=True),
                "space_key": _space_key(found, embedder),
                "note": "",
            }
        )
    first = rows[0] if rows else {"rank": None, "embedder": "", "note": ""}
    for embedder, why in found.without_headline.items():
        blank = dict.fromkeys(first) | {"embedder": embedder, **_costs(costs[embedder]), "note": why}
        rows.append(blank | {"space_key": _space_key(found, embedder)})
    return plainly_named(rows)


def plainly_named(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows without the keys in their names, where scale and side tell the spaces of an embedder apart."""

    def place(row: Row) -> tuple[Any, ...]:
        return _KEY.sub("", str(row["embedder"])), row["mpp"], row["patch_px"]

    places = [place(row) for row in rows]
    return [
        dict(row) | ({"embedder": at[0]} if places.count(at) == 1 else {}) for row, at in zip(rows, places, strict=True)
    ]


def _costs(cost: Cost) -> dict[str, Any]:
    return {
        "mpp": cost.mpp,
        "patch_px": cost.patch_px,
        "dim": cost.dim,
        "patches_per_second": cost.patches_per_second and round(cost.patches_per_second, 1),
        "bytes_a_slide": round(cost.bytes_a_slide),
    }


def _achieved(level: CaseLevel) -> dict[str, Any]:
    ranges, chance = level.bootstrap["auc"], level.chance["auc"]
    return {
        "auc": level.values["auc"],
        "auc_low": ranges and ranges.low,
        "auc_high": ranges and ranges.high,
        "chance_low": chance and chance.low,
        "chance_high": chance and chance.high,
        "macro_f1": level.values["f1"],
        "quadratic_kappa": level.values["quadratic_kappa"],
        "n_cases": len(level.cases.ids),
        "cases_per_class": level.cases.named(),
        "reliable": level.reliable,
    }


def _space_key(found: Findings, embedder: str) -> str:
    return next((row["space_key"] for row in found.results if row["embedder"] == embedder), "")


def leaderboard_table(rows: Sequence[Row]) -> Table:
    """For the terminal."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    shown.title, shown.title_justify = "Leaderboard: nested cross-validation, pooled by case", "left"
    shown.add_column("")
    shown.add_column("Patch embedder", overflow="fold")
    for heading in ("um/px", "AUC-ROC", "F1", "Kappa", "patches/s", "MB/slide", "dim"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        marks = {BEST: "●", LIKE_BEST: "○"}
        auc = f"{row['auc']:.2f} {row['auc_low']:.2f}–{row['auc_high']:.2f}" if row.get("auc") is not None else "-"
        rate = row["patches_per_second"]
        shown.add_row(
            marks.get(row.get("against_best") or "", ""),
            escape(str(row["embedder"])),
            f"{row['mpp']:g}",
            auc,
            _number(row.get("macro_f1")),
            _number(row.get("quadratic_kappa")),
            f"{rate:,.0f}" if rate else "-",
            f"{row['bytes_a_slide'] / 1e6:.1f}",
            f"{row['dim']:,}",
        )
    shown.caption, shown.caption_justify = _caption(rows), "left"
    return shown


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _caption(rows: Sequence[Row]) -> str:
    ranked = [row for row in rows if row.get("auc") is not None]
    lines = [f"{row['embedder']}: {row['note']}." for row in rows if row["note"]]
    lines += [
        f"{row['embedder']}: its weights have seen labels of {row['embedder_overlap']} cases."
        for row in ranked
        if row["embedder_overlap"]
    ]
    if ranked:
        first = ranked[0]
        lines += [
            f"● best, ○ not distinguishable from it (paired bootstrap of {first['n_cases']} cases, Holm-corrected):",
            "their order means nothing. Ranges: 95 % bootstrap of cases within their class"
            + ("" if first["reliable"] else ", unreliable with so few")
            + f". Chance: {first['chance_low']:.2f}–{first['chance_high']:.2f}.",
        ]
    return "\n" + "\n".join(escape(line) for line in lines)


def draw_leaderboard(rows: Sequence[Row], out: Path) -> None:
    """Writes a PNG: AUC with its range, an embedder a line, beside what its features cost.

    Args:
        rows: of `leaderboard_rows`.
        out: the file to write.
    """
    ranked = [row for row in rows if row.get("auc") is not None][::-1]
    figure = Figure(figsize=(8.0, 1.6 + 0.42 * max(len(ranked), 1)), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1.5])
    _draw_aucs(left, ranked)
    rates = [row["patches_per_second"] or 0.0 for row in ranked]
    right.barh(range(len(ranked)), rates, color="0.8", height=0.55)
    for k, (row, rate) in enumerate(zip(ranked, rates, strict=True)):
        text = f"{rate:,.0f}/s" if rate else "not known"
        right.text(
            0.03,
            k,
            f"{text}, {row['bytes_a_slide'] / 1e6:.1f} MB",
            va="center",
            fontsize=7,
            transform=right.get_yaxis_transform(),
        )
    right.set_xlabel("patches a second; bytes a slide", fontsize=8)
    right.tick_params(labelsize=7)
    if ranked:
        figure.suptitle(
            f"Nested cross-validation over {ranked[0]['n_cases']} cases ({ranked[0]['cases_per_class']} a class)."
            " Filled: best; ring: not distinguishable from it; cross: behind.\nBars: 95 % bootstrap of cases within"
            " their class. Grey: what chance alone reaches.",
            fontsize=8,
            parse_math=False,
        )
    figure.savefig(out, format="png")


def _draw_aucs(axes: Axes, ranked: Sequence[Row]) -> None:
    blue = COLOURS[1]
    markers = {BEST: ("o", blue), LIKE_BEST: ("o", "white"), BEHIND: ("x", blue)}
    for k, row in enumerate(ranked):
        marker, face = markers[row["against_best"]]
        axes.plot([row["auc_low"], row["auc_high"]], [k, k], color=blue, linewidth=1.4, zorder=2)
        axes.plot(row["auc"], k, marker, color=blue, markerfacecolor=face, markersize=6.5, zorder=3)
    if ranked and ranked[0]["chance_low"] is not None:
        axes.axvspan(
            min(row["chance_low"] for row in ranked), max(row["chance_high"] for row in ranked), color="0.93", zorder=0
        )
    names = [f"{row['embedder']}  {row['mpp']:g} um/px" for row in ranked]
    axes.set_yticks(range(len(ranked)), names, fontsize=8, parse_math=False)
    axes.set_ylim(-0.6, len(ranked) - 0.4)
    axes.set_xlabel("macro AUC-ROC", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", color="0.9", linewidth=0.6)
