"""What training patches become, and that nothing but seeds decides it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from her2cache.embedder import Augmentation
from trainers.pretraining.augmentation import Augmenting, Plain, shift_hue
from trainers.pretraining.statistics import ColourStatistics

COLOURS = ColourStatistics((0.7, 0.5, 0.6), (0.2, 0.25, 0.3))
STILL = Augmentation(
    brightness=0, contrast=0, saturation=0, hue=0, rotation=0, shear=0, translate=0, scale=(1, 1), noise_share=0
)


def random_patches(n: int = 8) -> Tensor:
    return torch.randint(0, 256, (n, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def augmented(pixels: Tensor, settings: Augmentation, group: int = 4, seed: int = 0) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Augmenting(settings, COLOURS, group)(pixels)


def by_torchvision(pixels: Tensor, s: Augmentation, group: int = 4, seed: int = 0) -> Tensor:
    """The reference: torchvision's transforms on one group after the other."""
    transforms = v2.Compose(
        [
            v2.ColorJitter(s.brightness, s.contrast, s.saturation, s.hue),
            v2.RandomAffine(
                (-s.rotation, s.rotation),
                translate=(s.translate, s.translate),
                scale=s.scale,
                shear=(-s.shear, s.shear),
                fill=s.fill / 255,
            ),
            v2.Normalize(COLOURS.mean, COLOURS.std),
        ]
    )
    done = list[Tensor]()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in pixels.permute(0, 3, 1, 2).split(group):
            x: Tensor = transforms(part / 255)
            noisy = torch.rand(len(x)) < s.noise_share
            x[noisy] += s.noise_sigma * torch.randn((int(noisy.sum()), *x.shape[1:]))
            done.append(x)
    return torch.cat(done)


@pytest.mark.parametrize("seed", range(12))
def test_it_is_torchvision_s(seed: int) -> None:
    pixels = random_patches(10)  # the last group has fewer
    pixels[0] = pixels[0, ..., :1]  # grey
    pixels[1, :, :32] = pixels[1, :, :32] // 128 * 255  # black, white, and colours without either
    x, expected = (f(pixels, Augmentation(), seed=seed) for f in (augmented, by_torchvision))
    assert torch.allclose(x, expected, rtol=0, atol=3e-5)  # in units of a std of 0.2 to 0.3


@pytest.mark.parametrize("px", [63, 70])
def test_it_is_torchvision_s_whatever_the_side(px: int) -> None:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (6, px, px + 3, 3), dtype=torch.uint8, generator=generator)
    strong = Augmentation(brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5, rotation=90, shear=30, fill=3)
    assert torch.allclose(augmented(pixels, strong), by_torchvision(pixels, strong), rtol=0, atol=3e-5)


def test_every_hue_of_the_circle_is_torchvision_s() -> None:
    levels = torch.tensor(list(itertools.product(range(0, 256, 15), repeat=3))) / 255  # (18 ** 3, 3)
    image = levels.T.reshape(3, 18, -1)
    for shift in torch.linspace(-0.5, 0.5, 41).tolist():
        assert torch.allclose(shift_hue(image, shift), functional.adjust_hue(image, shift), rtol=0, atol=1e-5)


@settings(deadline=None)
@given(arrays(np.float32, (2, 3, 4, 4), elements=st.floats(0, 1, width=32)), st.floats(-0.5, 0.5))
def test_hue_is_torchvision_s(pixels: np.ndarray, shift: float) -> None:
    image = torch.from_numpy(pixels)
    x = shift_hue(image, shift)
    assert torch.allclose(x, functional.adjust_hue(image, shift), rtol=0, atol=1e-5)
    assert torch.allclose(x.amax(-3), image.amax(-3), rtol=0, atol=1e-6)
    assert torch.allclose(x.amin(-3), image.amin(-3), rtol=0, atol=1e-6)
    assert np.array_equal(image.numpy(), pixels)


def test_plain_patches_are_normalised() -> None:
    pixels = random_patches()
    x = Plain(COLOURS)(pixels)
    assert (x.shape, x.dtype) == ((8, 3, 64, 64), torch.float32)
    assert x.is_contiguous(memory_format=torch.channels_last)
    mean, std = torch.tensor(COLOURS.mean, dtype=torch.float64), torch.tensor(COLOURS.std, dtype=torch.float64)
    expected = ((pixels.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    assert torch.allclose(x.double(), expected, atol=1e-5)


def test_an_augmentation_of_nothing_changes_nothing() -> None:
    pixels = random_patches()
    x = augmented(pixels, STILL)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, Plain(COLOURS)(pixels))


def test_the_seed_decides() -> None:
    pixels = random_patches()
    assert torch.equal(augmented(pixels, Augmentation()), augmented(pixels, Augmentation()))
    assert not torch.allclose(augmented(pixels, Augmentation()), augmented(pixels, Augmentation(), seed=1))


def test_groups_have_draws_of_their_own() -> None:
    pixels = random_patches(1).expand(12, -1, -1, -1)
    x = augmented(pixels, Augmentation(noise_share=0))
    assert all(torch.equal(x[k], x[k // 4 * 4]) for k in range(12))
    assert not torch.allclose(x[0], x[4])
    assert not torch.allclose(x[4], x[8])


def test_noise_is_each_patch_s_own_and_comes_after_normalisation() -> None:
    pixels = torch.full((400, 64, 64, 3), 128, dtype=torch.uint8)
    settings = replace(STILL, noise_share=0.5)
    noise = augmented(pixels, settings, group=100) - Plain(COLOURS)(pixels)
    sd = noise.flatten(1).std(dim=1)  # (400,)
    noisy = sd > 0
    assert noisy.double().mean().item() == pytest.approx(0.5, abs=0.1)
    assert sd[noisy].mean().item() == pytest.approx(0.1, rel=0.02)
    assert noise[noisy].std(dim=(0, 2, 3)).tolist() == pytest.approx([0.1] * 3, rel=0.02)  # whatever the channel's std
    first, second = noise[noisy][:2]
    assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].abs() < 0.1


def test_what_a_shift_leaves_bare_is_filled() -> None:
    pixels = torch.zeros((64, 64, 64, 3), dtype=torch.uint8)
    settings = replace(STILL, translate=0.1)
    x = augmented(pixels, settings, group=1)
    bare = Plain(COLOURS)(torch.full((1, 64, 64, 3), 245, dtype=torch.uint8))[0, :, 0, 0]
    black = Plain(COLOURS)(torch.zeros((1, 64, 64, 3), dtype=torch.uint8))[0, :, 0, 0]
    values = {tuple(v) for v in x.permute(0, 2, 3, 1).reshape(-1, 3).tolist()}
    assert len(values) == 2
    for colour in (bare, black):
        assert any(torch.allclose(torch.tensor(v), colour, atol=1e-5) for v in values)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    pixels = random_patches(64).cuda()
    assert torch.allclose(augmented(pixels, STILL), Plain(COLOURS)(pixels))
    x = augmented(pixels, Augmentation())
    assert x.is_cuda
    assert torch.equal(x, augmented(pixels, Augmentation()))
