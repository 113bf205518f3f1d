"""The paper's Table 1: how well the networks do the tasks that they were trained for.

Numbers are of the test split of each source task, from the metadata of the weights. ImageNet's is cited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from her2cache.weights import WeightsCard
from trainers.files import whole
from trainers.results import Row, read_csv, write_csv

FILE = "table1.csv"

HERE = "here"
IMAGENET_CITED = "cited, not measured here: torchvision, AlexNet_Weights.IMAGENET1K_V1, acc@1"
IMAGENET_ACCURACY = 0.56522
"""Of torchvision's AlexNet on ImageNet's validation images, as its documentation has it (acc@1)."""

_NAMES = {"pcam": "PatchCamelyon", "ihc": "IHC HER2", "imagenet": "ImageNet (2012)", "": "none (random weights)"}
_OF_EMBEDDER = {"alexnet-imagenet": "imagenet", "alexnet-pcam": "pcam", "alexnet-ihc": "ihc"}


def table1_row(embedder: str, card: WeightsCard | None) -> dict[str, Any]:
    """A row of Table 1.

    Args:
        embedder: its name.
        card: of its weights.
    """
    task = card.source_task if card else _OF_EMBEDDER.get(embedder, "")
    known = card is not None or task or embedder.startswith("alexnet-random")
    row: dict[str, Any] = {
        "embedder": embedder,
        "source_task": _NAMES.get(task, task) if known else "of its makers",
        "classes": len(card.classes) if card else 1000 if task == "imagenet" else None,
        "accuracy": None,
        "balanced_accuracy": None,
        "auc_roc": None,
        "n_test": None,
        "source_mpp": card.source_mpp if card else None,
        "measured": HERE if card and card.metrics else IMAGENET_CITED if task == "imagenet" else "",
        "data_digest": card.data_digest if card else "",
    }
    if task == "imagenet":
        return row | {"accuracy": IMAGENET_ACCURACY}
    if card is None:
        return row
    return (
        row
        | {key: card.metrics.get(key) for key in ("accuracy", "balanced_accuracy", "auc_roc")}
        | {"n_test": card.metrics.get("n")}
    )


def write_table1(cards: Mapping[str, WeightsCard | None], folder: Path) -> Path:
    """Writes table1.csv of some embedders; returns its path.

    Args:
        cards: embedder -> what its weights file says of itself.
        folder: where to.
    """
    return _write([table1_row(embedder, card) for embedder, card in cards.items()], folder)


def add_to_table1(embedder: str, card: WeightsCard, folder: Path) -> Path:
    """Adds the row of an embedder to the table1.csv of a folder, or replaces it; ImageNet's is always there."""
    there = {row["embedder"]: row for row in read_csv(folder, FILE)}
    rows: dict[str, dict[str, Any]] = {"alexnet-imagenet": table1_row("alexnet-imagenet", None), **there}
    rows[embedder] = table1_row(embedder, card)
    return _write(list(rows.values()), folder)


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
