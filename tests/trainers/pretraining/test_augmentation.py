"""What training patches become, and that nothing but seeds decides it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from her2cache.embedder import Augmentation
from trainers.pretraining.augmentation import Augmenting, Plain
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
    settings = Augmentation(**{**vars(STILL), "noise_share": 0.5})
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
    settings = Augmentation(**{**vars(STILL), "translate": 0.1})
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
