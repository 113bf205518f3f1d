"""Tables whose cells are shaded by their numbers: confusion matrices and the validation loss of the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainers.confusion import Confusion
from trainers.grid import axes_of, limits, short
from trainers.page.sheet import EMPTY, Cell, Column, Line, Sheet, number
from trainers.page.sources import Sources
from trainers.results import Row

BEST_OF_A_SEARCH = 10


@dataclass(frozen=True)
class Panel:
    """One of several tables that the page's controls choose from.

    Attributes:
        facets: what it is chosen by: name -> value.
        sheet: the table.
    """

    facets: Sequence[tuple[str, str]]
    sheet: Sheet


def confusion_panels(sources: Sources) -> list[Panel]:
    """A confusion matrix an embedder and level."""
    return [_confusion(one, sources.classes) for one in sources.confusions]


def _confusion(one: Confusion, classes: Sequence[str]) -> Panel:
    lines: list[Line] = []
    for i, name in enumerate(classes):
        cells = [Cell(name)]
        for j in range(len(classes)):
            share, count = float(one.shares[i, j]), f"{int(one.counts[i, j]):,}"
            known = not np.isnan(share)
            text = f"{count} ({100 * share:.0f} %)" if known else EMPTY
            cells.append(Cell(text, share=share if known else None, marked=i == j))
        lines.append(Line(cells))
    columns = [Column("True class", numeric=False), *map(Column, classes)]
    over = [("", 1), ("Predicted class", len(classes))]
    models = f", counted once for each of {one.models} models" if one.models > 1 else ""
    sheet = Sheet(f"{one.embedder}: {one.level}{models}", columns, lines, over=over)
    return Panel((("embedder", one.embedder), ("level", one.level)), sheet)


def grid_panels(sources: Sources) -> list[Panel]:
    """Mean validation loss an embedder: over the grid, or of the best draws of a search."""
    rates, decays = axes_of(sources.tried)
    return [
        Panel(
            (("embedder", embedder),),
            _grid(embedder, rows, rates, decays) if rates else _best(embedder, rows),
        )
        for embedder, rows in sources.tried.items()
    ]


def _grid(embedder: str, rows: Sequence[Row], rates: Sequence[float], decays: Sequence[float]) -> Sheet:
    by = {(row["learning_rate"], row["weight_decay"]): row for row in rows}
    lines = [Line([Cell(short(rate)), *(_loss(by[rate, decay], rows) for decay in decays)]) for rate in rates]
    columns = [Column("Learning rate", numeric=False), *(Column(short(decay)) for decay in decays)]
    return Sheet(embedder, columns, lines, over=[("", 1), ("Weight decay", len(decays))])


def _best(embedder: str, rows: Sequence[Row]) -> Sheet:
    known = sorted((row for row in rows if row["val_loss"] is not None), key=lambda row: row["val_loss"])
    shown = known[:BEST_OF_A_SEARCH]
    lines = [
        Line([Cell(f"{row['learning_rate']:.3g}"), Cell(f"{row['weight_decay']:.3g}"), _loss(row, rows)])
        for row in shown
    ]
    columns = [Column("Learning rate", numeric=False), Column("Weight decay"), Column("Validation loss")]
    return Sheet(f"{embedder}: the best {len(shown)} of {len(rows)} configurations", columns, lines)


def _loss(row: Row, rows: Sequence[Row]) -> Cell:
    loss = row["val_loss"]
    if loss is None:
        return Cell("failed", marked=row["selected"])
    low, high = limits(rows)
    share = min(1.0, max(0.0, (high - loss) / (high - low)))  # the darker, the better
    return Cell(number(loss, 3), share=share, marked=row["selected"])
