"""A contact sheet of the patches that a map values most and least."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from her2cache.pyramid import plan_read
from her2cache.slide import SlideReader
from her2cache.tiling import PatchPlan, read_blocks
from her2cache.units import PatchBatch
from trainers.files import whole

_CELL_PX = 128
_GAP_PX, _MARGIN_PX, _CAPTION_PX, _TITLE_PX = 8, 14, 32, 26
_INK, _FAINT = (20, 20, 20), (90, 90, 90)
_MAX_COLUMNS = 8
_BLOCK = 256


@dataclass(frozen=True)
class Extremes:
    """Rows of the patches at both ends of a map, the most extreme first; no patch is in both."""

    top: NDArray[np.int64]
    bottom: NDArray[np.int64]


def extremes(values: NDArray[np.float64], k: int) -> Extremes:
    """The k highest and k lowest of a map's values, (n,); NaN is passed over. At most half of them each."""
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    k = min(k, (len(order) + 1) // 2)
    return Extremes(order[::-1][:k], order[: min(k, len(order) - k)])


def read_patches(
    reader: SlideReader, coords: NDArray[np.int32], patch_level0_px: float, patch_px: int, mpp_level0: float
) -> PatchBatch:
    """Reads some patches of a slide, as they were embedded but for the rounding of their stored positions.

    Args:
        reader: the open slide.
        coords: level-0 (x, y) of the patches, (n, 2).
        patch_level0_px: side of a patch, level-0 px.
        patch_px: side that it is brought to, px.
        mpp_level0: scale of level 0, um/px.

    Returns:
        uint8 (n, patch_px, patch_px, 3); white where the file cannot be decoded.
    """
    target = mpp_level0 * patch_level0_px / patch_px
    read = plan_read(mpp_level0, reader.downsamples, target, allow_upsample=True)
    side = patch_level0_px / read.downsample
    order = np.lexsort((coords[:, 0], coords[:, 1]))
    start = coords[order] / read.downsample  # (n, 2)
    if abs(side - patch_px) < 0.5:  # the level as it is: whole pixels
        start, side, read = np.rint(start), float(patch_px), replace(read, factor=1.0)
    start = np.clip(start, 0, np.maximum(np.array(reader.level_sizes[read.level]) - side, 0))
    boxes = np.concatenate([start, start + side], axis=1)  # (n, 4)
    rows = np.unique(coords[order, 1], return_inverse=True)[1]
    grid = np.stack([np.arange(len(order)), rows], axis=1).astype(np.int32)
    plan = PatchPlan(read, patch_px, grid, coords[order], boxes, (len(order), int(rows.max()) + 1))
    patches = np.empty((len(order), patch_px, patch_px, 3), np.uint8)
    for block in read_blocks(reader, plan, _BLOCK):
        patches[order[block.start : block.start + len(block.ok)]] = block.patches
    return patches


def write_contact_sheet(
    patches: tuple[PatchBatch, PatchBatch],
    values: tuple[NDArray[np.float64], NDArray[np.float64]],
    coords: tuple[NDArray[np.int32], NDArray[np.int32]],
    *,
    title: str,
    out: Path,
) -> None:
    """Writes a PNG of the highest and the lowest patches, each with its value and level-0 position.

    Args:
        patches: of the top and of the bottom, uint8 (k, side, side, 3) each.
        values: of the same, (k,) each.
        coords: level-0 (x, y) of the same, (k, 2) each.
        title: slide and map.
        out: the file to write; its folder is made.
    """
    columns = max(1, min(_MAX_COLUMNS, max(map(len, patches))))
    wide, high = _CELL_PX + _GAP_PX, _CELL_PX + _CAPTION_PX + _GAP_PX
    depths = [_TITLE_PX + -(-len(p) // columns) * high for p in patches]
    font, small = ImageFont.load_default(15), ImageFont.load_default(11)
    width = max(columns * wide - _GAP_PX, int(font.getlength(title)) + 1, 420) + 2 * _MARGIN_PX
    sheet = Image.new("RGB", (width, 2 * _MARGIN_PX + _TITLE_PX + sum(depths)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN_PX, _MARGIN_PX), title, fill=_INK, font=font)
    y = _MARGIN_PX + _TITLE_PX
    for name, own, value, place, depth in zip(("highest", "lowest"), patches, values, coords, depths, strict=True):
        pen.text((_MARGIN_PX, y + 4), f"{name} {len(own)}", fill=_INK, font=font)
        for k, pixels in enumerate(own):
            row, column = divmod(k, columns)
            left, top = _MARGIN_PX + column * wide, y + _TITLE_PX + row * high
            picture = Image.fromarray(pixels).resize((_CELL_PX, _CELL_PX), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left, top))
            pen.text((left, top + _CELL_PX + 2), f"{value[k]:#.3g}", fill=_INK, font=small)
            pen.text((left, top + _CELL_PX + 16), f"x {place[k, 0]:,}  y {place[k, 1]:,}", fill=_FAINT, font=small)
        y += depth
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as partial:
        sheet.save(partial, format="PNG")
