"""Scores of slides and cases on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from trainers.page.sheet import small
from trainers.score_tables import NEW, TEST, TRAINED_ON
from trainers.tasks import Task

_CAPTION = """
p: expected class probabilities. mc_se: numerical error of the expected score.
bags: 2.5th to 97.5th percentile over bags, the heterogeneity within the slide.
model sd: over the models of the folds.
None of these is a confidence interval of the patient's HER2 score."""
_DRAWN = """
drawn: bags, as many as the tolerance took."""
_ALL_ARE = {
    TEST: "All slides: of the test set of the models.",
    TRAINED_ON: "All slides: trained on, or chosen by.",
    NEW: "All slides: new to the models.",
    None: "Whether the models were trained on them is not known: the sweep has no splits.csv.",
}
_MODEL_SD = "model\nsd"
_CASE_CAPTION = """
A case: its slides together, each weighing the same."""


def score_table(rows: Sequence[Mapping[str, Any]], task: Task, *, with_bags: bool = False) -> Table:
    """A row a slide, from rows of `trainers.score_tables.slide_row`; with the number of bags drawn if wanted.

    The part of a slide is said below its id, and in the caption where all have the same: so the table fits 80 columns.
    """
    parts = {row["part"] for row in rows}
    shown = _table("slide", task, "mc_se", *(["drawn"] if with_bags else []), "bags", _MODEL_SD)
    for row in rows:
        of_slide, *cells = _cells(row["slide_id"], row, task)
        name = f"{of_slide}\n[dim]{row['part']}[/]" if len(parts) > 1 else of_slide
        drawn = [f"{row['bags']:,}"] if with_bags else []
        spread = f"{row['bag_p2.5']:.2f}-{row['bag_p97.5']:.2f}"
        shown.add_row(name, *cells, *drawn, spread, _model_sd(row))
    said = "".join(f"\n{_ALL_ARE[part]}" for part in parts if len(parts) == 1)
    shown.caption, shown.caption_justify = _CAPTION + (_DRAWN if with_bags else "") + said, "left"
    return shown


def case_table(rows: Sequence[Mapping[str, Any]], task: Task) -> Table:
    """A row a case, from rows of `trainers.score_tables.case_row`."""
    shown = _table("case", task, "mc_se", "slides", _MODEL_SD)
    for row in rows:
        shown.add_row(*_cells(row["case_id"], row, task), str(row["n_slides"]), _model_sd(row))
    shown.caption, shown.caption_justify = _CASE_CAPTION, "left"
    return shown


def _table(what: str, task: Task, *after: str) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    shown.add_column(what, overflow="fold", min_width=12)
    for name in ("score", "expected", *(f"p({name})" for name in task.classes), *after):
        shown.add_column(name, justify="right", no_wrap=True)
    return shown


def _cells(name: str, row: Mapping[str, Any], task: Task) -> list[str]:
    return [
        escape(name),
        row["predicted_score"],
        f"{row['expected_score']:.2f}",
        *(f"{row[f'p_{c}']:.2f}" for c in range(len(task.classes))),
        small(row["mc_se"]),
    ]


def _model_sd(row: Mapping[str, Any]) -> str:
    return "" if row["model_sd"] is None else f"{row['model_sd']:.2f}"
