"""A slide file: opening it, its scale, and its segments, each decoded once.

TIFF-based slides are opened through tiffslide; their segments are decoded by tifffile one by one, which is some thirty
times faster than a `read_region` a patch and yields the same pixels. Other formats go through OpenSlide (see
`openslide_reader`). A reader does not pickle: send paths between processes and open them there.

Of the TIFF-based formats SVS (JPEG) has been run on a real file, NDPI on real pixels in a synthetic container; SVS
with JPEG 2000, OME-TIFF, SCN and generic TIFF on synthetic files.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import imagecodecs
import numpy as np
from tifffile.tifffile import TIFF, jpeg_decode_colorspace
from tiffslide import TiffSlide

from her2cache import jpeg
from her2cache.canvas import WHITE, SegmentGrid
from her2cache.directories import directories_damage
from her2cache.errors import DecodeError, MissingMppError, SlideOpenError
from her2cache.identity import file_changed, file_identity
from her2cache.jpeg2000 import decode_ycbcr, header_damage, is_subsampled
from her2cache.openslide_reader import OpenSlideReader, format_of
from her2cache.pages import alike, grid_of, require_usable
from her2cache.reader import SlideReader
from her2cache.reader import downsample_between as _downsample
from her2cache.remote import RemotePath, SlidePath
from her2cache.units import MPP_RANGE, RgbImage

__all__ = [
    "MppSource",
    "SlideReader",
    "TiffReader",
    "file_changed",
    "file_identity",
    "open_slide",
    "require_readable",
    "resolve_mpp",
]

_PLAIN, _JPEG = 1, 7  # TIFF tag Compression
_JPEGS = {6, _JPEG, 34892, 33007}  # these share tables between segments
_JPEG2000_YCBCR = 33003  # Aperio's, whatever its photometric tag says
_JPEGS_2000 = {33004, 33005, 34712}

_DRY = "its JPEG data ends before its pixels do"

_UM_PER_UNIT = {"nm": 1e-3, "µm": 1.0, "mm": 1e3, "cm": 1e4}  # OME's units of length

MppSource = Literal["cohort", "file", "objective power"]


class TiffReader(SlideReader):
    """A TIFF-based slide. Of a Leica SCN the scanned area is the slide, not the glass that it lies on."""

    def __init__(self, path: Path, slide: TiffSlide) -> None:
        self._slide = slide
        self._properties: dict[str, Any] = slide.properties
        series = slide.ts_tifffile.series[self._properties["tiffslide.series-index"]]
        pages = [level.pages[0] for level in series.levels]
        for k, page in enumerate(pages):
            # of YCbCr tifffile turns into RGB what JPEG holds, and `jpeg2000` Aperio's
            require_usable(path, k, page, series.axes, TIFF.DECOMPRESSORS, {*_JPEGS, _JPEG2000_YCBCR})
        sizes = [(page.imagewidth, page.imagelength) for page in pages]
        fitting = [k for k, size in enumerate(sizes) if alike(sizes[0], size)]
        if len(fitting) < len(pages):
            logging.getLogger(__name__).warning(
                "%s: %d of its %d levels are of another shape than level 0; they are not used",
                path,
                len(pages) - len(fitting),
                len(pages),
            )
        self._pages = [pages[k] for k in fitting]
        sizes = [sizes[k] for k in fitting]
        super().__init__(path, sizes, [_downsample(sizes[0], size) for size in sizes])

    @property
    def reader(self) -> str:
        kind = "ome-tiff" if self._slide.ts_tifffile.is_ome else "generic-tiff"
        return f"tiffslide/{self._properties['tiffslide.vendor'] or kind}"

    @property
    def file_mpp(self) -> float | None:
        ome = self._slide.ts_tifffile.ome_metadata
        if ome is not None and (scale := _ome_scale(ome)) is not None:
            return scale  # tags that some writers of OME-TIFF leave at 72 dpi are no match for it
        x, y = self._number("tiffslide.mpp-x"), self._number("tiffslide.mpp-y")
        return None if x is None or y is None else (x + y) / 2

    @property
    def objective_power(self) -> float | None:
        return self._number("tiffslide.objective-power")

    def _number(self, name: str) -> float | None:
        try:
            return float(self._properties[name])
        except (KeyError, TypeError, ValueError):  # not there, None, or text such as "40x"
            return None

    def segment_grid(self, level: int) -> SegmentGrid:
        return grid_of(self._pages[level])

    def _decode(
        self, level: int, indices: list[int], place: Callable[[int], RgbImage]
    ) -> Iterator[tuple[int, str | None]]:
        page, grid = self._pages[level], self.segment_grid(level)
        width, height = self.level_sizes[level]
        file = page.parent.filehandle
        present: list[int] = []
        for index in indices:
            offset, count = page.dataoffsets[index], page.databytecounts[index]
            sparse = count == 0 and not page.jpegheader  # parts of one JPEG are never left out
            if not sparse and 0 < offset < offset + count <= file.size:
                present.append(index)
                continue
            place(index)[:] = WHITE
            yield index, None if sparse else "the file ends before its segment does, or its index is damaged"
        if not present:
            return
        decode = _decoder(page)
        offsets, counts = ([table[i] for i in present] for table in (page.dataoffsets, page.databytecounts))
        for data, index in file.read_segments(offsets, counts, indices=present, lock=file.lock):
            pixels, row, column = place(index), *divmod(index, grid.columns)
            inside = pixels[: height - row * grid.height, : width - column * grid.width]
            if data is None or len(data) < page.databytecounts[index]:
                reason = "the file ends before its segment does"
            else:
                reason = decode(data, index, pixels, inside.shape[:2])
                self.decoded[level] += 1
            if reason is not None:
                pixels[:] = WHITE
            yield index, reason

    def _close(self) -> None:
        self._slide.close()


def open_slide(path: SlidePath) -> SlideReader:
    """Opens a slide file; one in object storage is staged on this node first.

    Raises:
        SlideOpenError: missing, a directory, not a slide, truncated, or of a kind this reader does not know.
    """
    if isinstance(path, RemotePath):
        return _open_remote(path)
    try:
        if path.is_dir():
            raise SlideOpenError(f"{path} is a directory, not a slide; name a slide file or a cohort table")
        if not path.is_file():
            raise SlideOpenError(
                f"{path} does not exist on this machine; correct the path, or mount the storage it lies on"
            )
        kind = format_of(path)
        return _open_tiff(path) if kind is None else OpenSlideReader(path, kind)
    except SlideOpenError:
        raise
    except PermissionError as error:
        raise SlideOpenError(
            f"{path} may not be read by this user ({error.strerror}); change its permissions"
        ) from error
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise SlideOpenError(_refusal(path, f"{type(error).__name__}: {reason}")) from error


def _refusal(path: Path, reason: str) -> str:
    return (
        f"{path} cannot be opened as a slide ({reason}): it is not a TIFF-based slide, or is damaged or truncated;"
        " compare its size with the original and copy it again"
    )


def _open_remote(path: RemotePath) -> SlideReader:
    with ExitStack() as held:
        copy = held.enter_context(path.local())
        try:
            reader = open_slide(copy.path)
        except SlideOpenError as error:
            raise SlideOpenError(str(error).replace(str(copy.path), str(path))) from error
        reader.path, reader.identity = path, copy.identity
        reader.keep(held.pop_all())
        return reader


def _open_tiff(path: Path) -> SlideReader:
    if reason := directories_damage(path):
        raise SlideOpenError(_refusal(path, reason))
    with _tifffile_log() as log:
        slide = TiffSlide(path)
        try:
            if kind := _beyond_tiffslide(slide):
                slide.close()
                return OpenSlideReader(path, kind)
            reader = TiffReader(path, slide)
            if any("invalid page offset" in message for message in log):
                raise SlideOpenError(
                    f"{path} is truncated: images that it lists lie behind its end; copy it again from the original"
                )
        except BaseException:
            slide.close()
            raise
        return reader


def _beyond_tiffslide(slide: TiffSlide) -> str | None:
    """The name of a format whose pieces tiffslide opens but does not put together; None for any other."""
    if slide.ts_tifffile.is_bif:
        return "BIF"
    pieces = slide.properties.get("tiffslide.series-composition")
    return "SCN with several scanned areas" if pieces and len(pieces["located_series"]) > 1 else None


_heard: ContextVar[list[str] | None] = ContextVar("tifffile's messages while this thread opens a slide", default=None)


def _divert(record: logging.LogRecord) -> bool:
    """Keeps a message of tifffile for the thread that is opening a slide; False when it goes no further."""
    messages = _heard.get()
    if messages is None:
        return True
    messages.append(record.getMessage())
    return False


# Set once, not around each opening: threads open slides at the same time, and both are the process's own.
logging.getLogger("tifffile").filters.insert(0, _divert)  # before one of the command's that drops them
logging.getLogger("tifffile").setLevel(logging.WARNING)  # heard even where the root logger is told to be quieter
warnings.filterwarnings("ignore", ".*metadata parsing only partially implemented", UserWarning)  # NDPI's suffices here


@contextmanager
def _tifffile_log() -> Generator[list[str]]:
    """Collects what tifffile would print of a damaged file, in this thread."""
    messages: list[str] = []
    token = _heard.set(messages)
    try:
        yield messages
    finally:
        _heard.reset(token)


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


def require_readable(path: SlidePath, failed: int, planned: int, share: float, reason: str) -> None:
    """Refuses a slide of which too much could not be decoded.

    Raises:
        DecodeError: more than `share` of its patches failed.
    """
    if failed > share * planned:
        raise DecodeError(
            f"{path}: {failed} of {planned} patches cannot be decoded (first reason: {reason}), more than the"
            f" {share:.1%} allowed: the file is truncated or damaged; copy it again, or raise --max-bad-patches"
        )


def _decoder(page: Any) -> Callable[[bytes, int, RgbImage, tuple[int, int]], str | None]:
    """A function that decodes a segment, and returns why it cannot.

    It takes the data, the segment's index, its place, and (height, width) of the part of it inside the level.
    """
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in _JPEGS else {}
    is_tiled, decode = page.is_tiled, page.decode
    inspector = jpeg.Inspector(**tables) if page.compression == _JPEG else None
    decode_jpeg = _jpeg_decoder(page) if inspector and is_tiled and page.samplesperpixel == 3 else None
    is_jpeg2000 = page.compression in {_JPEG2000_YCBCR, *_JPEGS_2000}

    def damage(data: bytes, place: tuple[int, int], inside: tuple[int, int]) -> str | None:
        if inspector is not None:
            return inspector.damage(data, place, inside)
        if is_jpeg2000:
            return header_damage(data, place, inside)
        if page.compression == _PLAIN and len(data) > math.prod(place) * page.samplesperpixel + 3:  # filled up to words
            return "it is longer than its pixels are"
        return None

    def decode_any(data: bytes, index: int) -> RgbImage:
        return decode(data, index, **tables, _fullsize=is_tiled)[0][0, :, :, :3]

    def decode_into(data: bytes, index: int, place: RgbImage, inside: tuple[int, int]) -> str | None:
        if reason := damage(data, place.shape[:2], inside):
            return reason
        try:
            if decode_jpeg is not None:
                decode_jpeg(data, out=place)
                return _DRY if jpeg.ran_dry(data, place, decode_jpeg) else None
        except Exception:  # noqa: BLE001 - not of the segments' size, perhaps: tifffile knows what to do then
            pass
        try:
            if page.compression == _JPEG2000_YCBCR:
                pixels = decode_ycbcr(data)[: len(place), : place.shape[1]]
            elif is_jpeg2000 and page.samplesperpixel == 3 and is_subsampled(data):
                return "its components of JPEG 2000 differ in size"
            else:
                pixels = decode_any(data, index)
                if inspector is not None and jpeg.ran_dry(data, pixels, partial(decode_any, index=index)):
                    return _DRY
        except Exception as error:  # noqa: BLE001 - codecs raise what they like; the reason is recorded
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if pixels.dtype != np.uint8 or pixels.shape[0] < inside[0] or pixels.shape[1] < inside[1]:
            return f"it holds {pixels.shape[1]} x {pixels.shape[0]} px of {pixels.dtype}"
        place[: len(pixels), : pixels.shape[1]] = pixels
        return None

    return decode_into


def _jpeg_decoder(page: Any) -> Callable[..., RgbImage]:
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


def _ome_scale(xml: str) -> float | None:
    """Scale of the first image of an OME document, um/px: the mean of x and y."""
    try:
        pixels = ElementTree.fromstring(xml).find("{*}Image/{*}Pixels")
        given = {} if pixels is None else pixels.attrib
        x, y = (float(given[f"PhysicalSize{a}"]) * _UM_PER_UNIT[given.get(f"PhysicalSize{a}Unit", "µm")] for a in "XY")
    except (ElementTree.ParseError, KeyError, ValueError):
        return None
    return (x + y) / 2
