"""Puts the page together: one file, all scripts, styles and pictures in it, nothing fetched from anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trainers.files import whole
from trainers.findings import Findings
from trainers.grid import axes_of
from trainers.page import records, slides, tables, words
from trainers.page.charts import Chart, bags_chart, learning_chart, line_style, roc_chart
from trainers.page.images import drawing
from trainers.page.maps import maps, truth_sentence
from trainers.page.shades import confusion_panels, grid_panels
from trainers.page.sources import Sources, read_sources

FILE = "report.html"


def write_page(sweep_dir: Path, found: Findings) -> Path:
    """Writes report.html of a sweep; returns its path.

    The same files of the sweep, and the same feature spaces in its store, give the same bytes.

    Args:
        sweep_dir: with all tables and pictures of the sweep.
        found: what the sweep found.

    Raises:
        SweepError: runs.parquet is missing or damaged.
    """
    path = sweep_dir / FILE
    text = render(read_sources(sweep_dir, found))
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def render(sources: Sources) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("trainers", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # Bokeh defines a model where it first stands
    charts = _charts(sources)
    return environment.get_template("page.html.j2").render(
        title=_title(sources),
        style=_own("style.css"),
        script=_own("script.js"),
        bokeh=_bokeh() if charts else "",
        charts={chart.name: {"document": chart.document, **chart.more} for chart in charts},
        lines=[line_style(k) for k in range(12)],
        s=sources,
        notes=words.notes(sources),
        headline=list(words.headline(sources)),
        intervals=words.intervals(sources),
        limits=list(words.limits(sources)),
        views=records.views(sources),
        pictures=_pictures(sources.folder),
        sheets=_sheets(sources),
        confusions=confusion_panels(sources),
        grids=grid_panels(sources),
        is_grid=bool(axes_of(sources.tried)[0]),
        maps=maps(sources),
        truth=truth_sentence(sources),
        unscored=slides.slides_without(sources, sources.scores),
        undrawn=slides.slides_without(sources, sources.maps),
    )


def _title(sources: Sources) -> str:
    n = len({row["case_id"] for row in sources.splits})
    cases = f"{n} {'synthetic ' if sources.synthetic else ''}cases, " if n else ""
    embedders = len(sources.found.embedders)
    return f"HER2 score from H&E slides: {cases}{embedders} patch embedder{'s' if embedders > 1 else ''}"


def _sheets(sources: Sources) -> Mapping[str, Any]:
    made = {
        "nested": tables.nested,
        "fixed": tables.fixed,
        "table1": tables.table1,
        "table2": tables.table2,
        "comparisons": tables.comparisons,
        "baselines": tables.baselines,
        "metrics": tables.metrics,
        "settings": records.settings,
        "splits": records.splits,
        "spaces": records.spaces,
        "cards": records.cards,
        "failed": records.failed_runs,
        "left_out": records.left_out,
        "environment": records.environment,
        "case_scores": slides.case_scores,
        "slide_scores": slides.slide_scores,
        "auc_by_bags": slides.auc_by_bags,
    }
    return {name: make(sources) for name, make in made.items()}


def _charts(sources: Sources) -> Sequence[Chart]:
    charts: list[Chart] = []
    if any(sources.curves.values()):
        charts.append(roc_chart(sources.curves, sources.classes))
    if sources.losses:
        charts.append(learning_chart(sources.losses))
    if sources.auc_by_bags:
        charts.append(bags_chart(sources.auc_by_bags))
    return charts


def _pictures(folder: Path) -> Mapping[str, str]:
    """Still pictures, for print and for readers without scripts; "" where there is none."""
    names = ("roc", "learning_curves", "grid", "auc_by_bags")
    paths = {name: folder / f"{name}.png" for name in names}
    return {name: drawing(path) if path.is_file() else "" for name, path in paths.items()}


def _own(name: str) -> Markup:
    """A file of this package, as it is."""
    return Markup(files("trainers.page").joinpath(name).read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _bokeh() -> Markup:
    """Bokeh's scripts without its widgets and without MathJax, and without the comment that would fetch a map of it."""
    (script,) = Resources(mode="inline", components=["bokeh"], minified=True).js_raw[:1]
    return Markup(re.sub(r"//# sourceMappingURL=\S*", "", script))
