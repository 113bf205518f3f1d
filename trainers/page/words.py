"""What the page says in sentences: the headline, what intervals mean, what the study cannot say (science.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from trainers.cases import CaseLevel
from trainers.page.sheet import number, span, with_half
from trainers.page.sources import Sources
from trainers.resampling import FEW_CASES, Interval

SYNTHETIC = (
    "This cohort is synthetic; the link between score and morphology was put in at rho 0.85; "
    "ranks of embedders here say nothing about real tissue."
)

NO_HEADLINE = (
    "This sweep has no nested cross-validation, which tests every case once by models that have not seen it, so it has "
    "no headline. Set nested = 5 under [splits] in the experiment file and sweep again."
)


def notes(sources: Sources) -> list[str]:
    """What a reader must know before any number."""
    return [*([SYNTHETIC] if sources.synthetic else []), *sources.found.notes]


def headline(sources: Sources) -> Iterator[str]:
    """What was found, in plain sentences."""
    found = sources.found
    if found.nested:
        best = next(embedder for embedder in found.embedders if embedder in found.nested)
        yield f"Nested cross-validation, pooled by case: {_best_of(found.nested, best)}"
    else:
        yield (
            NO_HEADLINE if not found.outer_folds else "Nested cross-validation gave no embedder a headline; see below."
        )
        if found.fixed:
            best = max(found.fixed, key=lambda e: found.fixed[e].values["auc"] or -1.0)
            yield f"The fixed test set alone, by case: {_best_of(found.fixed, best)}"
    if found.comparisons:
        told, others = sum(each.distinguishable for each in found.comparisons), len(found.comparisons)
        of = f"{told or 'none'} of the {others} others" if others > 1 else "the other"
        can = "can" if told or others > 1 else "cannot"
        yield f"By the paired comparison of cases, {found.comparisons[0].best} {can} be told apart from {of}."
    bags = [row for row in sources.table2 if row["level"] == "bag" and row["auc"] is not None]
    if bags:
        first = bags[0]
        has = "comes first with" if len(bags) > 1 else "has"
        yield (
            f"Under the paper's protocol (bags of the fixed test set, mean ± fold_ci95 over {first['n_folds']} folds), "
            f"{first['embedder']} {has} a macro AUC of {with_half(first['auc'], first['auc_ci95'])}; its "
            f"{first['n_bags']:,} bags are of only {first['n_cases']} cases."
        )


def _best_of(levels: Mapping[str, CaseLevel], best: str) -> str:
    level = levels[best]
    said = f"{_auc(level)}. {_against_chance(level)}"
    if len(levels) == 1:
        return f"{best} has a {said}"
    return f"the best of {len(levels)} embedders is {best}, with a {said} Being chosen on these very cases flatters it."


def _auc(level: CaseLevel) -> str:
    found = level.bootstrap["auc"]
    caveat = "" if level.reliable else f", unreliable with fewer than {FEW_CASES} cases a class"
    interval = f" (95 % bootstrap of cases {span(found.low, found.high)}{caveat})" if found else ""
    return f"macro AUC of {number(level.values['auc'])}{interval} over {len(level.cases.ids)} cases"


def _against_chance(level: CaseLevel) -> str:
    value, chance = level.values["auc"], level.chance["auc"]
    if value is None or chance is None:
        return "Chance cannot be told: a class is missing."
    dealt = f"Labels dealt by chance reach {span(chance.low, chance.high)}"
    if value > chance.high:
        return f"{dealt}, so this is above chance."
    return f"{dealt}, so this is within what chance alone reaches."


def intervals(sources: Sources) -> list[tuple[str, str]]:
    """What each range on the page means: name, meaning."""
    folds = max((row["n_folds"] for row in sources.table2), default=0)
    meanings = [
        (
            "± (fold_ci95)",
            "1.96 × SD / √K over the training folds (the paper's equation 3, SD with K − 1). It is the spread over "
            "folds of training data on one fixed test set, not over patients, and no test of a difference; by "
            f"simulation it covers 88 % at K = 5. Here K = {folds}.",
        ),
        (
            "95 % bootstrap of cases",
            "2.5 and 97.5 percentiles of 2,000 resamplings of cases within their class: how the number might have come "
            f"out with other patients like these. With fewer than {FEW_CASES} cases a class it is marked unreliable.",
        ),
        (
            "chance range",
            "2.5 and 97.5 percentiles of the same metric when labels are dealt to the cases by chance. A number inside "
            "it is no evidence of skill.",
        ),
        (
            "range of a difference",
            "paired bootstrap of cases of the best embedder's AUC minus another's, at a level raised by Holm's method "
            "for the number of comparisons. The best is chosen on the same cases, which flatters it.",
        ),
    ]
    if sources.scores:
        meanings += [
            (
                "mc_se",
                "standard error of a slide's expected score from drawing finitely many bags: a numerical error, which "
                "more bags make as small as one likes.",
            ),
            (
                "bag 2.5–97.5 %",
                "percentiles of the expected score over single bags of one slide: how heterogeneous the slide is.",
            ),
            ("model_sd", "standard deviation of a slide's expected score over the models of the folds."),
        ]
    if sources.auc_by_bags:
        meanings.append(
            (
                "range over drawings",
                "in the plot of AUC against bags: 2.5 and 97.5 percentiles over repeated drawings of the bags from the "
                "same slides, not over patients.",
            )
        )
    return meanings


def limits(sources: Sources) -> Iterator[str]:
    """What the study cannot say."""
    found = sources.found
    levels = list((found.nested or found.fixed).values())
    if levels:
        cases = levels[0].cases
        by_class = ", ".join(f"{n} of {name}" for name, n in zip(found.task.classes, cases.per_class, strict=True))
        chance = [c for level in levels if (c := level.chance["auc"]) is not None]
        reach = f"; chance alone reaches a macro AUC of {_widest(chance)}" if chance else ""
        n = f"n = {len(cases.ids)} cases ({by_class})"
        yield f"The case is the unit: {n}{reach}. Bags and slides of a case add none."
    yield (
        "No interval here is a confidence interval of a patient's HER2 score; mc_se, bag percentiles and model_sd "
        "measure the computation, the slide and the training."
    )
    yield (
        "Nothing here says how a model does on slides of another laboratory, scanner or staining: all cases come from "
        "one cohort."
    )
    yield (
        "An attention map shows what the model weighs, not where HER2 is expressed; its ranks are attention's, so a "
        "negative slide glows as well."
    )
    if len(found.embedders) > 1:
        yield (
            "Embedders were compared with one learning-rate and weight-decay search each; another scale of features, "
            "other bags or longer training may rank them otherwise."
        )
    if sources.synthetic:
        n = len({row["case_id"] for row in sources.splits}) or (len(levels[0].cases.ids) if levels else 0)
        yield f"{SYNTHETIC} n = {n} cases in all."


def _widest(ranges: Sequence[Interval]) -> str:
    return span(min(r.low for r in ranges), max(r.high for r in ranges))
