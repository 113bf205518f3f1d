"""Tables of results: the headline, the paper's Tables 1 and 2, comparisons, baselines, and every metric."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from trainers.cases import CaseLevel
from trainers.metrics import MACRO
from trainers.page.sheet import EMPTY, Cell, Column, Line, Sheet, number, span, texts, to_number, with_half
from trainers.page.sources import Sources
from trainers.resampling import FEW_CASES
from trainers.results import Row
from trainers.table2 import CI_CAPTION, LEVELS, metric_rows

EMBEDDER = Column("Patch embedder", numeric=False)
METRICS = {
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1 score",
    "auc": "AUC-ROC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "quadratic_kappa": "Quadratic kappa",
    "mae": "Mean absolute error",
    "expected_score_mae": "Mean absolute error of the expected score",
}


def nested(sources: Sources) -> Sheet | None:
    """The headline; None where there is no nested cross-validation."""
    found = sources.found
    if not found.nested:
        return None
    lost = " ".join(f"{embedder} is missing: {why}." for embedder, why in found.without_headline.items())
    caption = (
        f"Nested cross-validation, pooled by case over {found.outer_folds} outer folds: every case is predicted once, "
        f"by models that have not seen it and were chosen without it. {_cases(found.nested)} {lost}"
    )
    return _by_case(sources, found.nested, caption)


def fixed(sources: Sources) -> Sheet | None:
    """The fixed test set by case; None where every run of it failed."""
    found = sources.found
    if not found.fixed:
        return None
    caption = f"The fixed test set by case: the folds' models together, one prediction a case. {_cases(found.fixed)}"
    return _by_case(sources, found.fixed, caption)


def _by_case(sources: Sources, levels: Mapping[str, CaseLevel], caption: str) -> Sheet:
    ordered = list(enumerate(sources.classes))[1:] if len(sources.classes) > 2 else []
    columns = [
        EMBEDDER,
        Column("AUC-ROC"),
        Column("Chance range of AUC"),
        *(Column(f"AUC ≥ {name}") for _, name in ordered),
    ]
    columns += [Column("Quadratic kappa"), Column("MAE")]
    lines: list[Line] = []
    for embedder in sources.found.embedders:
        if level := levels.get(embedder):
            first, kappa, mae = (_with_range(level, key) for key in ("auc", "quadratic_kappa", "mae"))
            chance = level.chance["auc"]
            of_chance = span(chance.low, chance.high) if chance else EMPTY
            above = (number(level.values[f"auc_ge_{c}"]) for c, _ in ordered)
            lines.append(Line(texts(embedder, first, of_chance, *above, kappa, mae)))
    more = (
        "In brackets: 95 % bootstrap of cases within their class. Chance: labels permuted. "
        "MAE: mean absolute error of the predicted class, in classes. "
        + ("AUC ≥: that class or above against those below." if ordered else "")
    )
    return Sheet(f"{caption} {more}", columns, lines)


def _cases(levels: Mapping[str, CaseLevel]) -> str:
    level = next(iter(levels.values()))
    few = "" if all(each.reliable for each in levels.values()) else f"; unreliable under {FEW_CASES} cases a class"
    return f"n = {len(level.cases.ids)} cases ({level.cases.named()} a class{few})."


def _with_range(level: CaseLevel, metric: str) -> str:
    value, found = level.values[metric], level.bootstrap[metric]
    return number(value) if value is None or found is None else f"{number(value)} ({span(found.low, found.high)})"


def table1(sources: Sources) -> Sheet | None:
    """The paper's Table 1; None where the sweep has no file of it."""
    if not sources.table1:
        return None
    columns = [
        Column("Source task", numeric=False),
        EMBEDDER,
        *map(Column, ("Classes", "Accuracy", "Balanced accuracy", "AUC-ROC", "Test patches")),
        Column("Measured", numeric=False),
    ]
    lines: list[Line] = []
    for row in sources.table1:
        accuracies = (to_number(row.get(key)) for key in ("accuracy", "balanced_accuracy"))
        percent = (EMPTY if a is None else f"{100 * a:.0f} %" for a in accuracies)
        auc, n = (number(to_number(row.get(key)), d, EMPTY) for key, d in (("auc_roc", 2), ("n_test", 0)))
        cells = (row["source_task"], row["embedder"], row["classes"] or EMPTY, *percent, auc, n)
        lines.append(Line(texts(*cells, row.get("measured") or EMPTY)))
    caption = "Table 1. The performance of the networks on their source tasks, before they became patch embedders."
    return Sheet(caption, columns, lines)


def table2(sources: Sources) -> Sheet | None:
    """The paper's Table 2, with the slide level beneath; None where every run of the fixed test set failed."""
    if not sources.table2:
        return None
    columns = [
        EMBEDDER,
        *(Column(METRICS[metric]) for metric in MACRO),
        Column("Learning rate"),
        Column("Weight decay"),
    ]
    lines: list[Line] = []
    for level, name in LEVELS.items():
        text = {"bag": f"{name}: every bag of a test slide counts", "slide": f"{name}: one prediction a slide"}[level]
        lines.append(Line([Cell(text)], heading=True))
        for row in sources.table2:
            if row["level"] == level:
                cells = (with_half(row[metric], row[f"{metric}_ci95"]) for metric in MACRO)
                rates = (f"{row[key]:g}" for key in ("learning_rate", "weight_decay"))
                lines.append(Line(texts(row["embedder"], *cells, *rates)))
    first = sources.table2[0]
    caption = (
        f"Table 2. Average precision, recall, F1 score and AUC-ROC across the {len(sources.classes)} classes, "
        f"{first['n_folds']} folds. {CI_CAPTION}. {sources.found.test_set()}; {first['n_slides']} slides, "
        f"{first['n_bags']:,} bags."
    )
    return Sheet(caption, columns, lines)


