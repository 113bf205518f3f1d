"""What a fit is fed with: batches of training bags, and the losses on fixed validation bags.

On the processor instances are gathered from memory maps; on a GPU the features of the fold live on the device and bags
are drawn there, or, where they do not fit, are sent batch by batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from her2cache.bags import Bags, BagSampler
from trainers.evaluation import DeviceBags, FixedBags
from trainers.features import FeatureRows, SlideFeatures
from trainers.plan import FitPlan
from trainers.resident import DeviceSampler, ResidentRows
from trainers.scaling import Scaling
from trainers.splits import Assignment
from trainers.stack import Stack

PART_BAGS = 32
"""Bags worked on at once: of 8, 16, 32 and 64 the quickest, for one run and for twenty, on one core and on two."""

DEVICE_SHARE = 0.6
"""Of the free memory of a device, what features may take; the rest is for the stack."""

_SCORED_ROWS = 8192  # patches that a device scores at once

Parts = Iterable[tuple[Tensor, Tensor]]


class Feed(Protocol):
    """Bags of one fit."""

    def batches(self, epoch: int) -> Iterator[tuple[Parts, int]]:
        """The batches of an epoch (from 0), each as `Stack.train_batch` takes it."""
        ...

    def validate(self, stack: Stack) -> list[tuple[float, float]]:
        """Loss and accuracy of each run on the validation bags."""
        ...


def feed_for(plan: FitPlan, features: SlideFeatures, device: torch.device, scaling: Scaling | None) -> Feed:
    """The feed for a device.

    Raises:
        BagError: a slide has too few patches.
    """
    if device.type == "cpu" or not _fits(plan, features, device):
        return HostFeed(plan, features, device, scaling)
    return DeviceFeed(plan, features, device, scaling)


class HostFeed:
    """Gathers instances from memory maps, in parts, and sends them to the device of the stack."""

    def __init__(
        self, plan: FitPlan, features: SlideFeatures, device: torch.device, scaling: Scaling | None = None
    ) -> None:
        self._plan, self._device = plan, device
        self._sampler = training_sampler(plan, features)
        self._labels = torch.tensor([s.label for s in plan.training])
        rows = PART_BAGS * plan.bags.size
        self._rows = FeatureRows(features, self._sampler.slides, rows, scaling=scaling)
        fixed = validation_sampler(plan, features)
        self._fixed = FixedBags(fixed.fixed(plan.bags.validation, "validation"), [s.label for s in plan.validation])
        self._fixed_rows = FeatureRows(features, fixed.slides, rows, scaling=scaling)

    def batches(self, epoch: int) -> Iterator[tuple[Parts, int]]:
        n_bags, batch_bags = self._plan.bags.per_epoch, self._plan.settings.batch_bags
        bags = self._sampler.training(n_bags, epoch)
        for start in range(0, n_bags, batch_bags):
            batch = bags[start : start + batch_bags]
            yield self._parts(batch), len(batch)

    def _parts(self, batch: Bags) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(batch), PART_BAGS):
            part = batch[start : start + PART_BAGS]
            yield self._rows.bags(part).to(self._device), self._labels[part.slide].to(self._device)

    def validate(self, stack: Stack) -> list[tuple[float, float]]:
        blocks = (v.to(self._device) for v in self._fixed.blocks(self._fixed_rows))
        return [self._fixed.loss_and_accuracy(s) for s in stack.patch_scores(blocks)]


class DeviceFeed:
    """Holds the features of the fold on the device of the stack, and draws training bags there.

    Validation bags are those of `HostFeed`, the same on every device.
    """

    def __init__(
        self, plan: FitPlan, features: SlideFeatures, device: torch.device, scaling: Scaling | None = None
    ) -> None:
        self._plan = plan
        slides = training_sampler(plan, features).slides  # which has checked that no slide is too thin
        views = len(features[slides[0]])
        self._rows = ResidentRows(features, slides, views, device, scaling)
        labels = [s.label for s in plan.training]
        self._sampler = DeviceSampler(
            self._rows.patches,
            self._rows.starts,
            plan.bags.size,
            seed=plan.seed,
            views=views,
            classes=labels if plan.bags.balanced else None,
        )
        self._labels = torch.tensor(labels, device=device)
        sampler = validation_sampler(plan, features)
        fixed = FixedBags(sampler.fixed(plan.bags.validation, "validation"), [s.label for s in plan.validation])
        self._fixed_rows = ResidentRows(features, sampler.slides, 1, device, scaling)
        self._drawn, self._fixed = fixed.rows, DeviceBags(fixed, device)

    def batches(self, epoch: int) -> Iterator[tuple[Parts, int]]:
        slide, index = self._sampler.epoch(self._plan.bags.per_epoch, epoch)
        labels = self._labels[slide]  # (bags,)
        step = self._plan.settings.batch_bags
        for start in range(0, len(index), step):
            part = index[start : start + step]  # (bags, size)
            yield [(self._rows.take(part), labels[start : start + step])], len(part)

    def validate(self, stack: Stack) -> list[tuple[float, float]]:
        s, z = stack.score(self._fixed_rows.blocks(self._drawn, _SCORED_ROWS))
        return self._fixed.losses_and_accuracies(s, z, stack.parameters.b)


def training_sampler(plan: FitPlan, features: SlideFeatures) -> BagSampler:
    """Draws the training bags of a plan.

    Raises:
        BagError: a slide has too few patches.
    """
    labels = {s.slide_id: s.label for s in plan.training}
    return BagSampler(
        {slide: len(features[slide][0]) for slide in labels},
        plan.bags.size,
        seed=plan.seed,
        views=len(features[plan.training[0].slide_id]),
        classes=labels if plan.bags.balanced else None,
        allow_replacement=plan.bags.allow_replacement,
    )


def validation_sampler(plan: FitPlan, features: SlideFeatures) -> BagSampler:
    """Draws the fixed validation bags of a plan, the same for every run of the experiment.

    Raises:
        BagError: a slide has too few patches.
    """
    counts = {s.slide_id: len(features[s.slide_id][0]) for s in plan.validation}
    seed, replacement = plan.settings.seed, plan.bags.allow_replacement
    return BagSampler(counts, plan.bags.size, seed=seed, allow_replacement=replacement)


def _fits(plan: FitPlan, features: SlideFeatures, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return feature_bytes(features, plan.training, plan.validation) <= DEVICE_SHARE * free


def feature_bytes(features: SlideFeatures, training: Sequence[Assignment], validation: Sequence[Assignment]) -> int:
    """Bytes of all views of the training slides, and of the patches of the validation slides."""
    views = len(features[training[0].slide_id])
    every = [(s, views) for s in training] + [(s, 1) for s in validation]
    return sum(n * features[s.slide_id][0].nbytes for s, n in every)
