"""The cells of a cohort table: text in, a value or one clear fault out."""

from __future__ import annotations

import re
from collections.abc import Callable

from her2cache.errors import CohortError
from her2cache.ids import encode_slide_id
from her2cache.tissue import THRESHOLDS
from her2cache.units import MPP_RANGE

STAINS = {"he": "HE", "h&e": "HE", "ihc": "IHC", "her2": "IHC"}
SPLITS = ("train", "test")
LIMITS = {**THRESHOLDS, "min_tissue": (0.0, 1.0)}
"""The columns that replace a threshold for one slide, with the least and the largest value of each."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def parse_cell(column: str, cell: str) -> str | int | float | bool | None:
    """Reads one cell.

    Args:
        column: a column of the cohort table.
        cell: its text, stripped.

    Returns:
        The value as `Slide` holds it (a path as text); None for an empty cell where that is allowed.

    Raises:
        CohortError: the text is no value of this column.
    """
    return _parse_threshold(column, cell) if column in LIMITS else _PARSERS[column](cell)


def _parse_text(cell: str) -> str:
    if not cell:
        raise CohortError("the cell is empty: fill it in")
    if _UNPRINTABLE.search(cell):
        raise CohortError(f"{cell!r} holds a line break or another character that cannot be printed: remove it")
    return cell


def _parse_slide_id(cell: str) -> str:
    encode_slide_id(_parse_text(cell))
    return cell


def _parse_stain(cell: str) -> str:
    if cell.casefold() not in STAINS:
        raise CohortError(f"{cell!r} is no stain: write HE (or H&E) or IHC (or HER2)")
    return STAINS[cell.casefold()]


def _parse_score(cell: str) -> int | None:
    match = re.fullmatch(r"([0-3])(?:\.0*)?|([1-3])\+", cell)
    if cell and not match:
        raise CohortError(f"{cell!r} is no HER2 score: write 0, 1, 2 or 3 (or 1+, 2+, 3+), or leave it empty")
    return int(cell[0]) if match else None


def _parse_ish(cell: str) -> bool | None:
    words = {"+": True, "positive": True, "amplified": True, "-": False, "negative": False, "not amplified": False}
    if cell and cell.casefold() not in words:
        raise CohortError(f"{cell!r} is no result of in situ hybridisation: write + or -, or leave it empty")
    return words[cell.casefold()] if cell else None


def _parse_split(cell: str) -> str | None:
    if cell and cell.casefold() not in SPLITS:
        raise CohortError(f"{cell!r} is no split: write train or test, or leave it empty (folds are made by sweep)")
    return cell.casefold() or None


def _parse_mpp(cell: str) -> float | None:
    return _parse_number(cell, MPP_RANGE, "micrometres per pixel of level 0, such as 0.25")


def _parse_optional_text(cell: str) -> str | None:
    return _parse_text(cell) if cell else None


def _parse_threshold(column: str, cell: str) -> float | None:
    return _parse_number(cell, LIMITS[column], "degrees for a hue, um2 for an area, else a share of 1")


def _parse_number(cell: str, limits: tuple[float, float], meaning: str) -> float | None:
    low, high = limits
    try:
        value = float(cell) if cell else None
    except ValueError:
        raise CohortError(f"{cell!r} is no number with a decimal point: write {meaning}, or leave it empty") from None
    if value is not None and not low <= value <= high:  # NaN fails the comparison as well
        raise CohortError(f"{cell} is not between {low:g} and {high:g}: write {meaning}, or leave it empty")
    return value


_PARSERS: dict[str, Callable[[str], str | int | float | bool | None]] = {
    "slide_id": _parse_slide_id,
    "case_id": _parse_text,
    "path": _parse_text,
    "stain": _parse_stain,
    "her2_score": _parse_score,
    "split": _parse_split,
    "mpp": _parse_mpp,
    "regions": _parse_optional_text,
    "ish": _parse_ish,
}
