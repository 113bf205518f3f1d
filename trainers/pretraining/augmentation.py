"""Patches as a network takes them: normalised, and in training augmented as in the paper.

torchvision draws, and does most of the work. Two of its steps are made anew, because they cost more than all others: it
changes hue by way of HSV, with masks and selections in some fifty passes, where `shift_hue` takes twenty; and it maps
pixels and a mask of every patch, where one map of places serves a group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from her2cache.embedder import Augmentation
from trainers.pretraining.statistics import ColourStatistics

GROUP = {"cpu": 16, "cuda": 64}
"""Patches of a batch that share their draws of colour and place, by device. They are neighbours in a shuffled epoch, so
a patch shares with others every time. Smaller groups mean more and smaller steps; see `bench_pretrain`."""


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
        self._jitter = _Jitter(s.brightness, s.contrast, s.saturation, s.hue)
        self._affine = v2.RandomAffine(
            (-s.rotation, s.rotation),
            translate=(s.translate, s.translate),
            scale=s.scale,
            shear=s.shear,
            fill=_NOWHERE,
        )
        self._fill = s.fill / 255
        self._normalize = v2.Normalize(colours.mean, colours.std, inplace=True)
        self._noise_sigma, self._noise_share = s.noise_sigma, s.noise_share

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (k, px, px, 3) -> float32 (k, 3, px, px), channels last."""
        out = _batch_like(pixels)
        for target, group in zip(out.split(self._group), pixels.split(self._group), strict=True):
            x = self._normalize(self._moved(self._jitter(_in_unit(group))))  # (group, 3, px, px)
            noisy = (torch.rand(len(x)) < self._noise_share).nonzero().flatten()  # drawn here: no waiting for a GPU
            noise = torch.randn((len(noisy), *x.shape[1:]), device=x.device)
            x.index_add_(0, noisy.to(x.device, non_blocking=True), noise, alpha=self._noise_sigma)
            target.copy_(x)
        return out

    def _moved(self, x: Tensor) -> Tensor:
        """One affine map of all images: (k, 3, px, px) -> the same."""
        places = torch.arange(float(x[0, 0].numel()), device=x.device).view(1, 1, *x.shape[2:])
        source = self._affine(places).flatten().long()  # (px * px,) whence each pixel comes
        moved = x.flatten(2).gather(2, source.clamp_min(0).expand(*x.shape[:2], -1))  # (k, 3, px * px)
        return moved.masked_fill_(source == _NOWHERE, self._fill).view_as(x)


_NOWHERE = -1
"""The place of a pixel that the affine map leaves bare."""


class _Jitter(v2.ColorJitter):
    """torchvision's, its draws included, with a faster change of hue. For float images."""

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        changes = (
            (functional.adjust_brightness, params["brightness_factor"]),
            (functional.adjust_contrast, params["contrast_factor"]),
            (functional.adjust_saturation, params["saturation_factor"]),
            (shift_hue, params["hue_factor"]),
        )
        for k in params["fn_idx"].tolist():
            change, factor = changes[k]
            if factor is not None:
                inpt = change(inpt, factor)
        return inpt


def shift_hue(image: Tensor, shift: float) -> Tensor:
    """Turns the hue of every pixel; value and saturation in HSV stay. As torchvision's `adjust_hue`, but for rounding.

    With the greatest channel V, the least m, the chroma C = V - m and the hue h in sixths of the circle, a channel of
    hue p is V - C clip(d(h, p) - 1, 0, 1), where d is the distance on the circle (A. R. Smith, Color gamut transform
    pairs, SIGGRAPH 1978, solved for a channel). Its inverse without cases is |h| = 1 + (G + B - R - m) / C with the
    sign of G - B: on the half circle from red by way of green to cyan G rises from 0 to C, then R falls, then B rises.

    Args:
        image: float (..., 3, height, width) in 0 to 1.
        shift: as a share of the circle, from -0.5 to 0.5.

    Returns:
        A new tensor of that shape.
    """
    red, green, blue = image.unbind(-3)
    value = red.maximum(green).maximum(blue)  # (..., height, width), as all below
    least = red.minimum(green).minimum(blue)
    chroma = value - least
    hue = (green + blue).sub_(red).sub_(least).div_(chroma.clamp_min(_TINY)).add_(1).copysign_(green - blue)  # -3 to 3
    primaries = torch.arange(0.0, 6.0, 2.0, device=image.device).view(3, 1, 1)
    opposite = (primaries - 6 * shift).remainder_(6).sub_(3)  # (3, 1, 1), -3 to 3
    # d(h, p) = 3 - d(h, opposite) = | |h - opposite| - 3 |, and - C (clip(d, 1, 2) - 1) = C - C clip(d, 1, 2)
    distance = (hue.unsqueeze(-3) - opposite).abs_().sub_(3).abs_().clamp_(1, 2)  # (..., 3, height, width)
    return torch.addcmul(value.add_(chroma).unsqueeze(-3), chroma.unsqueeze(-3), distance, value=-1, out=distance)


_TINY = 1e-12
"""Stands for the chroma of grey, of which any hue will do."""


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
