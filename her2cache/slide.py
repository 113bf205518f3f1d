"""A slide file: its properties, an overview, and its segments, each decoded once.

Opened through tiffslide; segments are decoded by tifffile one by one, which is some thirty times
faster than a `read_region` a patch and yields the same pixels. A reader does not pickle: send paths
between processes and open them there.
"""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tifffile.tifffile import jpeg_decode_colorspace
from tiffslide import TiffSlide

from her2cache import jpeg
from her2cache.canvas import WHITE, SegmentGrid
from her2cache.errors import DecodeError, MissingMppError, SlideOpenError
from her2cache.overview import average
from her2cache.shelf import Shelf, open_shelf
from her2cache.tissue import Overview
from her2cache.units import MPP_RANGE, RgbImage

_RGB, _YCBCR = 2, 6  # TIFF tag PhotometricInterpretation
_JPEG = 7  # TIFF tag Compression
_JPEGS = {6, _JPEG, 34892, 33007}  # these share tables between segments

MppSource = Literal["cohort", "file", "objective power"]


class SlideReader:
    """An open slide. Use `open_slide`, and as a context manager.

    Attributes:
        path: the file.
        size: (width, height) of level 0, px.
        level_sizes: (width, height) of each level, px.
        downsamples: level-0 px per px of each level.
        decoded: segments decoded so far, a level each (to prove that none is decoded twice).
    """

    def __init__(self, path: Path, slide: TiffSlide) -> None:
        self.path = path
        self._slide = slide
        self._properties: dict[str, Any] = slide.properties
        series = slide.ts_tifffile.series[self._properties["tiffslide.series-index"]]
        self._pages = [level.pages[0] for level in series.levels]
        for k, page in enumerate(self._pages):
            _check_page(path, k, page, series.axes)
        self.level_sizes: tuple[tuple[int, int], ...] = tuple((p.imagewidth, p.imagelength) for p in self._pages)
        if self.level_sizes != slide.level_dimensions:
            raise SlideOpenError(
                f"{path} is put together of several scanned areas, which this reader does not do; export each area as"
                " a pyramidal TIFF of its own"
            )
        self.size: tuple[int, int] = self.level_sizes[0]
        self.downsamples = tuple(_downsample(self.size, size) for size in self.level_sizes)
        self.decoded = [0] * len(self._pages)
        self._kept: Shelf | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._kept is not None:
            self._kept.close()
        self._slide.close()

    @property
    def reader(self) -> str:
        """Name of the library and of the format it found, recorded with the features."""
        return f"tiffslide/{self._properties['tiffslide.vendor']}"

    @property
    def file_mpp(self) -> float | None:
        """Scale of level 0 by the file's metadata, um/px: the mean of x and y."""
        x, y = self._number("tiffslide.mpp-x"), self._number("tiffslide.mpp-y")
        return None if x is None or y is None else (x + y) / 2

    @property
    def objective_power(self) -> float | None:
        """Magnification of the objective by the file's metadata."""
        return self._number("tiffslide.objective-power")

    def _number(self, name: str) -> float | None:
        try:
            return float(self._properties[name])
        except (KeyError, TypeError, ValueError):  # not there, None, or text such as "40x"
            return None

    def segment_grid(self, level: int) -> SegmentGrid:
        """How a level is cut into segments."""
        page = self._pages[level]
        width, height = self.level_sizes[level]
        segment_height = page.tilelength if page.is_tiled else page.rowsperstrip
        segment_width = page.tilewidth if page.is_tiled else width
        return SegmentGrid(
            width=segment_width,
            height=segment_height,
            columns=math.ceil(width / segment_width),
            rows=math.ceil(height / segment_height),
        )

    def decode(
        self, level: int, indices: NDArray[np.int64], place: Callable[[int], RgbImage]
    ) -> Iterator[tuple[int, str | None]]:
        """Decodes segments of a level.

        Args:
            level: index of the level.
            indices: indices of segments in the level's grid, row by row.
            place: gives the array that a segment's pixels go into, uint8 (height, width, 3), contiguous. Those
                outside the level are left as they are; a segment that the file leaves out, or that cannot be decoded,
                is white.

        Yields:
            (index, reason): None, or why the segment cannot be decoded; in any order.
        """
        wanted: list[int] = []
        for index in indices.tolist():
            if self._kept is not None and (level, index) in self._kept:
                yield index, self._kept.take((level, index), place(index))
            else:
                wanted.append(index)
        page = self._pages[level]
        offsets, counts = page.dataoffsets, page.databytecounts
        present = [i for i in wanted if i < len(offsets) and i < len(counts)]
        for index in set(wanted) - set(present):
            place(index)[:] = WHITE
            yield index, "the file's index of segments is too short"
        if not present:
            return
        file = page.parent.filehandle
        decode = _decoder(page)
        places = [offsets[i] for i in present], [counts[i] for i in present]
        for data, index in file.read_segments(*places, indices=present, lock=file.lock):
            pixels, reason = place(index), None
            if data is None:
                pixels[:] = WHITE
            else:
                whole = len(data) == counts[index]
                reason = decode(data, index, pixels) if whole else "the file ends before its segment does"
                self.decoded[level] += whole
                if reason is not None:
                    pixels[:] = WHITE
            yield index, reason

    def overview(self, mpp: float, level0_mpp: float, *, reread: int | None = None) -> Overview:
        """A picture of the whole slide at about a scale.

        The coarsest level that is fine enough is averaged over whole numbers of pixels.

        Args:
            mpp: wanted scale, um/px.
            level0_mpp: scale of level 0, um/px.
            reread: a level whose segments are asked for afterwards; those decoded here are kept for then.
        """
        fine = [k for k, downsample in enumerate(self.downsamples) if downsample * level0_mpp <= mpp]
        level = max(fine, key=lambda k: self.downsamples[k], default=0)
        step = max(1, round(mpp / (self.downsamples[level] * level0_mpp)))
        grid = self.segment_grid(level)
        if level == reread:
            self._kept = open_shelf(grid.rows * grid.columns * grid.height * grid.width * 3, self.path)
        segments = self._decode_level(level, grid, self._kept if level == reread else None)
        image, undecodable = average(segments, grid, self.level_sizes[level], step)
        return Overview(image, undecodable, self.downsamples[level] * step)

    def thumbnail(self, max_px: int) -> tuple[RgbImage, float]:
        """A picture of the whole slide whose longer side has at most `max_px`, and its level-0 px per px."""
        downsample = max(self.size) / max_px
        overview = self.overview(downsample, 1.0)
        image, reached = overview.image, overview.downsample
        height, width = image.shape[:2]
        if max(width, height) <= max_px:
            return image, reached
        columns, rows = (max(1, int(side / downsample + 1e-6)) for side in self.size)
        box = (0, 0, min(columns * downsample / reached, width), min(rows * downsample / reached, height))
        return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BOX, box=box)), downsample

    def _decode_level(
        self, level: int, grid: SegmentGrid, shelf: Shelf | None
    ) -> Iterator[tuple[int, RgbImage, str | None]]:
        pixels = np.empty((grid.height, grid.width, 3), np.uint8)
        for start in range(0, grid.rows * grid.columns, grid.columns):
            for index, reason in self.decode(level, np.arange(start, start + grid.columns), lambda _: pixels):
                if shelf is not None:
                    shelf.put((level, index), pixels, reason)
                yield index, pixels, reason


