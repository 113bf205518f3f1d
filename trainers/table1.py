"""The paper's Table 1: how well the networks do the tasks that they were trained for.

Numbers are of the test split of each source task, from the metadata of the weights. ImageNet's is cited.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from her2cache.embedder import RANDOM
from her2cache.store.reader import SpaceInfo
from her2cache.weights import WeightsCard
from trainers.files import whole
from trainers.results import Row, read_csv, write_csv

FILE = "table1.csv"

IMAGENET = "alexnet-imagenet"
HERE = "here"
IMAGENET_CITED = "cited, not measured here: torchvision, AlexNet_Weights.IMAGENET1K_V1, acc@1"
IMAGENET_ACCURACY = 0.56522
"""Of torchvision's AlexNet on ImageNet's validation images, as its documentation has it (acc@1)."""

_NAMES = {"pcam": "PatchCamelyon", "ihc": "IHC HER2", "imagenet": "ImageNet (2012)", "": "none (random weights)"}


def table1_row(embedder: str, name: str, card: WeightsCard | None, weights: str = "") -> dict[str, Any]:
    """A row of Table 1.

    Args:
        embedder: as a sweep or a user calls it.
        name: of the embedder, which says what it is: `alexnet-imagenet`.
        card: what its weights file says of itself.
        weights: that file, for people.
    """
    task = card.source_task if card else "imagenet" if name == IMAGENET else ""
    untrained = name.startswith(RANDOM)
    row: dict[str, Any] = {
        "embedder": embedder,
        "source_task": _NAMES.get(task, task) if task or untrained else "of its makers",
        "classes": len(card.classes) if card else 1000 if task == "imagenet" else None,
        "accuracy": None,
        "balanced_accuracy": None,
        "auc_roc": None,
        "n_test": None,
        "source_mpp": card.source_mpp if card else None,
        "init": card.settings.get("init") if card else None,
        "measured": HERE if card and card.metrics else IMAGENET_CITED if task == "imagenet" else "",
        "weights": weights,
        "data_digest": card.data_digest if card else "",
    }
    if card is None:
        return row | ({"accuracy": IMAGENET_ACCURACY} if task == "imagenet" else {})
    measured = {key: card.metrics.get(key) for key in ("accuracy", "balanced_accuracy", "auc_roc")}
    return row | measured | {"n_test": card.metrics.get("n")}


def write_table1(embedders: Mapping[str, SpaceInfo], folder: Path) -> Path:
    """Writes table1.csv of the embedders of a sweep; returns its path. ImageNet's row is always there.

    Args:
        embedders: name in the sweep -> a feature space.
        folder: where to.
    """
    rows = [table1_row(name, space.name, space.card, space.weights or "") for name, space in embedders.items()]
    if IMAGENET not in {space.name for space in embedders.values()}:
        rows.append(table1_row(IMAGENET, IMAGENET, None))
    return _write(rows, folder)


def add_to_table1(embedder: str, card: WeightsCard, weights: Path) -> Path:
    """Adds the row of a weights file to the table1.csv beside it, or replaces it; returns the table's path.

    ImageNet's row is always there. Trainings that end at once wait for each other.
    """
    folder = weights.parent
    with _locked(folder):
        there = {row.get("weights") or row.get("embedder"): row for row in read_csv(folder, FILE)}
        rows: dict[Any, dict[str, Any]] = {IMAGENET: table1_row(IMAGENET, IMAGENET, None), **there}
        rows[weights.name] = table1_row(embedder, embedder, card, weights.name)
        columns = list(rows[weights.name])
        return _write([{column: row.get(column) for column in columns} for row in rows.values()], folder)


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Keeps other processes out of a folder's table for a moment."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(rows: list[dict[str, Any]], folder: Path) -> Path:
    path = folder / FILE
    with whole(path) as partial:
        write_csv(partial, rows)
    return path


def table1_table(rows: Sequence[Row]) -> Table:
    """For the terminal, in the paper's form.

    Args:
        rows: of table1.csv.
    """
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    shown.add_column("Source task")
    for heading in ("Classes", "Accuracy", "AUC-ROC", "Test patches"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("")
    for row in rows:
        shown.add_row(
            escape(row["source_task"]),
            row["classes"] or "-",
            _number(row["accuracy"], "{:.0%}"),
            _number(row["auc_roc"], "{:.2f}"),
            _number(row["n_test"], "{:,.0f}"),
            "cited" if row["measured"].startswith("cited") else "",
        )
    return shown


def _number(cell: str, form: str) -> str:
    return form.format(float(cell)) if cell else "-"
