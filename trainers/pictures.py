"""The pictures of a sweep, and the numbers behind them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from trainers.confusion import confusion_rows, confusions, draw_confusions
from trainers.convergence import FILE as AUC_BY_BAGS
from trainers.convergence import draw_auc_by_bags
from trainers.files import whole
from trainers.findings import Findings
from trainers.grid import draw_grid
from trainers.learning import draw_learning_curves
from trainers.results import Row, group, read_csv, read_table, write_csv
from trainers.roc import draw_roc, embedder_curves, roc_rows

_NOTE_COLUMNS = 90
"""Letters of a line that fits the narrowest figure."""

_RUN_COLUMNS = ("run_id", "embedder", "outer", "epoch", "train_loss", "val_loss", "best", "selected", "reason")


def draw_pictures(sweep_dir: Path, found: Findings) -> dict[str, Path]:
    """Writes the pictures of a sweep, and the numbers behind them as CSV.

    Returns:
        What was written: name -> file; without ROC curves where every run of the fixed test set failed.

    Raises:
        SweepError: runs.parquet is missing or damaged.
    """
    folder, classes, on = sweep_dir, found.task.classes, found.test_set()
    notes = "".join(f"{textwrap.fill(note, _NOTE_COLUMNS)}\n" for note in found.notes)
    written = ["learning_curves.png", "grid.png"]
    if curves := embedder_curves(found):
        with whole(folder / "roc.csv") as partial:
            write_csv(partial, _marked(found, roc_rows(curves, classes)))
        caption = (
            f"{notes}Bag level (paper protocol). {on}.\nBlack: mean of the folds. Band: from the lowest to the "
            "highest fold. Thin: the runs.\nAUC: mean ± fold_ci95, the spread over training folds, not over patients."
        )
        with whole(folder / "roc.png") as partial:
            draw_roc(curves, classes, caption=caption, out=partial)
        written += ["roc.csv", "roc.png"]
    if made := confusions(found):
        with whole(folder / "confusion.csv") as partial:
            write_csv(partial, _marked(found, confusion_rows(made, classes)))
        caption = (
            f"{notes}Counts, and shares of the true class. {on}.\nBags count once for each model (fold and seed); "
            "cases once for each seed of the embedder,\nby the mean of the folds' models."
        )
        with whole(folder / "confusion.png") as partial:
            draw_confusions(made, classes, caption=caption, out=partial)
        written += ["confusion.csv", "confusion.png"]
    caption = f"{notes}Losses of the folds that the fixed test set is tested with; curves beyond the frame ran higher."
    with whole(folder / "learning_curves.png") as partial:
        draw_learning_curves(losses(folder, found), caption=caption, out=partial)
    caption = (
        f"{notes}Mean, over folds and seeds, of the lowest epoch validation loss. Framed: the selected configuration.\n"
        "Colours are of each embedder on its own."
    )
    with whole(folder / "grid.png") as partial:
        draw_grid(tried(folder, found), caption=caption, out=partial)
    if rows := read_csv(folder, AUC_BY_BAGS):
        caption = (
            f"{notes}{on}. By the models of all folds together.\nBand: 2.5 and 97.5 percentiles over repeated drawings "
            "of the bags, not over patients."
        )
        with whole(folder / "auc_by_bags.png") as partial:
            draw_auc_by_bags(rows, caption=caption, out=partial)
        written.append("auc_by_bags.png")
    return {name: folder / name for name in written}


def losses(sweep_dir: Path, found: Findings) -> dict[str, list[Row]]:
    """Embedder -> the rows of runs.parquet of the fixed test set's models.

    Raises:
        SweepError: the file is missing or damaged.
    """
    runs = read_table(sweep_dir, "runs.parquet", columns=list(_RUN_COLUMNS))
    of_fixed = runs.filter(pc.is_null(runs["outer"]))  # pyright: ignore[reportAttributeAccessIssue]
    return _by_embedder(of_fixed.to_pylist(), found)


def tried(sweep_dir: Path, found: Findings) -> dict[str, list[Row]]:
    """Embedder -> the rows of selection.csv of the fixed test set's models, numbers as numbers."""
    return _by_embedder([_numbers(row) for row in read_csv(sweep_dir, "selection.csv") if not row["outer"]], found)


def _marked(found: Findings, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, with what their embedder's weights have seen."""
    return ({**row, "embedder_overlap": found.overlap(row["embedder"])} for row in rows)


def _by_embedder(rows: Sequence[Row], found: Findings) -> dict[str, list[Row]]:
    """In the order of the tables; embedders that were not tested come last."""
    by = {embedder: own for (embedder,), own in group(rows, "embedder")}
    return {e: by[e] for e in dict.fromkeys([*found.embedders, *by]) if e in by}


def _numbers(row: Row) -> dict[str, Any]:
    """A row of selection.csv with its types."""
    return {
        "embedder": row["embedder"],
        "learning_rate": float(row["learning_rate"]),
        "weight_decay": float(row["weight_decay"]),
        "val_loss": float(row["val_loss"]) if row["val_loss"] else None,
        "selected": row["selected"] == "True",
    }