def open_slide(path: Path) -> SlideReader:
    """Opens a slide file.

    Raises:
        SlideOpenError: missing, a directory, not a slide, truncated, or of a kind this reader does not know.
    """
    try:
        if path.is_dir():
            raise SlideOpenError(f"{path} is a directory, not a slide; name a slide file or a cohort table")
        if not path.is_file():
            raise SlideOpenError(
                f"{path} does not exist on this machine; correct the path, or mount the storage it lies on"
            )
        return _open_tiff(path)
    except SlideOpenError:
        raise
    except PermissionError as error:
        raise SlideOpenError(
            f"{path} may not be read by this user ({error.strerror}); change its permissions"
        ) from error
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise SlideOpenError(
            f"{path} cannot be opened as a slide ({type(error).__name__}: {reason}): it is not a TIFF-based slide, or"
            " is truncated; compare its size with the original and copy it again"
        ) from error


def _open_tiff(path: Path) -> SlideReader:
    with warnings.catch_warnings(), _tifffile_log() as log:
        warnings.simplefilter("ignore")  # tiffslide: NDPI metadata is parsed only in part, which is enough here
        slide = TiffSlide(path)
        try:
            reader = SlideReader(path, slide)
            if any("invalid page offset" in message for message in log):
                raise SlideOpenError(
                    f"{path} is truncated: images that it lists lie behind its end; copy it again from the original"
                )
        except BaseException:
            slide.close()
            raise
        return reader


