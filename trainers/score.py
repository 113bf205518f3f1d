"""The score of a slide from Monte-Carlo bags (paper, section 3), with three numbers that are never mixed up.

Bags of patches are drawn again and again from the slide and their predictions averaged. Since a patch
is scored once (`PatchScores`), a bag costs only index arithmetic, and a thousand bags well under a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from her2cache.bags import sample_rows
from her2cache.errors import BagError
from trainers.patch_scores import PatchScores

CHUNK_BAGS = 250
"""Bags drawn at once: memory does not grow with their number, and between chunks the drawing may stop. However many
are drawn in all, the first ones are the same."""


@dataclass(frozen=True)
class SlideScore:
    """What bags of one slide say of it. "Score" means the class of the task: 0 to 3 for HER2 as such.

    None of the intervals is a confidence interval of the patient's HER2 score (science.md rule 2.9).

    Attributes:
        probabilities: expected class probabilities, (classes,).
        predicted: the most probable class.
        expected_score: sum_c c p_c.
        votes: share of the bags whose most probable class it is, (classes,).
        mc_se: numerical standard error of `expected_score`; falls with the number of bags.
        mc_se_probabilities: the same of `probabilities`, (classes,).
        bag_p2_5: 2.5th percentile over bags of a bag's expected score: heterogeneity within the slide.
        bag_p97_5: 97.5th percentile of the same.
        model_sd: SD (ddof 1) of `expected_score` over the models (folds); None for a single model.
        bags: bags drawn.
        size: patches a bag.
        n_patches: patches of the slide.
        with_replacement: the slide has fewer patches than a bag, so that they repeat within a bag.
        by_model: `expected_score` of each model alone, (models,).
    """

    probabilities: tuple[float, ...]
    predicted: int
    expected_score: float
    votes: tuple[float, ...]
    mc_se: float
    mc_se_probabilities: tuple[float, ...]
    bag_p2_5: float
    bag_p97_5: float
    model_sd: float | None
    bags: int
    size: int
    n_patches: int
    with_replacement: bool
    by_model: tuple[float, ...]

    def as_row(self) -> dict[str, float | int | bool | None]:
        """One flat row of a table: `p_0`, `mc_se_p_0` and `votes_0` stand for class 0, and so on."""
        per_class = {
            f"{name}_{c}": value
            for name, values in (
                ("p", self.probabilities),
                ("mc_se_p", self.mc_se_probabilities),
                ("votes", self.votes),
            )
            for c, value in enumerate(values)
        }
        return {
            "predicted": self.predicted,
            "expected_score": self.expected_score,
            "mc_se": self.mc_se,
            "bag_p2.5": self.bag_p2_5,
            "bag_p97.5": self.bag_p97_5,
            "model_sd": self.model_sd,
            **per_class,
            "bags": self.bags,
            "bag_size": self.size,
            "n_patches": self.n_patches,
            "with_replacement": self.with_replacement,
        }


def score_slide(
    models: Sequence[PatchScores],
    n_patches: int,
    *,
    bags: int = 1000,
    size: int = 100,
    seed: int = 0,
    tolerance: float | None = None,
) -> SlideScore:
    """Scores a slide by Monte-Carlo bags, every model on the same ones.

    Args:
        models: patch scores of the slide, one a model; their probabilities are averaged bag by bag.
        n_patches: patches of the slide, the rows of each `PatchScores`.
        bags: how many bags to draw, at least 2; with a tolerance the most.
        size: patches a bag, drawn without replacement within it unless the slide has fewer.
        seed: of the bags; the same seed gives the same bags.
        tolerance: `mc_se` that is small enough: no further bags are drawn once it is reached, which is looked at
            every `CHUNK_BAGS` bags.

    Raises:
        BagError: no model, no patch, fewer than 2 bags, or models that saw other patches.
    """
    _check(models, n_patches, bags, size)
    grades = np.arange(models[0].bias.size, dtype=np.float64)
    chunks: list[NDArray[np.float64]] = []
    expected_by_model = np.zeros(len(models))
    for rows in draw_bags(n_patches, bags, size, np.random.default_rng(seed)):
        q = np.stack([scores.bag_probabilities(rows) for scores in models]).astype(np.float64)  # (models, chunk, c)
        chunks.append(q.mean(axis=0))
        expected_by_model += (q @ grades).sum(axis=1)
        if tolerance is not None and _standard_error(np.concatenate(chunks) @ grades) <= tolerance:
            break
    p = np.concatenate(chunks)  # (drawn, classes)
    return _summary(p, expected_by_model / len(p), size, n_patches)


def _summary(p: NDArray[np.float64], by_model: NDArray[np.float64], size: int, n_patches: int) -> SlideScore:
    drawn, classes = p.shape
    mean = p.mean(axis=0)  # (classes,)
    by_bag = p @ np.arange(classes, dtype=np.float64)  # (drawn,)
    low, high = np.percentile(by_bag, [2.5, 97.5])
    return SlideScore(
        probabilities=tuple(mean.tolist()),
        predicted=int(mean.argmax()),
        expected_score=float(by_bag.mean()),
        votes=tuple((np.bincount(p.argmax(axis=1), minlength=classes) / drawn).tolist()),
        mc_se=_standard_error(by_bag),
        mc_se_probabilities=tuple(_standard_error(p[:, c]) for c in range(classes)),
        bag_p2_5=float(low),
        bag_p97_5=float(high),
        model_sd=_spread(by_model.tolist()),
        bags=drawn,
        size=size,
        n_patches=n_patches,
        with_replacement=n_patches < size,
        by_model=tuple(by_model.tolist()),
    )


@dataclass(frozen=True)
class CaseScore:
    """What the slides of a case say together, each weighing the same.

    Attributes:
        probabilities: mean over slides, (classes,).
        predicted: the most probable class.
        expected_score: sum_c c p_c.
        mc_se: numerical standard error of `expected_score`; the bags of different slides are independent.
        model_sd: SD (ddof 1) over the models of their mean over slides; None for a single model.
        n_slides: how many.
    """

    probabilities: tuple[float, ...]
    predicted: int
    expected_score: float
    mc_se: float
    model_sd: float | None
    n_slides: int


def combine_slides(scores: Sequence[SlideScore]) -> CaseScore:
    """The score of a case from those of its slides, at least one, all by the same models."""
    n = len(scores)
    p = np.mean([score.probabilities for score in scores], axis=0)  # (classes,)
    return CaseScore(
        probabilities=tuple(p.tolist()),
        predicted=int(p.argmax()),
        expected_score=math.fsum(score.expected_score for score in scores) / n,
        mc_se=math.hypot(*(score.mc_se for score in scores)) / n,
        model_sd=_spread(np.mean([score.by_model for score in scores], axis=0).tolist()),
        n_slides=n,
    )


def draw_bags(n: int, bags: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Draws uniform bags of rows, a chunk at a time.

    Args:
        n: rows to draw from.
        bags: how many bags.
        size: rows a bag, distinct within it; drawn with replacement only when n < size.
        rng: source of randomness.

    Yields:
        Rows of the next bags, (chunk, size).
    """
    for start in range(0, bags, CHUNK_BAGS):
        yield sample_rows(np.full(min(CHUNK_BAGS, bags - start), n), size, rng)


def _check(models: Sequence[PatchScores], n_patches: int, bags: int, size: int) -> None:
    if not models:
        raise BagError("no model to score with; name a run of the sweep that has a checkpoint")
    if n_patches < 1 or size < 1 or bags < 2:
        raise BagError(
            f"{bags} bags of {size} cannot be drawn from {n_patches} patches;"
            " it takes at least 2 bags, 1 patch a bag and a slide with a patch"
        )
    for scores in models:
        if scores.attention_logit.shape != (n_patches,) or scores.bias.size != models[0].bias.size:
            raise BagError(
                f"a model scored {scores.attention_logit.size} patches in {scores.bias.size} classes, not"
                f" {n_patches} in {models[0].bias.size}: the runs were trained on other patches or classes;"
                " choose runs that agree"
            )


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) / math.sqrt(values.size)


def _spread(by_model: Sequence[float]) -> float | None:
    return float(np.std(by_model, ddof=1)) if len(by_model) > 1 else None
