"""Slides for tests: small pyramids written by tifffile, whole or damaged on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage

from her2cache.slide import SlideReader
from her2cache.units import RgbImage

PINK, GLASS = (200, 120, 170), (243, 243, 244)
"""A colour that the preset "he" takes for tissue, and one that no preset does."""


def texture(width: int, height: int, seed: int = 0) -> RgbImage:
    """Tissue-coloured noise with structure at several scales, nowhere constant."""
    rng = np.random.default_rng(seed)
    noise = sum(
        ndimage.gaussian_filter(rng.standard_normal((height, width, 3)), (sigma, sigma, 0)) * sigma
        for sigma in (0.5, 2.0, 8.0)
    )
    return np.clip(np.array(PINK) + 25 * np.asarray(noise), 0, 255).astype(np.uint8)


def reduced(pixels: RgbImage, factor: int) -> RgbImage:
    """Block averages; rows and columns that make no whole block are cut off, as scanners do."""
    height, width = (side // factor * factor for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels[:height, :width]).reduce(factor))


def write_slide(
    path: Path,
    pixels: np.ndarray,
    *,
    mpp: float | None = 0.5,
    segment_px: tuple[int, int] | None = (64, 64),
    compression: str | None = "jpeg",
    factors: Sequence[int] = (1,),
    **options: Any,
) -> Path:
    """Writes a pyramidal TIFF.

    Args:
        path: where to.
        pixels: level 0, (height, width[, samples]).
        mpp: um/px of level 0; None leaves the resolution out.
        segment_px: (height, width) of a segment; None for strips.
        compression: as tifffile names it; JPEG at quality 90.
        factors: level-0 px per px of each level.
        options: further arguments of `TiffWriter.write`.
    """
    options.setdefault("photometric", "rgb" if pixels.ndim == 3 else "minisblack")
    if compression == "jpeg":
        options.setdefault("compressionargs", {"level": 90})
    with tifffile.TiffWriter(path) as tiff:
        for factor in factors:
            resolution: dict[str, Any] = {}
            if mpp is not None:
                resolution = {"resolution": (1e4 / (mpp * factor),) * 2, "resolutionunit": "CENTIMETER"}
            tiff.write(
                pixels if factor == 1 else reduced(pixels, factor),
                tile=segment_px,
                compression=compression,
                subfiletype=int(factor != 1),
                metadata=None,
                **resolution,
                **options,
            )
    return path


def level_pixels(path: Path, level: int = 0) -> RgbImage:
    """A whole level as tifffile decodes it, (height, width, 3)."""
    with tifffile.TiffFile(path) as tiff:
        return tiff.series[0].levels[level].asarray()


def decode(reader: SlideReader, level: int, indices: Sequence[int]) -> dict[int, RgbImage | str]:
    """Segments of an open slide, whole (height, width, 3), or why they cannot be decoded."""
    grid = reader.segment_grid(level)
    places = {index: np.full((grid.height, grid.width, 3), 77, np.uint8) for index in indices}
    found = reader.decode(level, np.array(indices, np.int64), places.__getitem__)
    return {index: places[index] if reason is None else reason for index, reason in found}


def make_sparse(path: Path, indices: Sequence[int], page: int = 0) -> None:
    """Takes segments out of a file's index, as writers of sparse slides do."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tags = tiff.pages[page].tags  # pyright: ignore[reportAttributeAccessIssue]
        for name in ("TileOffsets", "TileByteCounts"):
            values = list(tags[name].value)
            for index in indices:
                values[index] = 0
            tags[name].overwrite(values)


Damage = Literal["head", "middle", "tail"]


def corrupt(path: Path, index: int, damage: Damage = "middle", page: int = 0) -> None:
    """Overwrites a third of a segment's bytes; zeros at its head or tail, ones in its middle."""
    with tifffile.TiffFile(path) as tiff:
        entry = tiff.pages[page]
        offset, count = entry.dataoffsets[index], entry.databytecounts[index]
    third = count // 3
    start = {"head": 0, "middle": third, "tail": count - third}[damage]
    with path.open("r+b") as file:
        file.seek(offset + start)
        file.write((b"\xff" if damage == "middle" else b"\0") * third)
