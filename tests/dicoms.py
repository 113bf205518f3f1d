"""Whole-slide DICOM series for tests, written by hand: one file a level, tiles of JPEG or of plain pixels."""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from pathlib import Path

import imagecodecs
import numpy as np

from her2cache.units import RgbImage

_WSI = "1.2.840.10008.5.1.4.1.1.77.1.6"
_EXPLICIT, _JPEG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"
_LONG = {"OB", "SQ", "UN"}  # kinds of value whose length takes four bytes
_UNDEFINED = 0xFFFFFFFF


def encode(tile: RgbImage) -> bytes:
    """A tile as JPEG of RGB at quality 90."""
    return imagecodecs.jpeg_encode(np.ascontiguousarray(tile), level=90, colorspace="RGB", outcolorspace="RGB")


def tiles_of(pixels: RgbImage, side: int) -> list[RgbImage]:
    """A level cut into square tiles, row by row; those at the border are filled up with their last pixels."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % side), (0, -width % side), (0, 0)), mode="edge")
    rows, columns = (length // side for length in padded.shape[:2])
    return [padded[r * side : (r + 1) * side, c * side : (c + 1) * side] for r in range(rows) for c in range(columns)]


def write_series(
    folder: Path,
    levels: Sequence[RgbImage],
    *,
    mpp: float = 0.5,
    side: int = 64,
    series: str = "1.2.826.0.1.3680043.9.1",
    jpeg: bool = True,
    missing: Collection[int] = (),
) -> list[Path]:
    """Writes a series, one file a level.

    Args:
        folder: where to; it is made.
        levels: pixels of each level, (height, width, 3).
        mpp: um/px of level 0.
        side: of a tile, px.
        series: its UID.
        jpeg: whether tiles are JPEG.
        missing: tiles of level 0 that are left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for k, pixels in enumerate(levels):
        path = folder / f"{series.rpartition('.')[2]}-{k}.dcm"
        scale = mpp * levels[0].shape[1] / pixels.shape[1]
        path.write_bytes(_level(pixels, f"{series}.{k + 1}", series, k, scale, side, jpeg, missing if k == 0 else ()))
        paths.append(path)
    return paths


def _level(
    pixels: RgbImage,
    instance: str,
    series: str,
    level: int,
    mpp: float,
    side: int,
    jpeg: bool,
    missing: Collection[int],
) -> bytes:
    height, width = pixels.shape[:2]
    columns = -(-width // side)
    frames = {k: tile for k, tile in enumerate(tiles_of(pixels, side)) if k not in missing}
    kind = r"ORIGINAL\PRIMARY\VOLUME\NONE" if level == 0 else r"DERIVED\PRIMARY\VOLUME\RESAMPLED"
    spacing = _element(0x00280030, "DS", _text(f"{mpp / 1000:.12g}\\{mpp / 1000:.12g}"))
    positions = [
        _sequence(
            0x0048021A,
            _element(0x0048021E, "SL", struct.pack("<i", k % columns * side + 1))
            + _element(0x0048021F, "SL", struct.pack("<i", k // columns * side + 1)),
        )
        for k in frames
    ]
    elements = [
        _element(0x00080008, "CS", _text(kind)),
        _element(0x00080016, "UI", _uid(_WSI)),
        _element(0x00080018, "UI", _uid(instance)),
        _element(0x00080060, "CS", _text("SM")),
        # a series that is only referred to, as many files have it before their own
        _sequence(0x00081115, _element(0x0020000E, "UI", _uid("1.2.3.4.5"))),
        _element(0x0020000D, "UI", _uid("1.2.826.0.1.3680043.9.0")),
        _element(0x0020000E, "UI", _uid(series)),
        _element(0x00209311, "CS", _text("TILED_SPARSE" if missing else "TILED_FULL")),
        _element(0x00280002, "US", struct.pack("<H", 3)),
        _element(0x00280004, "CS", _text("RGB")),
        _element(0x00280006, "US", struct.pack("<H", 0)),
        _element(0x00280008, "IS", _text(str(len(frames)))),
        _element(0x00280010, "US", struct.pack("<H", side)),
        _element(0x00280011, "US", struct.pack("<H", side)),
        _element(0x00280100, "US", struct.pack("<H", 8)),
        _element(0x00280101, "US", struct.pack("<H", 8)),
        _element(0x00280102, "US", struct.pack("<H", 7)),
        _element(0x00280103, "US", struct.pack("<H", 0)),
        _element(0x00480006, "UL", struct.pack("<I", width)),
        _element(0x00480007, "UL", struct.pack("<I", height)),
        _sequence(0x00480105, _element(0x00480112, "DS", _text("20"))),  # the objective's power
        _sequence(0x52009229, _sequence(0x00289110, spacing)),
        _sequence(0x52009230, *positions) if missing else b"",
        _pixel_data(list(frames.values()), jpeg),
    ]
    meta = b"".join(
        [
            _element(0x00020001, "OB", b"\0\1"),
            _element(0x00020002, "UI", _uid(_WSI)),
            _element(0x00020003, "UI", _uid(instance)),
            _element(0x00020010, "UI", _uid(_JPEG if jpeg else _EXPLICIT)),
            _element(0x00020012, "UI", _uid("1.2.826.0.1.3680043.9.2")),
        ]
    )
    return bytes(128) + b"DICM" + _element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta + b"".join(elements)


def _pixel_data(frames: list[RgbImage], jpeg: bool) -> bytes:
    if not jpeg:
        return _element(0x7FE00010, "OB", b"".join(frame.tobytes() for frame in frames))
    items = [encode(frame) for frame in frames]
    items = [item + b"\0" * (len(item) % 2) for item in items]
    offsets = np.cumsum([0, *(8 + len(item) for item in items[:-1])])
    table = _item(struct.pack(f"<{len(items)}I", *offsets))
    head = _tag(0x7FE00010) + b"OB\0\0" + struct.pack("<I", _UNDEFINED)
    return head + table + b"".join(map(_item, items)) + _tag(0xFFFEE0DD) + bytes(4)


def _tag(tag: int) -> bytes:
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF)


def _element(tag: int, kind: str, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    length = b"\0\0" + struct.pack("<I", len(value)) if kind in _LONG else struct.pack("<H", len(value))
    return _tag(tag) + kind.encode() + length + value


def _item(value: bytes) -> bytes:
    return _tag(0xFFFEE000) + struct.pack("<I", len(value)) + value


def _sequence(tag: int, *items: bytes) -> bytes:
    return _element(tag, "SQ", b"".join(map(_item, items)))


def _text(value: str) -> bytes:
    return (value + " " * (len(value) % 2)).encode()


def _uid(value: str) -> bytes:
    return value.encode()
