"""Seeded augmented views of patches: what a patch becomes depends on (slide, x, y, view), never on order.

The augmentation is the paper's: colour jitter, a random affine map, and Gaussian noise on the normalised
tensor. torchvision's own functions do the work.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from her2cache.embedder import Augmentation
from her2cache.units import Coords, PatchBatch

_DRAWS = 12


@dataclass(frozen=True)
class ViewDraw:
    """What chance decided for one view of one patch.

    Attributes:
        order: in which the four colour changes are made; torchvision's ColorJitter shuffles them, too.
        brightness, contrast, saturation: factors.
        hue: shift, as a share of the colour circle.
        angle: degrees.
        translate: (x, y), px.
        scale: factor.
        shear: degrees, along x.
        noise_seed: of the noise, or None where the view has none.
    """

    order: tuple[int, ...]
    brightness: float
    contrast: float
    saturation: float
    hue: float
    angle: float
    translate: tuple[int, int]
    scale: float
    shear: float
    noise_seed: int | None


def draw_view(settings: Augmentation, slide_id: str, x: int, y: int, view: int, patch_px: int) -> ViewDraw:
    """Draws the augmentation of a view of a patch.

    Args:
        settings: ranges.
        slide_id: of the slide.
        x, y: level-0 px of the patch.
        view: 1 or more; view 0 is the patch itself.
        patch_px: side of the patch, px.
    """
    message = f"{slide_id}\0{x}\0{y}\0{view}".encode()
    words = np.frombuffer(hashlib.shake_256(message).digest(8 * _DRAWS), "<u8")
    u = [float(word >> np.uint64(11)) / 2**53 for word in words]  # uniform in [0, 1)

    def around(centre: float, reach: float, k: int) -> float:
        return centre + reach * (2 * u[k] - 1)

    reach = settings.translate * patch_px
    low, high = settings.scale
    return ViewDraw(
        order=_permutation(int(words[0] % 24)),
        brightness=around(1, settings.brightness, 1),
        contrast=around(1, settings.contrast, 2),
        saturation=around(1, settings.saturation, 3),
        hue=around(0, settings.hue, 4),
        angle=around(0, settings.rotation, 5),
        translate=(round(around(0, reach, 6)), round(around(0, reach, 7))),
        scale=low + (high - low) * u[8],
        shear=around(0, settings.shear, 9),
        noise_seed=int(words[11] >> np.uint64(1)) if u[10] < settings.noise_share else None,
    )


def draw_views(settings: Augmentation, slide_id: str, coords: Coords, view: int, patch_px: int) -> list[ViewDraw]:
    """One draw a patch; `coords` int32 (n, 2) level-0 (x, y)."""
    return [draw_view(settings, slide_id, int(x), int(y), view, patch_px) for x, y in coords]


def augment(patches: PatchBatch, draws: Sequence[ViewDraw], settings: Augmentation) -> PatchBatch:
    """Augmented copies of patches, without the noise.

    Args:
        patches: uint8 (n, px, px, 3).
        draws: one a patch.
        settings: of which the fill is used.

    Returns:
        uint8 (n, px, px, 3).
    """
    out = np.empty_like(patches)
    for k, draw in enumerate(draws):
        image = torch.from_numpy(patches[k].copy()).permute(2, 0, 1)  # (3, px, px)
        out[k] = _augment_one(image, draw, settings).permute(1, 2, 0).numpy()
    return out


def gaussian_noise(draws: Sequence[ViewDraw], patch_px: int, settings: Augmentation) -> NDArray[np.float32]:
    """Noise of patches, to be added to the normalised tensor: float32 (n, 3, px, px), zeros where there is none."""
    out = torch.zeros(len(draws), 3, patch_px, patch_px)
    for plane, draw in zip(out, draws, strict=True):
        if draw.noise_seed is not None:
            generator = torch.Generator().manual_seed(draw.noise_seed)
            plane.normal_(0, settings.noise_sigma, generator=generator)
    return out.numpy()


def _augment_one(image: Tensor, draw: ViewDraw, settings: Augmentation) -> Tensor:
    for step in draw.order:
        if step == 0:
            image = functional.adjust_brightness(image, draw.brightness)
        elif step == 1:
            image = functional.adjust_contrast(image, draw.contrast)
        elif step == 2:
            image = functional.adjust_saturation(image, draw.saturation)
        else:
            image = functional.adjust_hue(image, draw.hue)
    return functional.affine(
        image,
        angle=draw.angle,
        translate=list(draw.translate),
        scale=draw.scale,
        shear=[draw.shear, 0.0],
        interpolation=InterpolationMode.NEAREST,
        fill=[float(settings.fill)],
    )


def _permutation(k: int) -> tuple[int, ...]:
    """The k-th order of four things, k from 0 to 23."""
    left, order = [0, 1, 2, 3], list[int]()
    for n in (3, 2, 1, 0):
        digit, k = divmod(k, math.factorial(n))
        order.append(left.pop(digit))
    return tuple(order)
