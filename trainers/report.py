"""What a sweep found, in files and on the terminal. Everything is made from the sweep's own files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from trainers.cases import CaseLevel
from trainers.comparison import row as comparison_row
from trainers.files import whole
from trainers.findings import Findings, find
from trainers.metrics import MACRO
from trainers.page.render import FILE as PAGE
from trainers.page.render import write_page
from trainers.pictures import draw_pictures
from trainers.resampling import FEW_CASES
from trainers.results import group, read_csv, write_csv
from trainers.table2 import CI_CAPTION, LEVELS, metric_rows, nested_rows, table2_rows

_HEADINGS = {"precision": "Precision", "recall": "Recall", "f1": "F1 score", "auc": "AUC-ROC"}
_HEADLINE = {"auc": "AUC-ROC", "quadratic_kappa": "Kappa", "mae": "MAE"}
_UNRELIABLE = f", unreliable under {FEW_CASES} cases a class as here"


def write_report(sweep_dir: Path) -> dict[str, Path]:
    """Writes all CSV tables and pictures of a sweep, and report.html, from the files of its directory.

    Returns:
        What was written: name -> file.

    Raises:
        SweepError: the sweep has no tested run, or a file is missing.
    """
    found = find(sweep_dir)
    tables: dict[str, list[dict[str, Any]]] = {
        "table2.csv": table2_rows(found.results, found.fixed),
        "metrics.csv": metric_rows(found),
        "comparison.csv": [
            comparison_row(each, found.compared_on)
            | {
                "embedder_overlap": found.overlap(each.embedder, nested=found.outer_folds > 0),
                "best_overlap": found.overlap(each.best, nested=found.outer_folds > 0),
            }
            for each in found.comparisons
        ],
    }
    if found.outer_folds:
        tables["nested.csv"] = nested_rows(found)
    written = {name: sweep_dir / name for name in tables}
    for name, rows in tables.items():
        with whole(written[name]) as partial:
            write_csv(partial, rows)
    written |= draw_pictures(sweep_dir, found)
    return written | {PAGE: write_page(sweep_dir, found)}


def table(sweep_dir: Path) -> Group:
    """The tables for the terminal: the headline, how embedders compare, and the paper's Table 2.

    Raises:
        SweepError: as `write_report`.
    """
    found = find(sweep_dir)
    return Group(*_headline(found), *_comparisons(found), Text(), _table2(found, read_csv(sweep_dir, "baselines.csv")))


def _headline(found: Findings) -> Iterable[Any]:
    if not found.outer_folds:
        yield Text(
            "No headline: this sweep has no nested cross-validation, which tests every case once and pools them; "
            "set [splits] nested = 5 in the experiment file and sweep again."
        )
        return
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    shown.title, shown.title_justify = "The headline: nested cross-validation, pooled by case", "left"
    shown.add_column("Patch embedder", overflow="fold")
    for name, heading in _HEADLINE.items():
        shown.add_column(heading, justify="right", no_wrap=True)
        if name == "auc":
            shown.add_column("chance", justify="right", no_wrap=True)
    for embedder in found.embedders:
        level = found.nested.get(embedder)
        if level is None:
            shown.add_row(f" {escape(embedder)}", "undefined")
            continue
        cells = [_with_range(level, name) for name in _HEADLINE]
        chance = level.chance["auc"]
        shown.add_row(
            f" {escape(embedder)}", cells[0], f"{chance.low:.2f}–{chance.high:.2f}" if chance else "", *cells[1:]
        )
    levels = list(found.nested.values())
    cases = f"{len(levels[0].cases.ids)} cases ({levels[0].cases.named()} a class)" if levels else "no case"
    lost = "".join(f"No headline for {escape(embedder)}: {why}.\n" for embedder, why in found.without_headline.items())
    shown.caption = (
        f"\n{_notes(found)}{lost}{cases}, each predicted by models that have not seen it and were chosen without it "
        f"({found.outer_folds} outer folds). Ranges: 95 % bootstrap of cases within their class{_caveat(levels)}; "
        "chance: labels permuted.\n"
    )
    shown.caption_justify = "left"
    yield shown


def _comparisons(found: Findings) -> Iterable[Text]:
    if found.comparisons:
        how = f"paired bootstrap, Holm-corrected{'' if found.comparisons[0].reliable else _UNRELIABLE}"
        yield Text(f"Against the best, case-level AUC on the {found.compared_on} ({how}):")
    for each in found.comparisons:
        yield Text(f"  {each.sentence()}")


def _table2(found: Findings, baselines: list[dict[str, str]]) -> Table:
    """In the paper's form, `0.622 ± 0.027`."""
    rows = table2_rows(found.results, found.fixed)
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    shown.add_column("Patch embedder", overflow="fold")
    for metric in MACRO:
        shown.add_column(_HEADINGS[metric], justify="right", no_wrap=True)
    for level, meaning in LEVELS.items():
        shown.add_row(f"[italic]{meaning}")
        for row in rows:
            if row["level"] == level:
                cells = (_mean_and_half(row[metric], row[f"{metric}_ci95"]) for metric in MACRO)
                shown.add_row(f" {escape(row['embedder'])}", *cells)
        shown.add_section()
    shown.add_row("[italic]case level")
    for embedder in dict.fromkeys(row["embedder"] for row in rows):
        shown.add_row(f" {escape(embedder)}", "", "", "", _with_range(found.fixed[embedder], "auc"))
    shown.caption = (
        f"\n{_notes(found)}"
        f"Paper protocol: every bag of a test slide counts; slide level: one prediction a slide.\n{CI_CAPTION}.\n"
        "Case level: the folds' models together, and the 95 % bootstrap of cases within their class"
        f"{_caveat(found.fixed.values())}.\n{_baselines(baselines)}{_chance(found.fixed.values())}{found.test_set()}."
    )
    shown.caption_justify = "left"
    return shown


def _notes(found: Findings) -> str:
    return "".join(f"{note}\n" for note in found.notes)


def _baselines(rows: list[dict[str, str]]) -> str:
    """A sentence on the baselines; none where the sweep has no file of them."""
    if not rows:
        return ""
    on = "nested" if rows[0].get("nested_auc") else "test"
    parts: list[str] = []
    for (name,), own in group(rows, "baseline"):
        aucs = [f"{float(r[f'{on}_auc']):.2f}" if r[f"{on}_auc"] else "undefined" for r in own]
        whose = [f"{auc} ({escape(r['embedder'])})" if r["embedder"] else auc for auc, r in zip(aucs, own, strict=True)]
        parts.append(f"{name} {', '.join(whose)}")
    where = "nested" if on == "nested" else "fixed test set"
    return f"Baselines, case-level AUC by logistic regression ({where}): {'; '.join(parts)}.\n"


def _with_range(level: CaseLevel, metric: str) -> str:
    value, found = level.values[metric], level.bootstrap[metric]
    if value is None or found is None:
        return "undefined"
    return f"{value:.2f} {found.low:.2f}–{found.high:.2f}"


def _caveat(levels: Iterable[CaseLevel]) -> str:
    return "" if all(level.reliable for level in levels) else _UNRELIABLE


def _chance(levels: Iterable[CaseLevel]) -> str:
    ranges = [found for level in levels if (found := level.chance["auc"]) is not None]
    if not ranges:
        return ""
    low, high = min(r.low for r in ranges), max(r.high for r in ranges)
    return f"With this many cases chance alone reaches an AUC from {low:.2f} to {high:.2f} (labels permuted).\n"


def _mean_and_half(mean: float | None, half: float | None) -> str:
    if mean is None:
        return "undefined"
    return f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"
