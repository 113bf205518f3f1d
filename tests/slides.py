"""Slides for tests: small pyramids written by tifffile, whole or damaged on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import imagecodecs
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


def write_ome(path: Path, pixels: RgbImage, *, mpp: float = 0.5, factors: Sequence[int] = (1, 2)) -> Path:
    """Writes an OME-TIFF whose coarser levels are SubIFDs; its scale stands in the OME document alone."""
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for factor in factors:
            tiff.write(
                pixels if factor == 1 else reduced(pixels, factor),
                tile=(64, 64),
                compression="jpeg",
                compressionargs={"level": 90},
                photometric="rgb",
                subfiletype=int(factor != 1),
                subifds=len(factors) - 1 if factor == 1 else None,
                metadata={"axes": "YXS", "PhysicalSizeX": mpp * 1e3, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": mpp}
                if factor == 1
                else None,
                resolution=(72, 72),
                resolutionunit="INCH",
            )
    return path


def write_jpeg2000(
    path: Path, pixels: RgbImage, compression: int, photometric: str = "rgb", *, subsampled: bool = False
) -> Path:
    """Writes an SVS of 0.5 um/px with tiles of lossless JPEG 2000; Aperio's compression 33003 holds YCbCr."""
    height, width = pixels.shape[:2]
    samples = np.asarray(Image.fromarray(pixels).convert("YCbCr")) if compression == 33003 else pixels
    encode = _jpeg2000_422 if subsampled else partial(imagecodecs.jpeg2k_encode, codecformat=0, mct=False)
    tiles = [encode(samples[y : y + 64, x : x + 64].copy()) for y in range(0, height, 64) for x in range(0, width, 64)]
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            iter(tiles),
            shape=pixels.shape,
            dtype=np.uint8,
            tile=(64, 64),
            compression=compression,
            photometric=photometric,
            subsampling=(1, 1) if photometric == "ycbcr" else None,
            description=f"Aperio Image Library v12.0.0 \r\n{width}x{height} J2K|AppMag = 20|MPP = 0.5",
            metadata=None,
            software=False,
        )
    return path


def _jpeg2000_422(samples: RgbImage) -> bytes:
    """A codestream whose second and third component have half the width, which imagecodecs does not write.

    With one resolution, one layer and one precinct a component is one packet, and packets of components can be put
    behind each other.
    """
    parts = [samples[..., 0], samples[:, ::2, 1], samples[:, ::2, 2]]
    streams = [
        imagecodecs.jpeg2k_encode(np.ascontiguousarray(part), codecformat=0, mct=False, resolutions=1) for part in parts
    ]
    packets = b"".join(stream[stream.index(b"\xff\x93") + 2 : -2] for stream in streams)
    head = streams[0][: streams[0].index(b"\xff\x64")]  # SOC, SIZ, COD and QCD
    size, rest = head[6:40], head[45:]
    size = (38 + 9).to_bytes(2) + size + (3).to_bytes(2) + b"\7\1\1\7\2\1\7\2\1"
    start = b"\xff\x90" + (10).to_bytes(2) + bytes(2) + (14 + len(packets)).to_bytes(4) + b"\0\1"
    return b"\xff\x4f\xff\x51" + size + rest + start + b"\xff\x93" + packets + b"\xff\xd9"


def write_scn(
    path: Path,
    areas: Sequence[tuple[RgbImage, tuple[int, int]]],
    *,
    mpp: float = 0.5,
    glass_px: tuple[int, int] = (3000, 2000),
    factors: Sequence[int] = (1, 4),
) -> Path:
    """Writes a Leica SCN.

    Args:
        path: where to.
        areas: pixels of each scanned area, and the level-0 (x, y) on the glass where it begins.
        mpp: um/px of level 0.
        glass_px: (width, height) of the glass, level-0 px.
        factors: level-0 px per px of each level.
    """
    nm = round(mpp * 1000)
    pages = [np.full((glass_px[1] // 100, glass_px[0] // 100, 3), GLASS[0], np.uint8)]  # the picture of the glass
    images = [_scn_image((0, 0), glass_px, [(pages[0], 0)], nm)]
    for pixels, corner in areas:
        levels = [pixels if factor == 1 else reduced(pixels, factor) for factor in factors]
        entries = [(level, len(pages) + k) for k, level in enumerate(levels)]
        images.append(_scn_image(corner, (pixels.shape[1], pixels.shape[0]), entries, nm))
        pages += levels
    document = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection sizeX="{glass_px[0] * nm}" sizeY="{glass_px[1] * nm}">{"".join(images)}</collection></scn>'
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for k, page in enumerate(pages):
            tiff.write(
                page,
                tile=(64, 64),
                compression="jpeg",
                compressionargs={"level": 90},
                photometric="rgb",
                description=document if k == 0 else None,
                metadata=None,
                software=False,
            )
    return path


def _scn_image(corner: tuple[int, int], size: tuple[int, int], levels: list[tuple[RgbImage, int]], nm: int) -> str:
    dimensions = "".join(
        f'<dimension sizeX="{level.shape[1]}" sizeY="{level.shape[0]}" r="{r}" ifd="{ifd}"/>'
        for r, (level, ifd) in enumerate(levels)
    )
    return (
        '<image><creationDate>2020-01-01T00:00:00Z</creationDate><device model="Leica SCN400" version="1"/>'
        f'<pixels sizeX="{levels[0][0].shape[1]}" sizeY="{levels[0][0].shape[0]}">{dimensions}</pixels>'
        f'<view sizeX="{size[0] * nm}" sizeY="{size[1] * nm}" offsetX="{corner[0] * nm}" offsetY="{corner[1] * nm}"'
        ' spacingZ="0"/><scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>'
        "<illuminationSettings><numericalAperture>0.4</numericalAperture>"
        "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
    )


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


def whole_level(reader: SlideReader, level: int = 0) -> RgbImage:
    """A whole level as a reader decodes it, (height, width, 3)."""
    grid, (width, height) = reader.segment_grid(level), reader.level_sizes[level]
    found = np.zeros((grid.rows * grid.height, grid.columns * grid.width, 3), np.uint8)
    for index, pixels in decode(reader, level, range(grid.rows * grid.columns)).items():
        assert isinstance(pixels, np.ndarray), pixels
        y, x = index // grid.columns * grid.height, index % grid.columns * grid.width
        found[y : y + grid.height, x : x + grid.width] = pixels
    return found[:height, :width]


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
