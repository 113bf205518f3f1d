"""Charts of the page, as documents of Bokeh that the page's script shows, switches and restyles.

Every renderer has a name, which its tooltip shows, and tags: what it is, and the positions of its embedder and class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.models import ColumnDataSource, DataRenderer, FixedTicker, HoverTool, NumeralTickFormatter
from bokeh.plotting import figure
from numpy.typing import ArrayLike, NDArray

from trainers.page.sheet import number, to_number, with_half
from trainers.palette import COLOURS
from trainers.results import Row, group
from trainers.roc import GRID, Curve, at_grid, band

DASHES = ([], [8, 3], [8, 3, 2, 3], [2, 3], [14, 4], [5, 2])
"""A dash a line, in px, so that lines can be told apart without colour."""

GREY = "#8a8f98"
"""Of axes: legible on light and on dark."""

_POSITION = [("", "$name"), ("false positive rate", "@x{0.000}"), ("true positive rate", "@y{0.000}")]


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        name: of the page's element.
        document: what Bokeh shows, JSON.
        more: what the page's script must know to switch it.
    """

    name: str
    document: Mapping[str, Any]
    more: Mapping[str, Any]


def line_style(k: int) -> dict[str, Any]:
    """Colour and dash of the k-th of several lines."""
    return {"line_color": COLOURS[k % len(COLOURS)], "line_dash": DASHES[k % len(DASHES)]}


def roc_chart(embedders: Mapping[str, Sequence[Curve]], classes: Sequence[str]) -> Chart:
    """ROC curves: means over folds, their band, and the runs. The script shows one embedder, or one class."""
    fig = _figure("false positive rate", "true positive rate", (-0.01, 1.01), (-0.01, 1.01))
    _tag(fig.line([0, 1], [0, 1], line_color=GREY, line_dash=[2, 3]), "diagonal")
    labels = [[""] * len(classes) for _ in embedders]
    hovered: list[DataRenderer] = []
    for e, (embedder, curves) in enumerate(embedders.items()):
        for c, name in enumerate(classes):
            own = [curve for curve in curves if curve.label == c]
            if own:
                over = band(own)
                labels[e][c] = with_half(over.auc, over.auc_ci95, 2)
                hovered += [_tag(line, "run", e, c) for line in _run_lines(fig, own, name, line_style(c))]
                grid = _source(x=GRID, y=over.mean, low=over.low, high=over.high)
                _tag(_band(fig, grid, line_style(c), alpha=0.2, visible=False), "band", e, c)
                said = f"{embedder}, {name}, AUC {labels[e][c]}"
                mean = fig.line("x", "y", source=grid, line_width=2.5, name=said, visible=e == 0, **line_style(c))
                hovered.append(_tag(mean, "mean", e, c))
    fig.add_tools(HoverTool(renderers=hovered, tooltips=_POSITION, line_policy="nearest"))
    return _chart("roc", fig, {"embedders": list(embedders), "classes": list(classes), "labels": labels})


def _run_lines(fig: figure, curves: Sequence[Curve], name: str, style: Mapping[str, Any]) -> Iterator[DataRenderer]:
    for curve in curves:
        source, said = _source(x=GRID, y=at_grid(curve)), f"{curve.run_id}, {name}, AUC {number(curve.auc)}"
        yield fig.line(
            "x", "y", source=source, line_color=style["line_color"], line_alpha=0.55, visible=False, name=said
        )


def learning_chart(embedders: Mapping[str, Sequence[Row]]) -> Chart:
    """Losses by epoch: of the selected configuration, those of all others behind. The script shows one embedder."""
    runs = [
        group((row for row in rows if not row["reason"]), "selected", "run_id") for rows in embedders.values()
    ]  # of each embedder
    frames = [_frame([run for (selected, _), run in own if selected] or [run for _, run in own]) for own in runs]
    first = frames[0]
    fig = _figure("epoch", "cross-entropy a bag", (first["left"], first["right"]), (first["bottom"], first["top"]))
    hovered: list[DataRenderer] = []
    for e, own in enumerate(runs):
        others = [_losses(run) for (selected, _), run in own if not selected]
        behind = ColumnDataSource({"x": [x for x, _, _ in others], "y": [val for _, _, val in others]})
        _tag(fig.multi_line("x", "y", source=behind, line_color=GREY, line_alpha=0.35, visible=e == 0), "other", e)
        for (selected, run_id), run in own:
            if selected:
                hovered += _loss_lines(fig, run_id, run, e)
    tooltips = [("", "$name"), ("epoch", "@x{0}"), ("loss", "@y{0.0000}")]
    fig.add_tools(HoverTool(renderers=hovered, tooltips=tooltips, line_policy="nearest"))
    return _chart("learning", fig, {"embedders": list(embedders), "frames": frames})


