"""The test of a trained model, at the level of bags (the paper's protocol) and of slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from her2cache.bags import BagSampler
from trainers.features import SlideFeatures
from trainers.metrics import Metrics, evaluate
from trainers.model import TrainedModel
from trainers.splits import Assignment


@dataclass(frozen=True)
class Assessment:
    """A model's performance on the test set.

    Attributes:
        metrics: keys of `trainers.metrics.evaluate`, once with `bag_` and once with `slide_` before them.
        slide: position of each bag's slide among the test slides, (bags,).
        probabilities: of each bag, (bags, classes).
    """

    metrics: Metrics
    slide: NDArray[np.int64]
    probabilities: NDArray[np.float32]


def assess(
    model: TrainedModel, features: SlideFeatures, slides: Sequence[Assignment], sampler: BagSampler, n_bags: int
) -> Assessment:
    """Tests a model on fixed test bags, the same for every model.

    Args:
        model: trained in the feature space of `features`.
        features: of the test slides.
        slides: the test slides in the order of the sampler.
        sampler: of the test slides.
        n_bags: bags of the paper's protocol; a slide's probabilities are the mean over its bags.
    """
    bags = sampler.fixed(n_bags, "test")
    classes = len(model.origin.task.classes)
    labels = np.array([s.label for s in slides])
    p = np.empty((n_bags, classes), np.float32)
    for i, s in enumerate(slides):
        own = bags.slide == i
        if own.any():
            p[own] = model.patch_scores(features[s.slide_id][0]).bag_probabilities(bags.rows[own])
    drawn = np.unique(bags.slide)  # a few bags need not reach every slide
    by_slide = np.stack([p[bags.slide == i].mean(axis=0) for i in drawn])  # (slides, classes)
    levels = {
        "bag": evaluate(labels[bags.slide], p, classes),
        "slide": evaluate(labels[drawn], by_slide, classes),
    }
    metrics = {f"{level}_{name}": value for level, found in levels.items() for name, value in found.items()}
    return Assessment(metrics, bags.slide, p)
