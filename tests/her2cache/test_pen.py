"""Pen marks are found where they are, and tissue is not taken for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from her2cache.pen import find_pen
from her2cache.slide import open_slide
from her2cache.tissue import PRESETS, Overview, find_tissue
from her2cache.units import BoolImage, RgbImage

INKS = {"black": (45, 45, 50), "blue": (50, 75, 165), "green": (35, 120, 80), "red": (190, 35, 50)}


@pytest.fixture(scope="module")
def real(data: Path) -> Overview:
    with open_slide(data / "slides/CMU-1-Small-Region.svs") as slide:
        return slide.overview(8.0, 0.499)


def marked(image: RgbImage, ink: tuple[int, int, int], line: BoolImage) -> RgbImage:
    """Ink lets through what its colour does, whatever lies below."""
    through = np.where(line[..., None], np.array(ink) / 245, 1.0)
    return np.clip(image * through, 0, 255).astype(np.uint8)


def test_no_pen_on_real_tissue(real: Overview, data: Path) -> None:
    assert not find_pen(real.image, 8.0).any()
    with np.load(data / "pcam/pcam_labelled_1207.npz") as archive:
        blocks = archive["x"][:1200].reshape(30, 40, 12, 8, 12, 8, 3).mean(axis=(3, 5))  # 8 px each: about 8 um/px
    mosaic = blocks.transpose(0, 2, 1, 3, 4).reshape(360, 480, 3).astype(np.uint8)
    assert find_pen(mosaic, 8.0).mean() < 0.001


@pytest.mark.parametrize("ink", INKS)
def test_a_line_across_tissue_is_found_with_its_margin_and_nothing_else(real: Overview, ink: str) -> None:
    line = np.zeros(real.image.shape[:2], np.bool_)
    line[60:90] = True  # 0.24 mm
    found = find_pen(marked(real.image, INKS[ink], line), 8.0)
    tissue = find_tissue(real, 0.499, PRESETS["he"]).mask
    assert found[line & tissue].mean() > 0.99
    assert not found[:50].any()  # the margin is 5 px, and a dark nucleus may touch the line
    assert not found[100:].any()


def test_specks_of_ink_are_pigment() -> None:
    image = np.full((100, 100, 3), 243, np.uint8)
    image[50:60, 50:60] = INKS["blue"]  # 80 um
    assert not find_pen(image, 8.0).any()


@pytest.mark.parametrize("ink", INKS)
def test_skipped_only_when_asked(real: Overview, ink: str) -> None:
    line = np.zeros(real.image.shape[:2], np.bool_)
    line[60:90] = True
    overview = replace(real, image=marked(real.image, INKS[ink], line))
    plain = find_tissue(overview, 0.499, PRESETS["he"]).mask
    careful = find_tissue(overview, 0.499, replace(PRESETS["he"], skip_pen=True)).mask
    assert not careful[line].any()
    far = np.ones_like(line)
    far[50:100] = False
    assert (plain[far] == careful[far]).mean() > 0.99  # but for specks that the line cut off
    if ink in {"black", "blue"}:  # the preset's gate of hues keeps green and red out by itself
        assert plain[line].mean() > 0.5