def _loss_lines(fig: figure, run_id: str, run: Sequence[Row], e: int) -> Iterator[DataRenderer]:
    x, train, val = _losses(run)
    kept = np.array([bool(row["best"]) for row in run])
    look: dict[str, Any] = {"line_width": 1.6, "visible": e == 0}
    drawn = fig.line("x", "y", source=_source(x=x, y=train), name=f"{run_id}, training",
                     line_color=COLOURS[2], line_dash=[6, 3], **look)  # fmt: skip
    yield _tag(drawn, "train", e)
    drawn = fig.line("x", "y", source=_source(x=x, y=val), name=f"{run_id}, validation", line_color=COLOURS[1], **look)
    yield _tag(drawn, "val", e)
    dot, said = _source(x=x[kept], y=val[kept]), f"{run_id}, epoch that was kept"
    yield _tag(fig.scatter("x", "y", source=dot, size=7, color=COLOURS[1], visible=e == 0, name=said), "kept", e)


def bags_chart(rows: Sequence[Row]) -> Chart:
    """The cohort's AUC by the number of bags, a line an embedder."""
    fig = _figure("bags a slide", "macro AUC over cases", x_axis_type="log")
    fig.xaxis.ticker = FixedTicker(ticks=[10**k for k in range(5)])
    fig.xaxis.formatter = NumeralTickFormatter(format="0,0")
    hovered: list[DataRenderer] = []
    embedders = [embedder for (embedder,), _ in group(rows, "embedder")]
    for e, (_, own) in enumerate(group(rows, "embedder")):
        known = sorted((row for row in own if row["auc"]), key=lambda row: int(row["bags"]))
        x, y, low, high = (_column(known, key) for key in ("bags", "auc", "auc_p2.5", "auc_p97.5"))
        source, style = _source(x=x, y=y, low=low, high=high), line_style(e)
        _tag(_band(fig, source, style, alpha=0.12), "band", e)
        _tag(fig.line("x", "y", source=source, line_width=2, **style), "mean", e)
        dots = fig.scatter("x", "y", source=source, size=6, color=style["line_color"], name=embedders[e])
        hovered.append(_tag(dots, "mean", e))
    tooltips = [("", "$name"), ("bags a slide", "@x{0}"), ("AUC", "@y{0.000} (@low{0.000} to @high{0.000})")]
    fig.add_tools(HoverTool(renderers=hovered, tooltips=tooltips))
    return _chart("bags", fig, {"embedders": embedders})


def _figure(
    x: str, y: str, x_range: tuple[float, float] | None = None, y_range: tuple[float, float] | None = None, **more: Any
) -> figure:
    if x_range and y_range:
        more |= {"x_range": x_range, "y_range": y_range}
    fig = figure(height=430, sizing_mode="stretch_width", tools="pan,box_zoom,wheel_zoom,reset", x_axis_label=x,
                 y_axis_label=y, background_fill_alpha=0, border_fill_alpha=0, outline_line_color=None,
                 **more)  # fmt: skip
    fig.toolbar.logo = None
    fig.grid.grid_line_color, fig.grid.grid_line_alpha = GREY, 0.25
    for axis in fig.axis:
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = GREY
        axis.axis_label_text_color = axis.major_label_text_color = GREY
        axis.axis_label_text_font_style = "normal"
    return fig


def _band(fig: figure, source: ColumnDataSource, style: Mapping[str, Any], *, alpha: float, **more: Any) -> Any:
    return fig.varea("x", "low", "high", source=source, fill_color=style["line_color"], fill_alpha=alpha, **more)


def _tag(renderer: Any, kind: str, embedder: int = -1, of_class: int = -1) -> DataRenderer:
    renderer.tags = [kind, embedder, of_class]
    return renderer


def _source(**columns: ArrayLike) -> ColumnDataSource:
    return ColumnDataSource({name: np.asarray(values, np.float32) for name, values in columns.items()})


def _losses(run: Sequence[Row]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Epochs from 1, training and validation losses; (epochs,) each."""
    x = np.array([row["epoch"] for row in run], np.float32) + 1
    train, val = (np.array([row[key] for row in run], np.float32) for key in ("train_loss", "val_loss"))
    return x, train, val


def _frame(runs: Sequence[Sequence[Row]]) -> dict[str, float]:
    """What a chart of these runs shows before anyone zooms; other runs may run beyond it."""
    y = [float(v) for run in runs for _, *both in [_losses(run)] for values in both for v in values if np.isfinite(v)]
    last = max((row["epoch"] + 1 for run in runs for row in run), default=2)
    low, high = (min(y), max(y)) if y else (0.0, 1.0)
    room = (high - low) or 1e-3
    return {"left": 0.8, "right": last + 0.2, "bottom": low - 0.06 * room, "top": high + 0.3 * room}


def _column(rows: Sequence[Row], key: str) -> list[float]:
    return [np.nan if (value := to_number(row.get(key))) is None else value for row in rows]


def _chart(name: str, fig: figure, more: Mapping[str, Any]) -> Chart:
    document = Document()
    document.add_root(fig)
    return Chart(name, _renumbered(document.to_json(deferred=False)), more)


def _renumbered(document: Any) -> Any:
    """The document with ids counted from 1: Bokeh counts on over all charts of a process."""
    known: dict[str, str] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(each) for each in node]
        if not isinstance(node, dict):
            return node
        fresh = {key: walk(value) for key, value in node.items() if key != "id"}
        return {"id": known.setdefault(node["id"], f"m{len(known)}"), **fresh} if "id" in node else fresh

    return walk(document)
