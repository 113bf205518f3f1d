"""Patches as a network takes them: normalised, and in training augmented as in the paper."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from her2cache.embedder import Augmentation
from trainers.pretraining.statistics import ColourStatistics

GROUP = {"cpu": 16, "cuda": 64}
"""Patches of a batch that share their draws of colour and place, by device. They are neighbours in a shuffled epoch, so
a patch shares with others every time. A change of hue costs most; see `bench_pretrain`."""


class Augmenting:
    """The paper's augmentation: torchvision's ColorJitter and RandomAffine, and noise on the normalised tensor.

    It draws from torch's own generators: seed these, and it is repeated.

    Args:
        settings: ranges.
        colours: of the training patches.
        group: patches that share their draws of colour and place; each has noise of its own.
    """

    def __init__(self, settings: Augmentation, colours: ColourStatistics, group: int) -> None:
        s = settings
        self._group = group
        self._pixels = v2.Compose(
            [
                v2.ColorJitter(s.brightness, s.contrast, s.saturation, s.hue),
                v2.RandomAffine(
                    (-s.rotation, s.rotation),
                    translate=(s.translate, s.translate),
                    scale=s.scale,
                    shear=s.shear,
                    fill=s.fill / 255,
                ),
                v2.Normalize(colours.mean, colours.std),
            ]
        )
        self._noise_sigma, self._noise_share = s.noise_sigma, s.noise_share

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (k, px, px, 3) -> float32 (k, 3, px, px), channels last."""
        out = _batch_like(pixels)
        for target, group in zip(out.split(self._group), pixels.split(self._group), strict=True):
            x: Tensor = self._pixels(_in_unit(group))  # (group, 3, px, px)
            noisy = (torch.rand(len(x)) < self._noise_share).nonzero().flatten()  # drawn here: no waiting for a GPU
            noisy = noisy.to(x.device, non_blocking=True)
            x[noisy] += self._noise_sigma * torch.randn((len(noisy), *x.shape[1:]), device=x.device)
            target.copy_(x)
        return out


class Plain:
    """Patches as they are, for validation and test."""

    def __init__(self, colours: ColourStatistics) -> None:
        self._normalize = v2.Normalize(colours.mean, colours.std)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (k, px, px, 3) -> float32 (k, 3, px, px), channels last."""
        return _batch_like(pixels).copy_(self._normalize(_in_unit(pixels)))


def _in_unit(pixels: Tensor) -> Tensor:
    """uint8 (k, px, px, 3) -> float32 (k, 3, px, px) in 0 to 1, each channel a plane: so colours change fastest."""
    planes = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)  # (k, 3, px, px)
    return planes.div_(255)


def _batch_like(pixels: Tensor) -> Tensor:
    k, height, width, channels = pixels.shape
    shape = (k, channels, height, width)
    return torch.empty(shape, device=pixels.device, memory_format=torch.channels_last)
