"""Edge strength tells patches in focus from blurred ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from her2cache.cohort import Slide
from her2cache.errors import EmptyPlanError
from her2cache.focus import SHARP, edge_strength
from her2cache.ingest import PatchBlock, ReadOptions, ReadSummary, read_slide
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from her2cache.units import PatchBatch, RgbImage
from tests.slides import texture, write_slide

OPTIONS = ReadOptions(PatchSpec(), preset("HE"))
CAREFUL = ReadOptions(PatchSpec(min_edges=SHARP), preset("HE"))


def blurred(pixels: RgbImage, sigma: float, noise: float = 2.0) -> RgbImage:
    """Out of focus, with the noise of a camera on top."""
    smooth = ndimage.gaussian_filter(pixels.astype(np.float32), (sigma, sigma, 0))
    noisy = smooth + np.random.default_rng(0).normal(0, noise, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def reference(patch: RgbImage) -> float:
    """One patch, pixel by pixel."""
    grey = patch @ np.array([0.299, 0.587, 0.114])
    half = [
        [grey[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() for x in range(len(grey[0]) // 2)]
        for y in range(len(grey) // 2)
    ]
    kernel = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]])
    return float(np.quantile(np.abs(ndimage.convolve(np.array(half), kernel)[1:-1, 1:-1]), 0.99))


@pytest.mark.parametrize("shape", [(96, 96), (17, 30)])
def test_equals_the_reference(shape: tuple[int, int]) -> None:
    patches = np.random.default_rng(1).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    assert edge_strength(patches) == pytest.approx([reference(patch) for patch in patches], rel=1e-4)


def real_patches(data: Path) -> PatchBatch:
    blocks = read_slide(Slide("s", "s", data / "slides/CMU-1-Small-Region.svs", "HE"), OPTIONS)
    return np.concatenate([block.patches for block in blocks if isinstance(block, PatchBlock)])


def test_parts_real_patches_from_blurred_ones(data: Path) -> None:
    patches = real_patches(data)
    soft = np.stack([blurred(patch, sigma=3.0) for patch in patches])
    assert (edge_strength(patches) >= SHARP).mean() > 0.99
    assert (edge_strength(soft) < SHARP).mean() > 0.99


def test_parts_patches_of_another_scanner(data: Path) -> None:
    with np.load(data / "pcam/pcam_labelled_1207.npz") as archive:
        patches = archive["x"][:200]
    patches = patches[patches.std(axis=(1, 2, 3)) > 12]  # not glass
    soft = np.stack([blurred(patch, sigma=3.0) for patch in patches])
    assert (edge_strength(patches) >= SHARP).mean() > 0.99
    assert (edge_strength(soft) < SHARP).mean() > 0.99


def half_blurred(folder: Path, share: float) -> Path:
    """960 x 384 px of tissue, blurred from the left."""
    pixels = texture(960, 384)
    sharp = np.asarray(Image.fromarray(pixels[::2, ::2]).resize((960, 384), Image.Resampling.NEAREST)).copy()
    sharp[::8, ::8] = 40  # nuclei, as it were
    edge = int(960 * share)
    sharp[:, :edge] = blurred(sharp, 5.0)[:, :edge]
    return write_slide(folder / "half.tif", sharp)


def test_blurred_patches_are_left_out_counted_and_keep_their_place(tmp_path: Path) -> None:
    slide = Slide("s", "c", half_blurred(tmp_path, 0.5), "HE")
    every = [b for b in read_slide(slide, OPTIONS) if isinstance(b, PatchBlock)]
    *items, summary = read_slide(slide, CAREFUL)
    blocks = [item for item in items if isinstance(item, PatchBlock)]
    ok = np.concatenate([block.ok for block in blocks])
    x = np.concatenate([block.coords[:, 0] for block in blocks])
    assert isinstance(summary, ReadSummary)
    assert (ok == (x >= 480)).all()
    assert (summary.failed, summary.blurred) == (0, 20)
    assert all((a.patches == b.patches).all() for a, b in zip(every, blocks, strict=True))


def test_a_slide_without_a_sharp_patch_fails_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(EmptyPlanError, match="in focus"):
        list(read_slide(Slide("s", "c", half_blurred(tmp_path, 1.0), "HE"), CAREFUL))
