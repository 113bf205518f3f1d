"""Tissue by thresholds, and the share of it under a patch."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from her2cache import tissue
from her2cache.errors import ConfigError
from her2cache.tissue import PRESETS, Overview, TissueMask, TissueSettings, find_tissue, preset, threshold
from her2cache.units import BoolImage, RgbImage
from tests.slides import GLASS, PINK

ANY = TissueSettings(hue_min=0, hue_max=360, saturation_min=0, value_min=0, value_max=1, hole_um2=0, speck_um2=0)
BROWN, BLUE_GREY, BLACK = (150, 100, 60), (150, 155, 185), (5, 5, 5)


def _overview(image: RgbImage, downsample: float = 1.0, undecodable: BoolImage | None = None) -> Overview:
    nothing = np.zeros(image.shape[:2], np.bool_)
    return Overview(image, nothing if undecodable is None else undecodable, downsample)


def _painted(mask: BoolImage) -> RgbImage:
    return np.where(mask[..., None], np.array(PINK, np.uint8), np.array(GLASS, np.uint8))


class TestThreshold:
    @pytest.mark.parametrize(
        ("name", "colour", "expected"),
        [
            ("he", PINK, True),
            ("he", (120, 80, 160), True),  # haematoxylin
            ("he", GLASS, False),
            ("he", BROWN, False),
            ("he", (250, 230, 250), False),  # too bright
            ("ihc", BROWN, True),
            ("ihc", BLUE_GREY, True),
            ("ihc", GLASS, False),
            ("ihc", BLACK, False),
        ],
    )
    def test_presets(self, name: str, colour: tuple[int, int, int], expected: bool) -> None:
        assert threshold(np.full((2, 3, 3), colour, np.uint8), PRESETS[name]).tolist() == [[expected] * 3] * 2

    def test_presets_are_those_of_the_stains(self) -> None:
        assert preset("HE") == PRESETS["he"]
        assert preset("IHC") == PRESETS["ihc"]
        with pytest.raises(ConfigError, match=r"'PAS'.*HE and IHC.*column stain"):
            preset("PAS")

    @pytest.mark.parametrize(("low", "high"), [(0, 360), (200, 300), (330, 30), (90, 91.5)])
    def test_hue_is_that_of_colorsys(self, low: float, high: float) -> None:
        image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
        found = threshold(image, replace(ANY, hue_min=low, hue_max=high))

        def inside(hue: float) -> bool:
            return low <= hue <= high if low <= high else hue >= low or hue <= high

        for pixel, is_found in zip(image.reshape(-1, 3), found.ravel(), strict=True):
            hue = 360 * colorsys.rgb_to_hsv(*(pixel / 255))[0]
            assert is_found in {inside(hue), inside(max(0, hue - 360 / 255))}  # Pillow cuts hues off to 8 bits

    def test_saturation_and_value_are_those_of_colorsys(self) -> None:
        image = np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8)
        found = threshold(image, replace(ANY, saturation_min=0.4, value_min=0.3, value_max=0.8))
        for pixel, is_found in zip(image.reshape(-1, 3), found.ravel(), strict=True):
            _, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
            near = min(abs(saturation - 0.4), abs(value - 0.3), abs(value - 0.8)) < 1.5 / 255
            assert is_found == (saturation >= 0.4 and 0.3 <= value <= 0.8) or near


class TestHolesAndSpecks:
    """At 2 um/px a mask pixel has 4 um2."""

    SETTINGS = replace(PRESETS["he"], hole_um2=40.0, speck_um2=40.0)

    def _find(self, mask: BoolImage, undecodable: BoolImage | None = None) -> BoolImage:
        return find_tissue(_overview(_painted(mask), 4.0, undecodable), 0.5, self.SETTINGS).mask

    def test_small_holes_are_filled_and_large_ones_stay(self) -> None:
        mask = np.ones((20, 20), np.bool_)
        mask[2:5, 2:5] = False  # 36 um2
        mask[10:14, 10:14] = False  # 64 um2
        expected = mask.copy()
        expected[2:5, 2:5] = True
        assert np.array_equal(self._find(mask), expected)

    def test_small_specks_go_and_large_ones_stay(self) -> None:
        mask = np.zeros((20, 20), np.bool_)
        mask[2:5, 2:5] = True
        mask[10:14, 10:14] = True
        expected = mask.copy()
        expected[2:5, 2:5] = False
        assert np.array_equal(self._find(mask), expected)

    def test_the_limit_itself_stays(self) -> None:
        mask = np.zeros((20, 20), np.bool_)
        mask[2:4, 2:7] = True  # 10 px, 40 um2
        assert np.array_equal(self._find(mask), mask)
        assert np.array_equal(self._find(~mask), ~mask)

    def test_a_corner_does_not_join_pieces(self) -> None:
        mask = np.zeros((20, 20), np.bool_)
        mask[2:5, 2:5] = mask[5:8, 5:8] = True
        assert not self._find(mask).any()

    def test_a_blank_slide_smaller_than_a_hole_has_no_tissue(self) -> None:
        settings = replace(self.SETTINGS, speck_um2=0)
        assert not find_tissue(_overview(_painted(np.zeros((3, 3), np.bool_)), 4.0), 0.5, settings).mask.any()

    def test_what_cannot_be_decoded_counts_as_tissue(self) -> None:
        unknown = np.zeros((20, 20), np.bool_)
        unknown[4:6, 4:6] = True  # less than a speck
        assert np.array_equal(self._find(np.zeros((20, 20), np.bool_), unknown), unknown)

    def test_damage_never_takes_tissue_away(self) -> None:
        rng = np.random.default_rng(3)
        mask = rng.random((40, 40)) < 0.7
        unknown = np.zeros_like(mask)
        unknown[10:20, 15:30] = True
        damaged = self._find(mask & ~unknown, unknown)
        assert damaged[self._find(mask)].all()


class TestShare:
    def test_equals_a_supersampled_count(self) -> None:
        rng = np.random.default_rng(4)
        mask = rng.random((13, 17)) < 0.5
        downsample, fine = 5.0, 20  # 20 samples a mask pixel: boxes on a grid of 0.25 level-0 px are exact
        samples = np.kron(mask, np.ones((fine, fine)))
        corners = rng.integers(0, [17 * fine - 1, 13 * fine - 1], (200, 2))
        sizes = rng.integers(1, 6 * fine, (200, 2))
        ends = np.minimum(corners + sizes, [17 * fine, 13 * fine])
        expected = [samples[y0:y1, x0:x1].mean() for (x0, y0), (x1, y1) in zip(corners, ends, strict=True)]
        boxes = np.concatenate([corners, ends], axis=1) * downsample / fine
        assert TissueMask(mask, downsample).share(boxes) == pytest.approx(np.array(expected), abs=1e-9)

    def test_stays_within_0_and_1(self) -> None:
        rng = np.random.default_rng(5)
        low = rng.random((500, 2)) * 80
        boxes = np.concatenate([low, low + 1 + rng.random((500, 2)) * 19], axis=1)
        for mask, expected in ((np.ones((33, 33), np.bool_), 1), (np.zeros((33, 33), np.bool_), 0)):
            share = TissueMask(mask, 3.07).share(boxes)
            assert share == pytest.approx(np.full(500, expected))
            assert share.min() >= 0
            assert share.max() <= 1

    def test_of_no_boxes_is_nothing(self) -> None:
        assert TissueMask(np.ones((2, 2), np.bool_), 1.0).share(np.empty((0, 4))).shape == (0,)


class TestBands:
    @settings(max_examples=30)
    @given(
        st.integers(0, 10**6),
        st.sampled_from([1, 7, 40]),
        st.sampled_from([0.0, 6.0, 30.0]),
        st.sampled_from([0.0, 5.0, 25.0]),
        st.booleans(),
    )
    def test_tissue_is_the_same_however_it_is_looked_for(
        self, seed: int, band: int, hole: float, speck: float, damaged: bool
    ) -> None:
        """A band of rows at a time, with what decides about them, against the whole picture at once."""
        rng = np.random.default_rng(seed)
        noise = ndimage.gaussian_filter(rng.standard_normal((90, 50)), rng.uniform(0.3, 3))
        undecodable = rng.random((90, 50)) < (0.01 if damaged else 0)
        overview = _overview(_painted(noise > np.quantile(noise, rng.uniform(0.1, 0.9))), undecodable=undecodable)
        chosen = replace(PRESETS["he"], hole_um2=hole, speck_um2=speck)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tissue, "_BAND_PX", 1000)
            whole = find_tissue(overview, 1.0, chosen).mask
            patch.setattr(tissue, "_BAND_PX", band)
            np.testing.assert_array_equal(find_tissue(overview, 1.0, chosen).mask, whole)

    def test_a_share_is_that_of_the_rows_under_the_boxes(self) -> None:
        rng = np.random.default_rng(0)
        mask = TissueMask(rng.random((200, 60)) < 0.5, 3.0)
        corners = rng.uniform(0, [150, 550], (40, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(5, 30, (40, 2))], axis=1)
        together = mask.share(boxes)
        alone = np.concatenate([mask.share(box[None]) for box in boxes])
        np.testing.assert_allclose(alone, together, atol=1e-12)
