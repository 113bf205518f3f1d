"""Augmented views: keyed, never ordered; equal to PIL-style references; within their ranges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode, functional

from her2cache.augment import augment, draw_view, draw_views, gaussian_noise
from her2cache.embedder import Augmentation
from tests.slides import texture

PX = 96
SETTINGS = Augmentation()
COORDS = np.stack([np.arange(40) * PX, np.arange(40) * 7], axis=1).astype(np.int32)


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    return np.stack([texture(PX, PX, seed=k) for k in range(6)])


def test_a_view_depends_on_slide_place_and_number_alone() -> None:
    draws = draw_views(SETTINGS, "s", COORDS, 1, PX)
    backwards = draw_views(SETTINGS, "s", COORDS[::-1].copy(), 1, PX)
    assert draws == backwards[::-1]
    others = [
        draw_view(SETTINGS, "t", 0, 0, 1, PX),
        draw_view(SETTINGS, "s", 1, 0, 1, PX),
        draw_view(SETTINGS, "s", 0, 1, 1, PX),
        draw_view(SETTINGS, "s", 0, 0, 2, PX),
    ]
    assert draws[0] not in others
    assert len({d.angle for d in [draws[0], *others]}) == 5


def test_draws_fill_their_ranges_and_stay_inside() -> None:
    coords = np.stack([np.arange(4000), np.zeros(4000)], axis=1).astype(np.int32)
    draws = draw_views(SETTINGS, "slide", coords, 3, PX)
    for values, low, high in (
        ([d.brightness for d in draws], 0.9, 1.1),
        ([d.contrast for d in draws], 0.9, 1.1),
        ([d.saturation for d in draws], 0.9, 1.1),
        ([d.hue for d in draws], -0.1, 0.1),
        ([d.angle for d in draws], -10, 10),
        ([d.shear for d in draws], -10, 10),
        ([d.scale for d in draws], 0.8, 1.2),
    ):
        reach = high - low
        assert low <= min(values) < low + 0.01 * reach
        assert high - 0.01 * reach < max(values) <= high
        assert abs(np.mean(values) - (low + high) / 2) < 4 * reach / math.sqrt(12 * len(values))
    assert {abs(v) for d in draws for v in d.translate} == set(range(11))  # 0.1 x 96 px, rounded
    assert len({d.order for d in draws}) == 24
    assert 0.46 < np.mean([d.noise_seed is not None for d in draws]) < 0.54


def test_pixels_equal_the_four_colour_changes_and_the_affine_map_by_hand(patches: np.ndarray) -> None:
    draws = draw_views(SETTINGS, "s", COORDS[: len(patches)], 1, PX)
    made = augment(patches, draws, SETTINGS)
    for pixels, draw, got in zip(patches, draws, made, strict=True):
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        changes = [
            lambda x, d=draw: functional.adjust_brightness(x, d.brightness),
            lambda x, d=draw: functional.adjust_contrast(x, d.contrast),
            lambda x, d=draw: functional.adjust_saturation(x, d.saturation),
            lambda x, d=draw: functional.adjust_hue(x, d.hue),
        ]
        for k in draw.order:
            image = changes[k](image)
        image = functional.affine(
            image,
            angle=draw.angle,
            translate=list(draw.translate),
            scale=draw.scale,
            shear=[draw.shear, 0.0],
            interpolation=InterpolationMode.NEAREST,
            fill=[245.0],
        )
        np.testing.assert_array_equal(got, image.permute(1, 2, 0).numpy())
    assert not np.array_equal(made, patches)


def test_no_reach_changes_nothing(patches: np.ndarray) -> None:
    still = Augmentation(0, 0, 0, 0, 0, 0, 0, (1, 1), noise_share=0)
    draws = draw_views(still, "s", COORDS[: len(patches)], 1, PX)
    assert np.abs(augment(patches, draws, still).astype(int) - patches).max() <= 1  # hue goes through floats
    assert not gaussian_noise(draws, PX, still).any()


def test_noise_has_its_sigma_its_share_and_its_seed() -> None:
    draws = draw_views(SETTINGS, "s", COORDS, 1, PX)
    noise = gaussian_noise(draws, PX, SETTINGS)  # (40, 3, 96, 96)
    noisy = np.array([d.noise_seed is not None for d in draws])
    assert noisy.any()
    assert not noisy.all()
    assert not noise[~noisy].any()
    assert abs(noise[noisy].std() - 0.1) < 0.001
    np.testing.assert_array_equal(noise[7:9], gaussian_noise(draws[7:9], PX, SETTINGS))


def test_the_random_state_of_the_process_is_left_alone(patches: np.ndarray) -> None:
    before = torch.get_rng_state().clone()
    draws = draw_views(SETTINGS, "s", COORDS[: len(patches)], 1, PX)
    augment(patches, draws, SETTINGS)
    gaussian_noise(draws, PX, SETTINGS)
    assert torch.equal(before, torch.get_rng_state())
