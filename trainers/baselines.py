"""What an attention model has to beat, on the same cases: logistic regression on a slide's mean features, on its colour
statistics alone, and on mean features with the labels of the training cases dealt anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from trainers.features import SlideFeatures
from trainers.replicates import replicate_auc
from trainers.resampling import Floats, Interval, Labels, by_case, permuted, resampled, truth
from trainers.splits import Assignment, Splits

POOLED, COLOUR, PERMUTED = "mean-pooled features", "colour statistics", "permuted labels"
PENALTY = 1e-2
"""C of the logistic regression on standardised numbers: strong, as there are more features than slides."""

_ROWS = 4096  # converted to float32 at once


@dataclass(frozen=True)
class Score:
    """A macro AUC over cases.

    Attributes:
        auc: the AUC; None when the cases are of one class.
        bootstrap, chance: its ranges, see `trainers.resampling`.
        cases: how many.
    """

    auc: float | None
    bootstrap: Interval | None
    chance: Interval | None
    cases: int

    def columns(self, name: str) -> dict[str, Any]:
        """As columns of baselines.csv."""
        ranges = {f"{name}_auc": self.bootstrap, f"{name}_chance": self.chance}
        row: dict[str, Any] = {f"{name}_auc": self.auc}
        for key, found in ranges.items():
            row |= {f"{key}_low": found and found.low, f"{key}_high": found and found.high}
        return row | {f"{name}_cases": self.cases}


@dataclass(frozen=True)
class Baseline:
    """A baseline on the cases of a sweep.

    Attributes:
        name: one of `POOLED`, `COLOUR`, `PERMUTED`.
        embedder: whose features; "" for colours.
        test: of the fixed test cases, trained on all others.
        crossed: of the training cases, each predicted by a model of the folds that it is not in.
        nested: of all cases, each predicted by a model of the outer folds that it is not in; None without these, and
            for an embedder that takes no part in them.
    """

    name: str
    embedder: str
    test: Score
    crossed: Score
    nested: Score | None

    def row(self, *, nested: bool) -> dict[str, Any]:
        """As a row of baselines.csv; `nested` says whether the file has columns of a nested cross-validation."""
        row = {"baseline": self.name, "embedder": self.embedder, **self.test.columns("test")}
        row |= self.crossed.columns("cv")
        if self.nested:
            return row | self.nested.columns("nested")
        return row | (dict.fromkeys(self.test.columns("nested")) if nested else {})


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
    pooled: Mapping[str, Floats],
    colours: Floats | None,
    splits: Splits,
    classes: int,
    seed: int = 0,
    nested: Sequence[Splits] = (),
    only_fixed: Collection[str] = (),
) -> list[Baseline]:
    """Fits every baseline.

    Args:
        pooled: embedder -> mean features of every slide of the splits, (seeds of the embedder, slides, dim).
        colours: colour statistics of the slides, (slides, numbers); None where the store has none.
        splits: slides, test set and folds.
        classes: of the task.
        seed: of the permuted labels.
        nested: outer folds of the same slides.
        only_fixed: embedders that take no part in these.
    """

    def outer(embedder: str, folds: Sequence[Splits]) -> Sequence[Splits]:
        return () if embedder in only_fixed else folds

    rows = [(POOLED, embedder, x, splits, outer(embedder, nested)) for embedder, x in pooled.items()]
    if colours is not None:
        rows.append((COLOUR, "", colours[None], splits, nested))
    dealt, dealt_nested = _dealt(splits, seed), [_dealt(outer, seed) for outer in nested]
    rows += [(PERMUTED, embedder, x, dealt, outer(embedder, dealt_nested)) for embedder, x in pooled.items()]
    with threadpool_limits(1):  # more threads take five times as long on problems this small
        return [
            _baseline(name, embedder, _Predictor(x, splits, classes), taught, rounds)
            for name, embedder, x, taught, rounds in rows
        ]


def _dealt(splits: Splits, seed: int) -> Splits:
    """The splits with the labels of the training cases dealt anew, a whole case at a time."""
    of_case = {s.case_id: s.label for s in splits.slides if s.split == "train"}
    labels = np.random.default_rng(seed).permutation(list(of_case.values())).tolist()
    new = dict(zip(of_case, labels, strict=True))
    slides = tuple(replace(s, label=new.get(s.case_id, s.label)) for s in splits.slides)
    return Splits(slides, splits.folds, splits.warnings)


class _Predictor:
    """Trains with the labels that it is given, and is judged by those of the splits.

    Args:
        x: numbers of every slide, (seeds, slides, dim).
        judged: the slides with their true labels.
        classes: of the task.
    """

    def __init__(self, x: Floats, judged: Splits, classes: int) -> None:
        self._x = x
        self._slides = judged.slides
        self._position = {s.slide_id: k for k, s in enumerate(judged.slides)}
        self._classes = classes

    def score(self, parts: Iterable[tuple[Sequence[Assignment], Sequence[Assignment]]]) -> Score:
        """Of slides by case, each predicted by a model that was trained on others: (training, asked) a model."""
        rows: list[int] = []
        predicted: list[Floats] = []
        for training, asked in parts:
            rows += self._rows(asked)
            predicted.append(np.stack([self._predict(x, training, asked) for x in self._x]))
        p = np.concatenate(predicted, axis=1)  # (seeds, slides, classes)
        own = [self._slides[k] for k in rows]
        case_ids, labels = [s.case_id for s in own], [s.label for s in own]
        by_seed = [by_case(case_ids, labels, each) for each in p]
        return _score(by_seed[0][1], np.stack([each for _, _, each in by_seed]), self._classes)

    def _rows(self, slides: Sequence[Assignment]) -> list[int]:
        return [self._position[s.slide_id] for s in slides]

    def _predict(self, x: Floats, training: Sequence[Assignment], asked: Sequence[Assignment]) -> Floats:
        # balanced: a class that a fold holds back is rarer where it trains, and pooled over folds that would count as
        # evidence against it
        regression = LogisticRegression(C=PENALTY, max_iter=2000, class_weight="balanced")
        model = make_pipeline(StandardScaler(), regression)
        model.fit(x[self._rows(training)], [s.label for s in training])
        p = np.zeros((len(asked), self._classes))
        p[:, model.classes_] = model.predict_proba(x[self._rows(asked)])
        return p


def _baseline(name: str, embedder: str, predictor: _Predictor, splits: Splits, nested: Sequence[Splits]) -> Baseline:
    held = [(splits.training(fold), splits.validation(fold)) for fold in range(splits.folds)]
    outer = [(_train(each), each.test) for each in nested]
    return Baseline(
        name=name,
        embedder=embedder,
        test=predictor.score([(_train(splits), splits.test)]),
        crossed=predictor.score(held),
        nested=predictor.score(outer) if outer else None,
    )


def _train(splits: Splits) -> list[Assignment]:
    return [s for s in splits.slides if s.split == "train"]


def _score(y: Labels, p: Floats, classes: int) -> Score:
    auc = float(replicate_auc(truth(y, classes), p)[0])
    bootstrap, chance = (Interval.of(replicate_auc(draw(y, classes), p)) for draw in (resampled, permuted))
    return Score(None if np.isnan(auc) else auc, bootstrap, chance, len(y))
