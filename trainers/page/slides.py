"""Tables of scores: a row a slide, a row a case, and the cohort's AUC by the number of bags."""

from __future__ import annotations

from collections.abc import Sequence

from trainers.page.sheet import EMPTY, Cell, Column, Line, Sheet, number, numeric, small, span, texts, to_number
from trainers.page.sources import Sources
from trainers.results import Row, group
from trainers.tasks import SCORES

_ID = Column("Embedder", numeric=False)


def her2_name(cell: str | None) -> str:
    """`2+` of the 2 that a table has; a dash where the score is not known."""
    return SCORES[int(float(cell))] if cell else EMPTY


def slide_scores(sources: Sources) -> Sheet | None:
    """scores.csv; None where there is none yet."""
    rows = sources.scores
    if not rows:
        return None
    columns = [
        Column("Slide", numeric=False),
        Column("Case", numeric=False),
        _ID,
        Column("HER2 score"),
        Column("Predicted"),
        Column("Expected score", hint="sum of class × probability"),
        Column("mc_se", hint="numerical error of the expected score"),
        Column("Bag 2.5–97.5 %", hint="heterogeneity within the slide"),
        Column("model_sd", hint="SD over the models of the folds"),
        *(Column(f"p({name})") for name in sources.classes),
        *(Column(f"Bags for {name}", hint="share of the bags that vote for the class") for name in sources.classes),
        Column("Bags"),
        Column("Patches"),
    ]
    lines = [Line(_slide_cells(row, sources.classes), _facets(row)) for row in rows]
    caption = (
        "Scores of the slides of the fixed test set by Monte-Carlo bags, the models of all folds together. None of the "
        "numbers beside a score is a confidence interval of the patient's HER2 score."
    )
    return Sheet(caption, columns, lines, sortable=True)


def slides_without(sources: Sources, rows: Sequence[Row]) -> list[str]:
    """Slides of the fixed test set that a table has no row of, or not one of every embedder it has; sorted."""
    tested = {row["slide_id"] for row in sources.splits if row["split"] == "test"}
    by = [{row["slide_id"] for row in own} for _, own in group(rows, "embedder")]
    return sorted(tested - set.intersection(*by)) if by else []


def case_scores(sources: Sources) -> Sheet | None:
    """case_scores.csv; None where there is none yet."""
    rows = sources.case_scores
    if not rows:
        return None
    columns = [
        Column("Case", numeric=False),
        _ID,
        *map(Column, ("HER2 score", "Predicted", "Expected score", "mc_se", "model_sd")),
        *(Column(f"p({name})") for name in sources.classes),
        Column("Slides"),
    ]
    lines: list[Line] = []
    for row in rows:
        cells = texts(row["case_id"], row["embedder"])
        cells += [*_score_cells(row), *_small(row, "mc_se", "model_sd"), *_classes(row, "p", sources.classes)]
        lines.append(Line([*cells, numeric(to_number(row["n_slides"]), 0)], _facets(row)))
    return Sheet("Scores of the cases, each the mean of its slides.", columns, lines, sortable=True)


def _slide_cells(row: Row, classes: Sequence[str]) -> list[Cell]:
    low, high = to_number(row["bag_p2.5"]), to_number(row["bag_p97.5"])
    width = None if low is None or high is None else high - low
    cells = texts(row["slide_id"], row["case_id"], row["embedder"])
    cells += [*_score_cells(row), *_small(row, "mc_se"), Cell(span(low, high), order=width), *_small(row, "model_sd")]
    cells += [*_classes(row, "p", classes), *_classes(row, "votes", classes)]
    return cells + [numeric(to_number(row.get(key)), 0) for key in ("bags", "n_patches")]


def _score_cells(row: Row) -> list[Cell]:
    true, predicted = row["her2_score"], row["predicted"]
    return [
        Cell(her2_name(true), order=to_number(true)),
        Cell(row["predicted_score"], order=to_number(predicted)),
        numeric(to_number(row["expected_score"])),
    ]


def _small(row: Row, *keys: str) -> list[Cell]:
    values = [to_number(row.get(key)) for key in keys]
    return [Cell(small(value), order=value) for value in values]


def _classes(row: Row, name: str, classes: Sequence[str]) -> list[Cell]:
    return [numeric(to_number(row.get(f"{name}_{c}"))) for c in range(len(classes))]


def _facets(row: Row) -> tuple[tuple[str, str], ...]:
    return ("embedder", row["embedder"]), ("score", her2_name(row["her2_score"]))


def auc_by_bags(sources: Sources) -> Sheet | None:
    """auc_by_bags.csv, a row a number of bags; None where there is none yet."""
    rows = sources.auc_by_bags
    if not rows:
        return None
    by = {(row["embedder"], int(row["bags"])): row for row in rows}
    embedders, counts = list(dict.fromkeys(e for e, _ in by)), sorted({n for _, n in by})
    lines = [Line([Cell(f"{n:,}"), *(_auc(by.get((e, n))) for e in embedders)]) for n in counts]
    columns = [Column("Bags a slide", numeric=False), *map(Column, embedders)]
    repeats = rows[0].get("repeats")
    drawn = f", over {repeats} repeats" if repeats else ""
    caption = (
        "Macro AUC over the cases of the fixed test set by the number of bags that a slide is scored with; in brackets "
        f"the 2.5 and 97.5 percentiles over repeated drawings of the bags{drawn}, not over patients."
    )
    return Sheet(caption, columns, lines)


def _auc(row: Row | None) -> Cell:
    if row is None:
        return Cell(EMPTY)
    value, low, high = (to_number(row.get(key)) for key in ("auc", "auc_p2.5", "auc_p97.5"))
    return Cell(number(value) if low is None or high is None else f"{number(value)} ({span(low, high)})")
