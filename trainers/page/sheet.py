"""Tables of the page, and how numbers are written in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

UNDEFINED = "undefined"
EMPTY = "–"
_MINUS = "−"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it shows.
        order: what it is sorted by, where that is not its text.
        share: how dark it is shaded, 0 to 1; None for none.
        marked: whether it is framed, or set apart otherwise.
    """

    text: str
    order: float | str | None = None
    share: float | None = None
    marked: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        numeric: whether its cells are flush right.
        hint: what the heading means, where that is not plain.
    """

    title: str
    numeric: bool = True
    hint: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table; the first cell is its heading.

    Attributes:
        cells: one a column.
        facets: what the page's controls filter rows by: name -> value.
        heading: whether the row is a heading of those below, spanning all columns.
    """

    cells: Sequence[Cell]
    facets: Sequence[tuple[str, str]] = ()
    heading: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table of the page.

    Attributes:
        caption: what it shows and rests on.
        columns: of it.
        lines: of it.
        over: headings over the columns: (title, columns spanned).
        sortable: whether a click on a heading sorts it.
    """

    caption: str
    columns: Sequence[Column]
    lines: Sequence[Line]
    over: Sequence[tuple[str, int]] = ()
    sortable: bool = False


def to_number(text: str | None) -> float | None:
    """The number in a cell of a CSV file."""
    return float(text) if text else None


def number(value: float | None, digits: int = 2, missing: str = UNDEFINED) -> str:
    """With a true minus sign, and no minus before zero."""
    if value is None:
        return missing
    text = f"{value:,.{digits}f}"
    if text.startswith("-"):
        text = _MINUS + text[1:] if text.strip("-0.,") else text[1:]
    return text


def with_half(mean: float | None, half: float | None, digits: int = 3) -> str:
    """`0.622 ± 0.027`, as in the paper's Table 2."""
    text = number(mean, digits)
    return text if mean is None or half is None else f"{text} ± {number(half, digits)}"


def span(low: float | None, high: float | None, digits: int = 2) -> str:
    """`0.35–0.65`; `to` where a number is below zero."""
    if low is None or high is None:
        return EMPTY
    return f"{number(low, digits)}{' to ' if low < 0 else '–'}{number(high, digits)}"


def small(value: float | None) -> str:
    """A number that may be tiny, with two digits that count: `0.00011`, `2.1e-06`."""
    return EMPTY if value is None else f"{value:#.2g}"


def numeric(value: float | None, digits: int = 2, missing: str = EMPTY) -> Cell:
    """A cell that is sorted by its number."""
    return Cell(number(value, digits, missing), order=value)


def texts(*values: str) -> list[Cell]:
    """Cells of plain text."""
    return [Cell(value) for value in values]