@contextmanager
def _tifffile_log() -> Generator[list[str]]:
    """Collects what tifffile would print of a damaged file."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("tifffile")
    propagates, level = logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)  # whoever silenced it for the terminal's sake
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
        logger.setLevel(level)


def resolve_mpp(slide: SlideReader, override: float | None, *, assume_power: bool = False) -> tuple[float, MppSource]:
    """Scale of level 0: the cohort's column, then the file's metadata, then the objective's power.

    Args:
        slide: an open slide.
        override: the cohort's value, um/px.
        assume_power: whether 10 / power may stand for a missing scale (0.25 um/px at 40x).

    Returns:
        um/px, and where it came from.

    Raises:
        MissingMppError: none is known, or the one that counts is implausible.
    """
    remedy = "fill the column mpp of the cohort table (um/px of level 0)"
    found: tuple[float, MppSource] | None = None
    if override is not None:
        found = override, "cohort"
    elif slide.file_mpp is not None:
        found = slide.file_mpp, "file"
    elif assume_power and slide.objective_power:
        found = 10 / slide.objective_power, "objective power"
    if found is None:
        hint = ", or pass --assume-power to take it from the objective" if slide.objective_power else ""
        raise MissingMppError(f"{slide.path} does not say its scale (no resolution in its metadata); {remedy}{hint}")
    low, high = MPP_RANGE
    if not low <= found[0] <= high:
        raise MissingMppError(
            f"{slide.path}: {found[0]:g} um/px by the {found[1]} is not plausible (outside {low:g} to {high:g});"
            f" {remedy}"
        )
    return found


def file_identity(path: Path) -> dict[str, Any]:
    """What tells a file's content from another's: bytes, mtime_ns, and the sha256 of it all, hex."""
    found = path.stat()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": digest}


def file_changed(path: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a file is another than the one of that identity. The whole of it is read only when in doubt.

    A file that is not there, or not a file, has not changed.
    """
    if not path.is_file():
        return False
    found = path.stat()
    if found.st_size != identity["bytes"]:
        return True
    if found.st_mtime_ns == identity.get("mtime_ns"):
        return False
    return file_identity(path)["sha256"] != identity["sha256"]


def require_readable(path: Path, failed: int, planned: int, share: float, reason: str) -> None:
    """Refuses a slide of which too much could not be decoded.

    Raises:
        DecodeError: more than `share` of its patches failed.
    """
    if failed > share * planned:
        raise DecodeError(
            f"{path}: {failed} of {planned} patches cannot be decoded (first reason: {reason}), more than the"
            f" {share:.1%} allowed: the file is truncated or damaged; copy it again, or raise --max-bad-patches"
        )


def _decoder(page: Any) -> Callable[[bytes, int, RgbImage], str | None]:
    """A function of a segment's data, its index and its place; it returns why the data cannot be decoded."""
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in _JPEGS else {}
    is_tiled, decode = page.is_tiled, page.decode
    inspector = jpeg.Inspector(**tables) if page.compression == _JPEG else None
    decode_jpeg = _jpeg_decoder(page) if inspector and is_tiled and page.samplesperpixel == 3 else None

    def decode_into(data: bytes, index: int, place: RgbImage) -> str | None:
        if inspector is not None and (reason := inspector.damage(data)):
            return reason
        try:
            if decode_jpeg is not None:
                decode_jpeg(data, out=place)
                return None
        except Exception:  # noqa: BLE001 - not of the segments' size, perhaps: tifffile knows what to do then
            pass
        try:
            pixels = decode(data, index, **tables, _fullsize=is_tiled)[0][0, :, :, :3]
        except Exception as error:  # noqa: BLE001 - codecs raise what they like; the reason is recorded
            return f"{type(error).__name__}: {error}"
        place[: len(pixels), : pixels.shape[1]] = pixels
        return None

    return decode_into


def _jpeg_decoder(page: Any) -> Callable[..., object]:
    """What tifffile calls for a tile of JPEG, which takes the array that the pixels go into."""
    colours = jpeg_decode_colorspace(page.photometric, page.planarconfig, page.extrasamples, page.is_jfif)
    return partial(
        imagecodecs.jpeg_decode,
        bitspersample=page.bitspersample,
        tables=page.jpegtables,
        header=page.jpegheader,
        colorspace=colours[0],
        outcolorspace=colours[1],
        shape=(page.tilelength, page.tilewidth),
    )


def _check_page(path: Path, level: int, page: Any, axes: str) -> None:
    # tifffile turns YCbCr into RGB only where JPEG holds it
    is_rgb = page.photometric == _RGB or (page.photometric == _YCBCR and page.compression in _JPEGS)
    if axes != "YXS" or page.samplesperpixel not in {3, 4} or page.dtype != np.uint8 or not is_rgb:
        raise SlideOpenError(
            f"{path}: level {level} has axes {axes}, {page.samplesperpixel} samples of {page.dtype} a pixel, colours"
            f" {getattr(page.photometric, 'name', page.photometric)}, but patches are 8-bit RGB; convert the file to a"
            " pyramidal RGB TIFF"
        )


def _downsample(full: tuple[int, int], size: tuple[int, int]) -> float:
    """Level-0 px per level px. A level has whole pixels, so an integer that explains both its sides is meant."""
    ratio = (full[0] / size[0] + full[1] / size[1]) / 2
    whole = round(ratio)
    return float(whole) if all(abs(f / whole - s) < 1 for f, s in zip(full, size, strict=True)) else ratio
