"""What an attention model has to beat, on the same cases: logistic regression on a slide's mean features, on its colour
statistics alone, and on mean features with the labels of the training cases dealt anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from trainers.features import SlideFeatures
from trainers.resampling import Interval, bootstrap_auc, by_case, macro_auc, null_range
from trainers.splits import Assignment, Splits

POOLED, COLOUR, PERMUTED = "mean-pooled features", "colour statistics", "permuted labels"
PENALTY = 1e-2
"""C of the logistic regression on standardised numbers: strong, as there are more features than slides."""

_ROWS = 4096  # converted to float32 at once

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Baseline:
    """A baseline on the cases of a sweep; AUCs are macro AUCs over cases.

    Attributes:
        name: one of `POOLED`, `COLOUR`, `PERMUTED`.
        embedder: whose features; "" for colours.
        test: of the test cases, trained on all others.
        bootstrap, chance: ranges of `test`, see `trainers.resampling`.
        crossed: of the training cases, each predicted by a model of the folds that it is not in.
        crossed_chance: range of `crossed` when labels are dealt by chance.
    """

    name: str
    embedder: str
    test: float | None
    bootstrap: Interval | None
    chance: Interval | None
    crossed: float | None
    crossed_chance: Interval | None

    def row(self) -> dict[str, Any]:
        """As a row of baselines.csv."""
        ranges = {"test_auc": self.bootstrap, "test_chance": self.chance, "cv_chance": self.crossed_chance}
        row: dict[str, Any] = {"baseline": self.name, "embedder": self.embedder, "test_auc": self.test}
        row["cv_auc"] = self.crossed
        for name, found in ranges.items():
            row |= {f"{name}_low": found and found.low, f"{name}_high": found and found.high}
        row["test_cases"] = self.chance and sum(self.chance.cases)
        row["cv_cases"] = self.crossed_chance and sum(self.crossed_chance.cases)
        return row


def mean_features(features: SlideFeatures, slides: Sequence[Assignment]) -> Floats:
    """Mean over the patches of each slide, view 0; (slides, dim)."""
    means: list[Floats] = []
    for slide in slides:
        table = features[slide.slide_id][0]  # (patches, dim)
        parts = [table[k : k + _ROWS].astype(np.float32).sum(axis=0, dtype=np.float64) for k in _starts(len(table))]
        means.append(np.sum(parts, axis=0) / len(table))
    return np.stack(means)


def _starts(rows: int) -> range:
    return range(0, rows, _ROWS)


def baselines(
    pooled: Mapping[str, Floats], colours: Floats | None, splits: Splits, classes: int, seed: int = 0
) -> list[Baseline]:
    """Fits every baseline.

    Args:
        pooled: embedder -> mean features of every slide of the splits, (slides, dim).
        colours: colour statistics of the slides, (slides, numbers); None where the store has none.
        splits: slides, test set and folds.
        classes: of the task.
        seed: of the permuted labels.
    """
    rows = [_baseline(POOLED, embedder, x, splits, classes) for embedder, x in pooled.items()]
    if colours is not None:
        rows.append(_baseline(COLOUR, "", colours, splits, classes))
    dealt = _dealt(splits, seed)
    return [*rows, *(_baseline(PERMUTED, embedder, x, dealt, classes, truth=splits) for embedder, x in pooled.items())]


def _dealt(splits: Splits, seed: int) -> Splits:
    """The splits with the labels of the training cases dealt anew, a whole case at a time."""
    of_case = {s.case_id: s.label for s in splits.slides if s.split == "train"}
    labels = np.random.default_rng(seed).permutation(list(of_case.values())).tolist()
    new = dict(zip(of_case, labels, strict=True))
    slides = tuple(
        Assignment(s.slide_id, s.case_id, s.her2_score, new.get(s.case_id, s.label), s.split, s.fold)
        for s in splits.slides
    )
    return Splits(slides, splits.folds, splits.warnings)


def _baseline(
    name: str, embedder: str, x: Floats, splits: Splits, classes: int, truth: Splits | None = None
) -> Baseline:
    """Trains with the labels of `splits`, and is judged by those of `truth`."""
    position = {s.slide_id: k for k, s in enumerate(splits.slides)}
    judged = (truth or splits).slides

    def predict(training: Sequence[Assignment], asked: Sequence[Assignment]) -> Floats:
        # balanced: a class that a fold holds back is rarer where it trains, and pooled over folds that would count as
        # evidence against it
        regression = LogisticRegression(C=PENALTY, max_iter=2000, class_weight="balanced")
        model = make_pipeline(StandardScaler(), regression)
        model.fit(x[[position[s.slide_id] for s in training]], [s.label for s in training])
        p = np.zeros((len(asked), classes))
        p[:, model.classes_] = model.predict_proba(x[[position[s.slide_id] for s in asked]])
        return p

    def cases(asked: Sequence[Assignment], p: Floats) -> tuple[NDArray[np.int64], Floats]:
        own = [judged[position[s.slide_id]] for s in asked]
        _, y, by = by_case([s.case_id for s in own], [s.label for s in own], p)
        return y, by

    y, p = cases(splits.test, predict([s for s in splits.slides if s.split == "train"], splits.test))
    held = [splits.validation(fold) for fold in range(splits.folds)]
    crossed = np.concatenate([predict(splits.training(fold), held[fold]) for fold in range(splits.folds)])
    cy, cp = cases([s for fold in held for s in fold], crossed)
    return Baseline(
        name=name,
        embedder=embedder,
        test=macro_auc(y, p),
        bootstrap=bootstrap_auc(y, p),
        chance=null_range(y, p),
        crossed=macro_auc(cy, cp),
        crossed_chance=null_range(cy, cp),
    )
