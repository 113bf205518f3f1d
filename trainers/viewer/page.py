"""The page of a slide: two figures of Bokeh that move together, and plain controls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from bokeh.embed import components
from bokeh.model import Model
from bokeh.models import (
    ColumnDataSource,
    Image,
    LinearColorMapper,
    Metric,
    PanTool,
    Quad,
    Range1d,
    ResetTool,
    ScaleBar,
    TileRenderer,
    WheelZoomTool,
    WMTSTileSource,
)
from bokeh.palettes import Viridis256
from bokeh.plotting import figure
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import colormaps

from her2cache.deepzoom import TILE_PX, native_zoom
from trainers.viewer.raster import Raster, lay_out
from trainers.viewer.scene import Picture, Scene, SlideEntry

Url = Callable[..., str]
"""Parts of a path -> the address on this server, with the token."""

STATIC = ("viewer.css", "viewer.js")
_CLEAR = "rgba(0, 0, 0, 0)"
_DIGITS = 4


def page(
    title: str, entries: Sequence[SlideEntry], entry: SlideEntry, number: int, scene: Scene, url: Url, nonce: str
) -> str:
    """The HTML of a slide's page.

    Args:
        title: of the sweep.
        entries: of the list.
        entry: the slide that is shown.
        number: its place in the list, which stands for it in addresses.
        scene: what is shown of it.
        url: gives addresses.
        nonce: of the page's own scripts.
    """
    raster = lay_out(scene.coords, scene.patch_px, scene.step_px)
    width, height = (side * scene.he.mpp for side in scene.he.size)
    x, y = Range1d(start=0, end=width), Range1d(start=-height, end=0)
    he = _plot("he", scene.he, x, y, url("tile", number, "he"))
    _lay_over(he, raster, scene)
    plots: dict[str, Model] = {"he": he}
    if scene.ihc is not None:
        plots["ihc"] = _plot("ihc", scene.ihc, x, y, url("tile", number, "ihc"))
    script, divisions = components(plots)
    return _template("page.html.j2").render(
        title=title,
        entries=list(enumerate(entries)),
        entry=entry,
        number=number,
        scene=scene,
        script=script.replace("<script", f'<script nonce="{nonce}"'),
        divisions=divisions,
        data=_data(scene, raster, url("patch", number)),
        url=url,
    )


def problem(title: str, entries: Sequence[SlideEntry], number: int, reason: str, url: Url) -> str:
    """The page of a slide that cannot be shown, with the list to go on from."""
    return _template("problem.html.j2").render(
        title=title, entries=list(enumerate(entries)), entry=entries[number], number=number, reason=reason, url=url
    )


def static(name: str) -> bytes:
    """A file of the page; `bokeh.min.js` is that of Bokeh's wheel."""
    if name == "bokeh.min.js":
        return files("bokeh").joinpath("server/static/js/bokeh.min.js").read_bytes()
    return files("trainers.viewer").joinpath("static", name).read_bytes()


def _template(name: str) -> Any:
    environment = Environment(
        loader=PackageLoader("trainers.viewer", "static"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name)


def _plot(name: str, picture: Picture, x: Range1d, y: Range1d, tiles: str) -> figure:
    """A slide in micrometres: x to the right, -y downwards. Figures that share their ranges move together."""
    zoom = native_zoom(picture.size)
    square = TILE_PX * 2**zoom * picture.mpp  # side of what zoom 0 shows
    wheel = WheelZoomTool(zoom_on_axis=False)
    plot = figure(
        name=name,
        x_range=x,
        y_range=y,
        tools=[PanTool(), wheel, ResetTool()],
        active_scroll=wheel,
        toolbar_location=None,
        sizing_mode="stretch_both",
        min_border=0,
        outline_line_color=None,
        background_fill_color="#ffffff",
        border_fill_color=_CLEAR,
    )
    plot.axis.visible = False
    plot.grid.visible = False
    source = WMTSTileSource(
        url=tiles.replace("TILE", "{Z}/{X}/{Y}.jpg"),
        tile_size=TILE_PX,
        min_zoom=0,
        max_zoom=zoom,
        initial_resolution=square / TILE_PX,
        x_origin_offset=0,
        y_origin_offset=square,
        wrap_around=False,
        snap_to_zoom=False,
    )
    plot.add_layout(
        ScaleBar(
            range=plot.x_range,
            unit="µm",
            dimensional=Metric(base_unit="m"),
            location="bottom_right",
            background_fill_color="#ffffff",
            background_fill_alpha=0.8,
            border_line_color=None,
            bar_line_width=3,
        )
    )
    plot.renderers.append(TileRenderer(tile_source=source, smoothing=True, level="underlay"))
    return plot


def _lay_over(plot: figure, raster: Raster, scene: Scene) -> None:
    """The values of patches as a picture, which the page's script fills."""
    um = scene.he.mpp
    width, height = raster.columns * raster.step * um, raster.rows * raster.step * um
    empty = np.full((raster.rows, raster.columns), np.nan, np.float32)
    source = ColumnDataSource(
        {
            "image": [empty],
            "x": [raster.left * um],
            "y": [-raster.top * um - height],
            "dw": [width],
            "dh": [height],
        },
        name="values",
    )
    layer = scene.layers[0]
    mapper = LinearColorMapper(palette=Viridis256, low=layer.low, high=layer.high, nan_color=_CLEAR, name="colours")
    glyph = Image(image="image", x="x", y="y", dw="dw", dh="dh", color_mapper=mapper, global_alpha=0.6)
    plot.add_glyph(source, glyph, name="heatmap")
    chosen = ColumnDataSource({side: list[float]() for side in ("left", "right", "top", "bottom")}, name="chosen")
    outline = Quad(
        left="left", right="right", top="top", bottom="bottom", fill_alpha=0, line_color="#111111", line_width=3
    )
    plot.add_glyph(chosen, outline)


def _data(scene: Scene, raster: Raster, patch_url: str) -> str:
    """What the script knows: cells, values and colours. As JSON that no markup can end."""
    diverging = [_hex(rgba) for rgba in colormaps["RdBu_r"](np.linspace(0, 1, 256))]
    document = {
        "um_per_px": scene.he.mpp,
        "size_um": [side * scene.he.mpp for side in scene.he.size],
        "patch_px": scene.patch_px,
        "raster": {"columns": raster.columns, "rows": raster.rows, "cells": raster.cells.tolist()},
        "origin": [raster.left, raster.top],
        "step": raster.step,
        "coords": scene.coords.tolist(),
        "layers": [
            {
                "name": layer.name,
                "meaning": layer.meaning,
                "values": [None if np.isnan(v) else float(f"{v:.{_DIGITS}g}") for v in layer.values],
                "low": layer.low,
                "high": layer.high,
                "palette": diverging if layer.diverging else list(Viridis256),
            }
            for layer in scene.layers
        ],
        "patch_url": patch_url,
    }
    return json.dumps(document, separators=(",", ":")).replace("<", "\\u003c")


def _hex(rgba: Any) -> str:
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in rgba[:3])