def comparisons(sources: Sources) -> Sheet | None:
    """Every embedder against the best; None for a single one."""
    found = sources.found
    if not found.comparisons:
        return None
    columns = [
        EMBEDDER,
        *map(Column, ("AUC", "AUC of the best", "Difference (range)", "Level of the range", "p, Holm-corrected")),
        Column("Told apart", numeric=False),
    ]
    lines = [
        Line(
            texts(
                each.embedder,
                number(each.auc),
                number(each.best_auc),
                f"{number(each.difference)} ({span(each.low, each.high)})",
                f"{100 * each.level:.3g} %",
                f"{each.p_holm:.2g}",
                "yes" if each.distinguishable else "no",
            )
        )
        for each in found.comparisons
    ]
    first = found.comparisons[0]
    few = "" if first.reliable else f"; unreliable under {FEW_CASES} cases a class"
    caption = (
        f"Each embedder against {first.best}, the best on these cases: paired bootstrap of {first.n_cases} cases "
        f"({found.compared_on}) of the difference in case-level AUC, Holm-corrected. An embedder is told apart where "
        f"the range leaves out 0, else the two are not distinguishable{few}."
    )
    return Sheet(caption, columns, lines)


def baselines(sources: Sources) -> Sheet | None:
    """What an attention model has to beat; None where the sweep has no file of it."""
    rows = sources.baselines
    if not rows:
        return None
    there = {"nested": "nested"} if "nested_auc" in rows[0] else {"cv": "training cases, cross-validated"}
    there |= {"test": "fixed test set"}
    columns = [Column("Baseline", numeric=False), Column("Features of", numeric=False)]
    over: list[tuple[str, int]] = [("", 2)]
    for title in there.values():
        columns += [Column("AUC"), Column("Chance"), Column("Cases")]
        over.append((title, 3))
    lines: list[Line] = []
    for row in rows:
        cells = texts(row["baseline"], row["embedder"] or EMPTY)
        for key in there:
            auc, chance = _range_of(row, f"{key}_auc"), _range_of(row, f"{key}_chance")
            cells += texts(_auc_cell(to_number(row[f"{key}_auc"]), auc), chance, row[f"{key}_cases"] or EMPTY)
        lines.append(Line(cells))
    caption = (
        "Baselines, macro AUC by case: logistic regression on the mean features of a slide, on its colour statistics "
        "alone, and on mean features with the labels of the training cases dealt anew. In brackets: 95 % bootstrap of "
        "cases."
    )
    return Sheet(caption, columns, lines, over=over)


def _range_of(row: Row, key: str) -> str:
    return span(to_number(row.get(f"{key}_low")), to_number(row.get(f"{key}_high")))


def _auc_cell(auc: float | None, interval: str) -> str:
    return EMPTY if auc is None else f"{number(auc)} ({interval})"


def metrics(sources: Sources) -> Sheet | None:
    """Every metric of metrics.csv, of all classes together and of each."""
    found = sources.found
    if not found.selected:
        return None
    has_nested = bool(found.outer_folds)
    titles = ["Paper protocol (bags)", "Slide level", "Fixed test set, by case", "chance"]
    titles += ["Nested, by case", "chance"] if has_nested else []
    columns = [EMBEDDER, Column("Metric", numeric=False), Column("Class", numeric=False), *map(Column, titles)]
    levels = ["case_level", "nested"] if has_nested else ["case_level"]
    lines = list(_metric_lines(metric_rows(found), levels, sources.classes))
    caption = "Every metric of every embedder. ±: fold_ci95. In brackets: 95 % bootstrap of cases."
    return Sheet(caption, columns, lines, sortable=True)


def _metric_lines(rows: Sequence[Row], levels: Sequence[str], classes: Sequence[str]) -> Iterator[Line]:
    for row in rows:
        metric = row["metric"]
        name = METRICS[metric] if metric in METRICS else _ordinal(metric, classes)
        cells = texts(row["embedder"], name, "all" if row["class"] is None else row["class"])
        for key in ("paper_protocol", "slide_level"):
            cells.append(Cell(with_half(row[key], row[f"{key}_ci95"]), order=row[key]))
        for key in levels:
            interval, chance = (span(row[f"{key}{of}_low"], row[f"{key}{of}_high"]) for of in ("", "_chance"))
            cells += [Cell(_auc_cell(row[key], interval), order=row[key]), Cell(chance)]
        facets = (("embedder", row["embedder"]), ("metric", name))
        yield Line(cells, facets)


def _ordinal(metric: str, classes: Sequence[str]) -> str:
    """Of `auc_ge_2`: the AUC of that class or above against those below."""
    return f"AUC, class {classes[int(metric.rpartition('_')[2])]} or above"
