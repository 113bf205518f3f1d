"""Features that live on a device, and bags drawn there: nothing crosses the bus during an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.features import SlideFeatures
from trainers.scaling import Scaling


class ResidentRows:
    """The features of some slides as one table on a device.

    Args:
        features: of every slide in `slides`.
        slides: which; their order is that of `DeviceSampler` and of `Bags.slide`.
        views: views of each that are kept.
        device: where.
        scaling: applied to what is gathered; None leaves features as they are stored.
    """

    def __init__(
        self,
        features: SlideFeatures,
        slides: Sequence[str],
        views: int,
        device: torch.device,
        scaling: Scaling | None = None,
    ) -> None:
        self.patches = [len(features[slide][0]) for slide in slides]
        starts = np.concatenate([[0], np.cumsum(self.patches)]) * views
        first = features[slides[0]][0]
        stored = torch.from_numpy(np.empty(0, first.dtype)).dtype
        self.table = torch.empty((int(starts[-1]), first.shape[1]), dtype=stored, device=device)
        for slide, start in zip(slides, starts, strict=False):
            for view in range(views):
                part = np.array(features[slide][view])  # a copy in memory: a map is read-only
                begin = int(start) + view * len(part)
                self.table[begin : begin + len(part)] = torch.from_numpy(part).to(device)
        self.starts = torch.tensor(starts[:-1], device=device)  # (slides,)
        self._scaling = None if scaling is None else Scaling(scaling.mean.to(device), scaling.sd.to(device))

    def take(self, index: Tensor) -> Tensor:
        """Rows of the table as float32; (...) -> (..., dim)."""
        v = self.table.index_select(0, index.reshape(-1)).to(torch.float32)
        v = v if self._scaling is None else self._scaling.apply_(v)
        return v.view(*index.shape, -1)

    def blocks(self, rows: Sequence[NDArray[np.int64]], step: int) -> Iterator[Tensor]:
        """Plain patches of each slide in turn, (some, dim) float32; `rows` as `FixedBags.rows`."""
        index = torch.cat(
            [torch.from_numpy(own).to(self.table.device) + start for own, start in zip(rows, self.starts, strict=True)]
        )
        for block in index.split(step):
            yield self.take(block)


class DeviceSampler:
    """Training bags drawn on a device, by the same rules as `her2cache.bags.BagSampler`, from another generator.

    Args:
        patches: rows of each slide.
        starts: where each slide begins in the table, (slides,).
        size: instances a bag.
        seed: of every draw.
        views: stored views, of which every instance gets one.
        classes: class of each slide; when given, classes are drawn first.
        device: where.
    """

    def __init__(
        self,
        patches: Sequence[int],
        starts: Tensor,
        size: int,
        *,
        seed: int,
        views: int = 1,
        classes: Sequence[int] | None = None,
    ) -> None:
        device = starts.device
        self._n = torch.tensor(patches, device=device)  # (slides,)
        self._starts = starts
        self._size, self._seed, self._views = size, seed, views
        self._members: list[Tensor] | None = None
        if classes is not None:
            of = np.asarray(classes)
            self._members = [torch.from_numpy(np.flatnonzero(of == c)).to(device) for c in np.unique(of)]

    def epoch(self, n_bags: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Slides (bags,) and table rows (bags, size) of the bags of an epoch; the same at every call."""
        device = self._n.device
        key = np.random.SeedSequence((self._seed, epoch)).generate_state(1, np.uint64)
        generator = torch.Generator(device).manual_seed(int(key[0] >> np.uint64(1)))
        slide = self._slides(n_bags, generator)  # (bags,)
        n = self._n[slide]  # (bags,)
        rows = _sample_rows(n, self._size, generator)  # (bags, size)
        if self._views > 1:
            rows = rows + n.unsqueeze(1) * torch.randint(self._views, rows.shape, generator=generator, device=device)
        return slide, rows + self._starts[slide].unsqueeze(1)

    def _slides(self, n_bags: int, generator: torch.Generator) -> Tensor:
        device = self._n.device
        if self._members is None:
            return torch.randint(len(self._n), (n_bags,), generator=generator, device=device)
        drawn = torch.randint(len(self._members), (n_bags,), generator=generator, device=device)
        u = torch.rand(n_bags, generator=generator, device=device, dtype=torch.float64)
        slide = torch.empty_like(drawn)
        for c, members in enumerate(self._members):
            slide = torch.where(drawn == c, members[(u * len(members)).long()], slide)
        return slide


def _sample_rows(n: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """`size` of `n[i]` rows for every bag i, (bags, size): Floyd's algorithm, see `her2cache.bags.sample_rows`."""
    u = torch.rand((size, len(n)), generator=generator, device=n.device, dtype=torch.float64)
    rows = torch.empty((size, len(n)), dtype=torch.int64, device=n.device)
    for k in range(size):
        top = n - size + k  # the newest row that instance k may be
        drawn = (u[k] * (top + 1).clamp(min=1)).long()
        taken = (rows[:k] == drawn).any(dim=0)
        rows[k] = torch.where(taken, top, drawn)
    rows = torch.where(n < size, (u * n).long(), rows)  # fewer rows than instances: they repeat
    return rows.T.contiguous()
