"""What a model says of each patch of a slide: the values that heatmaps show.

Algorithm 1 of the paper gives a patch the mean, over the bags it was drawn in, of the bag's probability of being
HER2 positive times the patch's attention. Attention sums to 1 over a bag, so every value here is times the bag size:
a patch that is attended to like any other of its bag shows the bag's probability. The map's ranks are attention's,
so a negative slide glows too where the model looks; the signed map tells in which direction a patch pulls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from her2cache.errors import ConfigError
from trainers.patch_scores import PatchScores
from trainers.tasks import Task

CHUNK_ENTRIES = 2**20
"""Bag entries worked on at once (some 50 MB), so memory does not grow with the number of bags."""

Values = NDArray[np.float64]
Kind = Literal["attention", "mean-field", "signed", "class"]


@dataclass(frozen=True)
class PatchMaps:
    """Means over the bags that a patch was drawn in, times the bag size; NaN for a patch that no bag drew.

    Attributes:
        attention: of the patch in its bags, (patches,).
        by_class: attention times the bag's probability of each class, (patches, classes).
    """

    attention: Values
    by_class: Values

    def positive(self, task: Task) -> Values:
        """Algorithm 1 of the paper: attention times the bag's probability of being positive, (patches,)."""
        return self.by_class[:, list(task.positive_classes())].sum(axis=1)

    def signed(self, scores: PatchScores, task: Task) -> Values:
        """Attention times what the patch contributes to positive classes over the others, (patches,).

        That is `a_k * (mean(z_2, z_3) - mean(z_0, z_1))` for the four scores: above 0 the patch pulls its bags towards
        a positive score, below 0 away from it.
        """
        return self.attention * _pull(scores, task)


def partition_bags(n_patches: int, bags: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Deals the patches of a slide into bags, pass by pass, so that every patch is drawn.

    Each pass shuffles the patches anew and cuts them into bags; the last bag of a pass is filled up with
    patches from the pass's beginning. (Bags drawn freely miss patches: 1,000 of 100 some 8 % of 40,000.)

    Args:
        n_patches: patches of the slide.
        bags: how many bags; raised to one whole pass where fewer would leave patches out.
        size: patches a bag; the whole slide is one bag when it has fewer.
        rng: source of randomness.

    Returns:
        Rows of each bag, distinct within it, (bags, size).
    """
    size = min(size, n_patches)
    a_pass = math.ceil(n_patches / size)  # bags
    bags = max(bags, a_pass)
    rows = np.empty((math.ceil(bags / a_pass), a_pass * size), np.int64)
    for dealt in rows:
        dealt[:n_patches] = rng.permutation(n_patches)
        dealt[n_patches:] = dealt[: a_pass * size - n_patches]
    return rows.reshape(-1, size)[:bags]  # (bags, size)


def patch_maps(scores: PatchScores, bags: NDArray[np.int64]) -> PatchMaps:
    """Algorithm 1 of the paper on given bags, for each class at once.

    Args:
        scores: patch scores of the slide under one model.
        bags: patch rows of each bag, (bags, size).
    """
    n_patches, size, classes = scores.attention_logit.size, bags.shape[1], scores.bias.size
    total = np.zeros((1 + classes, n_patches))
    drawn = np.zeros(n_patches, np.int64)
    step = max(1, CHUNK_ENTRIES // size)
    for start in range(0, len(bags), step):
        rows = bags[start : start + step]  # (step, size)
        flat, attention = rows.ravel(), scores.attention(rows)  # (step, size)
        factors = np.concatenate([np.ones((len(rows), 1)), scores.bag_probabilities(rows)], axis=1)  # (step, 1 + c)
        for k, factor in enumerate(factors.T):
            total[k] += np.bincount(flat, weights=(factor[:, None] * attention).ravel(), minlength=n_patches)
        drawn += np.bincount(flat, minlength=n_patches)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of a patch never drawn
        means = size * total / drawn  # (1 + classes, patches)
    return PatchMaps(means[0], means[1:].T)


def mean_field_map(scores: PatchScores, size: int, task: Task) -> Values:
    """An approximation of algorithm 1 without any bag, from patch scores alone.

    The other patches of a bag are replaced by the slide's mean, and the bag's probability by that of the whole slide
    as one bag: `S p w_k / (w_k + (S - 1) mean of the other w)`, with w = exp(s). Its ranks are attention's; its values
    are off where the attention logits spread (science: by 0.3, 10 and 49 % at an SD of 1, 2 and 3, the median patch).

    Args:
        scores: patch scores of the slide under one model.
        size: patches a bag.
        task: whose positive classes count.

    Returns:
        (patches,).
    """
    n = scores.attention_logit.size
    s = scores.attention_logit.astype(np.float64)
    w = np.exp(s - s.max())  # (patches,)
    size = min(size, n)
    others = (w.sum() - w) / max(n - 1, 1)  # (patches,)
    p = scores.bag_probabilities(np.arange(n)[None])[0, list(task.positive_classes())].sum()
    return size * float(p) * w / (w + (size - 1) * others)


def alone(scores: PatchScores) -> Values:
    """Class probabilities of a bag that holds nothing but the patch, (patches, classes)."""
    z = scores.contribution.astype(np.float64) + scores.bias  # (patches, classes)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _pull(scores: PatchScores, task: Task) -> Values:
    positive = list(task.positive_classes())
    others = [c for c in range(len(task.classes)) if c not in positive]
    z = scores.contribution.astype(np.float64)  # (patches, classes)
    return z[:, positive].mean(axis=1) - z[:, others].mean(axis=1)


@dataclass(frozen=True)
class MapChoice:
    """Which map is drawn.

    Attributes:
        kind: of the map.
        label: the class of a class map.
    """

    kind: Kind = "attention"
    label: int | None = None

    @classmethod
    def parse(cls, text: str, task: Task) -> MapChoice:
        """From `attention`, `mean-field`, `signed`, or `class:` and the name of a class of the task.

        Raises:
            ConfigError: it is none of these.
        """
        for kind in ("attention", "mean-field", "signed"):
            if text == kind:
                return cls(kind)
        name = text.removeprefix("class:")
        if name != text and name in task.classes:
            return cls("class", task.classes.index(name))
        classes = ", ".join(f"class:{c}" for c in task.classes)
        raise ConfigError(f"unknown map {text!r}: give attention, mean-field, signed, or one of {classes}")

    def values(self, maps: PatchMaps, scores: PatchScores, size: int, task: Task) -> Values:
        """The map's value of each patch, (patches,); `size` is that of a bag."""
        if self.kind == "mean-field":
            return mean_field_map(scores, size, task)
        if self.kind == "signed":
            return maps.signed(scores, task)
        return maps.positive(task) if self.label is None else maps.by_class[:, self.label]

    def title(self, task: Task) -> str:
        """What the map is called above its picture."""
        return {
            "attention": "attention-weighted score",
            "mean-field": "attention-weighted score, mean-field approximation",
            "signed": "signed map",
            "class": f"attention-weighted probability of {'' if self.label is None else task.classes[self.label]}",
        }[self.kind]

    def caption(self, task: Task) -> str:
        """What a value is, below the colour bar."""
        positive = _named(task, task.positive_classes())
        if self.kind == "signed":
            return f"attention × bag size × pull towards {positive} (above 0) or away from it"
        if self.kind == "mean-field":
            return f"p(slide is {positive}) × mean-field attention × bag size"
        wanted = positive if self.label is None else task.classes[self.label]
        return f"p(bag is {wanted}) × attention × bag size"


def _named(task: Task, classes: Sequence[int]) -> str:
    return " or ".join(task.classes[c] for c in classes)
