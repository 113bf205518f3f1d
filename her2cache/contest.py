"""The folder of the HER2 Scoring Contest (University of Warwick, 2016) as a cohort.

01/01_HE.ndpi
01/01_HER2.ndpi      (or 01_Her2.ndpi)
04/...               (case numbers have gaps)
groundTruth.xlsx     header in the second row: CaseNo, HeR2 SCORE, PERCENTAGE CELLS WITH ...
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from her2cache.cells import parse_cell
from her2cache.errors import CohortError
from her2cache.scan import Finding, Found, Scan, assemble, list_files

_TRUTH = "groundTruth.xlsx"
_CASE_TITLE = "caseno"
_SCORE_TITLE = "her2 score"
_HEADER_WITHIN = 5  # rows searched for the header
_SLIDE = re.compile(r"(?P<case>\d+)/(?P=case)_(?P<stain>he|her2)\.ndpi", re.IGNORECASE)


def scan_her2contest(folder: Path) -> Scan:
    """Reads a folder of the contest's shape.

    A case without a score stays in the cohort, unlabelled; that, a score without a case and a missing slide
    of a pair are findings.

    Raises:
        CohortError: the folder or the workbook is missing or of another shape.
    """
    rows = _read_workbook(folder / _TRUTH)
    scores, findings = _scores(rows)
    found = list[Found]()
    stains = dict[int, set[str]]()
    for name in list_files(folder):
        if match := _SLIDE.fullmatch(str(name)):
            case = int(match["case"])
            stains.setdefault(case, set()).add(match["stain"].upper())
            score = str(scores.get(case, ""))
            found.append((name, {"case_id": match["case"], "stain": match["stain"], "her2_score": score}))
        elif str(name) != _TRUTH:
            findings.append(Finding(str(name), "is not NN/NN_HE.ndpi or NN/NN_HER2.ndpi"))
    findings += _gaps(stains, scores)
    return assemble(folder, found, findings, "the layout NN/NN_HE.ndpi, NN/NN_HER2.ndpi")


def _gaps(stains: dict[int, set[str]], scores: dict[int, int]) -> Iterator[Finding]:
    for case in sorted(stains.keys() | scores.keys()):
        name = f"case {case:02d}"
        if case not in stains:
            yield Finding(name, "has a score but no slide")
            continue
        if case not in scores:
            yield Finding(name, f"has no score in {_TRUTH}: its slides are written unlabelled")
        for stain in sorted({"HE", "HER2"} - stains[case]):
            yield Finding(name, f"has no {stain} slide")


def _read_workbook(path: Path) -> list[tuple[Any, ...]]:
    from openpyxl import load_workbook

    try:
        return list(load_workbook(path, data_only=True).worksheets[0].iter_rows(values_only=True))
    except FileNotFoundError:
        remedy = "put it there, or scan without labels: --pattern '{case_id}_{stain}'"
        raise CohortError(f"{path} does not exist, but holds the scores in this layout: {remedy}") from None
    except (OSError, BadZipFile, LookupError, ValueError) as error:
        raise CohortError(f"{path} is no workbook that can be read ({error}): download it again") from error


def _scores(rows: list[tuple[Any, ...]]) -> tuple[dict[int, int], list[Finding]]:
    """The score of each case, and the rows of the workbook that give none."""
    titles = [[_text(cell).casefold() for cell in row] for row in rows[:_HEADER_WITHIN]]
    header = next((i for i, row in enumerate(titles) if {_CASE_TITLE, _SCORE_TITLE} <= set(row)), None)
    if header is None:
        raise CohortError(
            f"{_TRUTH} has no CaseNo and HeR2 SCORE in one of its first {_HEADER_WITHIN} rows: "
            "it is not the contest's; download it again"
        )
    case_column, score_column = (titles[header].index(title) for title in (_CASE_TITLE, _SCORE_TITLE))
    scores = dict[int, int]()
    findings = list[Finding]()
    for number, row in enumerate(rows[header + 1 :], header + 2):
        case_text, score_text = _text(row[case_column]), _text(row[score_column])
        if not case_text or not score_text:
            continue
        place = f"{_TRUTH} row {number}"
        try:
            case, score = int(float(case_text)), int(parse_cell("her2_score", score_text) or 0)
        except (ValueError, CohortError) as error:
            findings.append(Finding(place, f"is left out: {error}"))
            continue
        if scores.setdefault(case, score) != score:
            findings.append(Finding(place, f"scores case {case:02d} {score} after {scores[case]}: left out"))
    return scores, findings


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()
