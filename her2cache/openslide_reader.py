"""Slides that are no plain TIFF, through OpenSlide (the extra `openslide`): DICOM, MRXS, BIF and VMS.

None of these has been run on a real file, for want of any. Tests run this reader on synthetic DICOM (tiles of JPEG and
plain ones, all of them or some left out), on a real SVS and on synthetic TIFFs; MRXS, BIF and VMS not at all.

What OpenSlide's decoders pass over, such as a hole of zeros in a JPEG tile, goes unseen here (`jpeg` sees it in TIFFs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from her2cache.canvas import WHITE, SegmentGrid
from her2cache.dicom import frames_damage, is_dicom
from her2cache.errors import SlideOpenError
from her2cache.identity import slide_files
from her2cache.reader import SlideReader, downsample_between
from her2cache.units import RgbImage

if TYPE_CHECKING:
    from openslide import OpenSlide

_FORMATS = {".dcm": "DICOM", ".mrxs": "MRXS", ".bif": "BIF", ".vms": "VMS", ".vmu": "VMU"}
_SEGMENT_PX = 512
"""Side of a segment where OpenSlide does not tell the file's own, or tells one outside the next range."""
_SEGMENT_RANGE = range(64, 2049)


def format_of(path: Path) -> str | None:
    """The name of a format that only OpenSlide reads, by the file's suffix or head; None for any other."""
    return _FORMATS.get(path.suffix.lower()) or ("DICOM" if is_dicom(path) else None)


class OpenSlideReader(SlideReader):
    """A slide read through OpenSlide.

    Segments are virtual: regions of the size of the file's own tiles, as far as OpenSlide tells it. What a file leaves
    out is transparent, and becomes white.

    Levels whose sides are whole fractions of level 0 are read exactly. OpenSlide takes the corner of a region in
    level-0 px, so that of other levels it lies up to half a level-0 px off, and the region is interpolated.
    """

    def __init__(self, path: Path, kind: str) -> None:
        """Opens a slide.

        Args:
            path: the file; of a DICOM series, any file that holds a level.
            kind: name of its format, for messages.

        Raises:
            SlideOpenError: OpenSlide is not installed, or cannot open the file.
        """
        try:
            import openslide
        except (ImportError, OSError) as error:  # OSError: its shared library is broken
            raise SlideOpenError(
                f"{path} is a slide in the format {kind}, which needs OpenSlide, and that is not installed here"
                f" ({str(error).partition(chr(10))[0]}); pip install 'her2cache[openslide]'"
            ) from error
        for file in slide_files(path) if kind == "DICOM" else []:
            if reason := frames_damage(file):
                raise SlideOpenError(f"{file} is damaged ({reason}); copy it again from the original")
        self._openslide = openslide
        self._slide: OpenSlide | None = None
        try:
            slide = self._slide = openslide.OpenSlide(path)
            self._properties = dict(slide.properties)
            self._factors = slide.level_downsamples
            sizes = slide.level_dimensions
        except openslide.OpenSlideError as error:
            self._close()
            raise SlideOpenError(
                f"{path} cannot be opened by OpenSlide ({str(error) or type(error).__name__}): it is not a slide in"
                f" the format {kind}, is damaged, or lacks files that belong beside it; copy all of them again"
            ) from error
        super().__init__(path, sizes, [downsample_between(sizes[0], size) for size in sizes])

    @property
    def reader(self) -> str:
        return f"openslide/{self._properties['openslide.vendor']}"

    @property
    def file_mpp(self) -> float | None:
        x, y = self._number("openslide.mpp-x"), self._number("openslide.mpp-y")
        return None if x is None or y is None else (x + y) / 2

    @property
    def objective_power(self) -> float | None:
        return self._number("openslide.objective-power")

    @property
    def origin(self) -> tuple[int, int]:
        x, y = self._number("openslide.bounds-x"), self._number("openslide.bounds-y")
        return int(x or 0), int(y or 0)

    def _number(self, name: str) -> float | None:
        try:
            return float(self._properties[name])
        except (KeyError, ValueError):
            return None

    def segment_grid(self, level: int) -> SegmentGrid:
        sides: list[int] = []
        for name in ("width", "height"):
            told = int(self._number(f"openslide.level[{level}].tile-{name}") or 0)
            sides.append(told if told in _SEGMENT_RANGE else _SEGMENT_PX)
        width, height = self.level_sizes[level]
        return SegmentGrid(*sides, columns=math.ceil(width / sides[0]), rows=math.ceil(height / sides[1]))

    def _decode(
        self, level: int, indices: list[int], place: Callable[[int], RgbImage]
    ) -> Iterator[tuple[int, str | None]]:
        grid = self.segment_grid(level)
        width, height = self.level_sizes[level]
        for index in indices:
            row, column = divmod(index, grid.columns)
            x, y = column * grid.width, row * grid.height
            size = min(grid.width, width - x), min(grid.height, height - y)
            pixels, reason = place(index), None
            try:
                pixels[: size[1], : size[0]] = self._read(level, (x, y), size)
                self.decoded[level] += 1
            except self._openslide.OpenSlideError as error:
                self._close()  # after an error OpenSlide refuses everything: the next segment opens it anew
                reason = f"OpenSlide: {str(error) or type(error).__name__}"
                pixels[:] = WHITE
            yield index, reason

    def _read(self, level: int, corner: tuple[int, int], size: tuple[int, int]) -> RgbImage:
        """Pixels of a level from (x, y) on, uint8 (height, width, 3)."""
        if self._slide is None:
            self._slide = self._openslide.OpenSlide(self._file)
        x, y = (round(v * self._factors[level]) for v in corner)
        return on_white(np.asarray(self._slide.read_region((x, y), level, size)))

    def _close(self) -> None:
        if self._slide is not None:
            self._slide.close()
            self._slide = None


def on_white(pixels: RgbImage) -> RgbImage:
    """Lays pixels with opacity, uint8 (height, width, 4), on white: uint8 (height, width, 3)."""
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.min(initial=255) == 255:
        return colours
    alpha = alpha.astype(np.uint16)
    return ((colours * alpha + WHITE * (255 - alpha) + 127) // 255).astype(np.uint8)
