"""A PyTorch dataset of bags, straight from a feature store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from her2cache.bags import Bags, BagSampler
from her2cache.store.reader import FeatureStore


class BagDataset(Dataset[tuple[Tensor, int]]):
    """Bags of one feature space, drawn fresh each epoch.

    Holds no features: an item is gathered from the store's memory maps when it is asked for, so workers of
    a DataLoader share the page cache. It pickles without features, and each process opens its own maps, a bounded
    number of them however many slides there are.

    Args:
        store: path or URI of a feature store.
        space: name or key of a feature space.
        labels: slide_id -> class; which slides take part.
        size: instances a bag.
        bags: bags an epoch, the length of the dataset.
        seed: of every draw.
        training: draws a stored view an instance; otherwise the bags are fixed and of plain patches.
        allow_replacement: lets a slide with fewer patches than `size` repeat them.

    Raises:
        StoreError: the store or the space does not exist, or a slide is not in it.
        BagError: a slide has too few patches.
    """

    def __init__(
        self,
        store: str | Path,
        space: str,
        labels: Mapping[str, int],
        *,
        size: int = 100,
        bags: int = 6400,
        seed: int = 0,
        training: bool = True,
        allow_replacement: bool = False,
    ) -> None:
        opened = FeatureStore.open(store)
        info = opened.find_space(space)
        self._labels = dict(labels)
        self._length, self._training = bags, training
        self._maps = opened.maps(info, labels)
        self._maps.stage(None if training else 1)  # forked workers cannot: see `open_bucket`
        counts = {slide: views.n_patches for slide, views in self._maps.items()}
        self._sampler = BagSampler(counts, size, seed=seed, views=info.views, allow_replacement=allow_replacement)
        self._bags = self._draw(0)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A bag: features float32 (size, dim), and the class of its slide.

        Raises:
            IndexError: there are fewer bags.
            CorruptFeaturesError: the slide's bytes are not what was committed.
        """
        if not -self._length <= index < self._length:
            raise IndexError(f"bag {index} of {self._length}")
        slide = self._sampler.slides[self._bags.slide[index]]
        rows, views = self._bags.rows[index], self._bags.views[index]  # (size,), (size,)
        maps = self._maps[slide]
        parts = [maps[int(view)][rows[views == view]] for view in np.unique(views)]
        features = np.concatenate(parts).astype(np.float32)  # (size, dim)
        return torch.from_numpy(features), self._labels[slide]

    def set_epoch(self, epoch: int) -> None:
        """Draws the bags of another epoch. With persistent DataLoader workers, call it before they start."""
        self._bags = self._draw(epoch)

    def _draw(self, epoch: int) -> Bags:
        if self._training:
            return self._sampler.training(self._length, epoch)
        return self._sampler.fixed(self._length, "validation")
