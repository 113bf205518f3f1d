"""A contact sheet of tilings: what was taken for tissue on each slide, and where its patches lie."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from her2cache.cohort import Slide
from her2cache.errors import EmptyPlanError
from her2cache.ingest import ReadOptions, SlideLook, look_at, options_of
from her2cache.pen import find_pen
from her2cache.slide import open_slide
from her2cache.tiling import PatchPlan, plan_patches
from her2cache.units import RgbImage

CELL_PX = 420
"""Longer side of a slide on the sheet."""

FEW_PATCHES = 100
"""Fewer than the paper's bag size: such a slide cannot fill one bag without repeating patches."""

ALMOST_ALL = 0.98
"""Share of tissue above which the thresholds have probably taken glass for tissue."""

MUCH_PEN = 0.005
"""Share of a slide above which marks of a pen are pointed out."""

_OUTLINE, _GRID, _TEXT, _WARNING, _REGION = (0, 90, 200), (20, 20, 20), (30, 30, 30), (180, 30, 0), (190, 60, 0)
_CAPTION_PX, _MARGIN_PX, _TITLE_PX = 54, 12, 15


@dataclass(frozen=True)
class SheetEntry:
    """One slide of a contact sheet.

    Attributes:
        slide_id: of the slide.
        picture: thumbnail with the outlines of tissue and regions and the grid, uint8 (height, width, 3).
        n_patches: planned patches.
        tissue_share: share of the slide that is tissue, 0 to 1.
        mpp: of level 0, um/px.
        mpp_source: where that came from.
        warnings: what a person should look at.
    """

    slide_id: str
    picture: RgbImage
    n_patches: int
    tissue_share: float
    mpp: float
    mpp_source: str
    warnings: tuple[str, ...]


def sheet_entry(slide: Slide, options: ReadOptions) -> SheetEntry:
    """Finds the tissue of a slide and plans its patches, as `embed` would, and draws both.

    Raises:
        SlideError: the slide cannot be opened or has no scale. No tissue is a warning here.
    """
    plan: PatchPlan | None = None
    options = options_of(slide, options)
    with open_slide(slide.path) as reader:
        look = look_at(reader, slide, options)
        with suppress(EmptyPlanError):
            plan = plan_patches(
                options.patch, look.read, reader.level_sizes[look.read.level], look.tissue, look.regions
            )
        thumbnail, downsample = reader.thumbnail(CELL_PX)
    n_patches, share = len(plan) if plan else 0, float(look.tissue.mask.mean())
    inked = not options.tissue.skip_pen and find_pen(look.overview.image, look.overview.downsample * look.mpp)
    pen = float(np.mean(inked))
    return SheetEntry(
        slide_id=slide.slide_id,
        picture=_draw(thumbnail, downsample, look, plan),
        n_patches=n_patches,
        tissue_share=share,
        mpp=look.mpp,
        mpp_source=look.mpp_source,
        warnings=tuple(_warnings(n_patches, share, pen)),
    )


def _warnings(n_patches: int, share: float, pen: float) -> list[str]:
    if n_patches == 0:
        return ["empty: no patch has enough tissue"]
    found: list[str] = []
    if pen > MUCH_PEN:
        found.append(f"pen on {pen:.1%} of the slide: --skip-pen?")
    if n_patches < FEW_PATCHES:
        found.append(f"almost empty: fewer than {FEW_PATCHES} patches")
    if share > ALMOST_ALL:
        found.append("almost all tissue: glass taken for tissue?")
    return found


def _draw(thumbnail: RgbImage, downsample: float, look: SlideLook, plan: PatchPlan | None) -> RgbImage:
    """Draws the grid of patches, the outlines of the tissue and those of the regions over a thumbnail."""
    tissue = look.tissue
    image = Image.fromarray(thumbnail)
    pen = ImageDraw.Draw(image, "RGBA")
    for box in plan.boxes * plan.read.downsample / downsample if plan else ():
        pen.rectangle([float(v) for v in box], outline=(*_GRID, 110))
    for ring in look.regions.outlines() if look.regions else ():
        pen.line([(float(x), float(y)) for x, y in ring / downsample], fill=(*_REGION, 255), width=3)
    height, width = thumbnail.shape[:2]
    rows = (np.arange(height) + 0.5) * downsample / tissue.downsample
    columns = (np.arange(width) + 0.5) * downsample / tissue.downsample
    inside = tissue.mask[np.ix_(_within(rows, tissue.mask.shape[0]), _within(columns, tissue.mask.shape[1]))]
    edge = inside & ~np.asarray(ndimage.binary_erosion(inside, iterations=2), np.bool_)
    pixels = np.array(image)
    pixels[edge] = _OUTLINE
    return pixels


def _within(positions: np.ndarray, size: int) -> np.ndarray:
    return np.minimum(positions.astype(np.int64), size - 1)


def write_sheet(entries: Sequence[SheetEntry], out: Path, columns: int = 4) -> None:
    """Writes a contact sheet as PNG.

    Args:
        entries: the slides, in the order of the sheet.
        out: file to write.
        columns: slides side by side.
    """
    columns = max(1, min(columns, len(entries)))
    rows = -(-len(entries) // columns)
    width, height = CELL_PX + 2 * _MARGIN_PX, CELL_PX + _CAPTION_PX + 2 * _MARGIN_PX
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(_TITLE_PX), ImageFont.load_default(_TITLE_PX - 3)
    for k, entry in enumerate(entries):
        x, y = (k % columns) * width + _MARGIN_PX, (k // columns) * height + _MARGIN_PX
        pen.text((x, y), _shorten(entry.slide_id, font), fill=_TEXT, font=font)
        facts = (
            f"{entry.n_patches:,} patches, {entry.tissue_share:.0%} tissue, {entry.mpp:.4g} um/px ({entry.mpp_source})"
        )
        pen.text((x, y + 19), facts, fill=_TEXT, font=small)
        pen.text((x, y + 35), "; ".join(entry.warnings), fill=_WARNING, font=small)
        sheet.paste(Image.fromarray(entry.picture), (x, y + _CAPTION_PX))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Cuts the middle out of a text that is wider than a cell."""
    while len(text) > 8 and font.getlength(text) > CELL_PX:
        middle = len(text) // 2
        text = f"{text[: middle - 2]}…{text[middle + 1 :]}"
    return text
