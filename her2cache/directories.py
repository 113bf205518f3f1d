"""The directories of a TIFF, looked at before a library follows them.

tifffile goes round for ever where directories point at one another in a ring, drops an entry that makes no sense, so
that a default takes its place, and believes any size. Structure and codes: TIFF 6.0, section 2; BigTIFF; Hamamatsu's
variant (NDPI) has offsets of 64 bits, of which the upper halves lie behind the entries.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_MOST_DIRECTORIES, _MOST_ENTRIES = 10_000, 4096  # the latter is tifffile's
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1, 3, 4, 13, 16, 18}
_SINGLE = {
    254: "NewSubfileType",
    256: "ImageWidth",
    257: "ImageLength",
    259: "Compression",
    262: "PhotometricInterpretation",
    266: "FillOrder",
    277: "SamplesPerPixel",
    278: "RowsPerStrip",
    284: "PlanarConfiguration",
    317: "Predictor",
    322: "TileWidth",
    323: "TileLength",
}
_SEVERAL = {
    258: "BitsPerSample",
    273: "StripOffsets",
    279: "StripByteCounts",
    324: "TileOffsets",
    325: "TileByteCounts",
    330: "SubIFDs",
    338: "ExtraSamples",
    339: "SampleFormat",
    530: "YCbCrSubSampling",
}
_OTHER = {270: "ImageDescription", 282: "XResolution", 283: "YResolution", 347: "JPEGTables", 65426: "McuStarts"}
_NAMES = {**_SINGLE, **_SEVERAL, **_OTHER}
_SIDES, _CHILDREN = {256, 257, 322, 323}, 330


@dataclass(frozen=True)
class _Layout:
    """How a kind of TIFF lays out its directories: struct formats, and the bytes that a value may have in its entry."""

    order: str
    head: str
    count: str
    word: str
    inline: int
    ndpi: bool

    def unpack(self, letters: str, data: bytes) -> tuple[int, ...]:
        return struct.unpack_from(self.order + letters, data)


def directories_damage(path: Path) -> str | None:
    """Why the directories of a file are not those of a whole TIFF, or None where nothing shows."""
    size = path.stat().st_size
    with path.open("rb") as file:
        layout = _layout(file.read(8), ndpi=path.suffix.lower() == ".ndpi")
        if layout is None:
            return "it does not begin as a TIFF does"
        file.seek(8 if layout.head == "Q" and not layout.ndpi else 4)
        data = file.read(8)
        if len(data) < 8:
            return "it ends in its head"
        (offset,) = layout.unpack(layout.head, data)
        seen: set[int] = set()
        children: set[int] = set()
        while True:
            if offset in seen:
                return "its directories go round in a ring"
            found = _look(file, offset, size, layout)
            if isinstance(found, str):
                return found
            seen.add(offset)
            for child in set(found.children) - children:
                looked = _look(file, child, size, layout)
                if isinstance(looked, str):
                    return looked
                children.add(child)
            if len(seen) + len(children) >= _MOST_DIRECTORIES:
                return f"it has more than {_MOST_DIRECTORIES:,} directories"
            if not found.next:
                return None
            offset = found.next


def _layout(head: bytes, *, ndpi: bool) -> _Layout | None:
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return None
    (version,) = struct.unpack_from(order + "H", head, 2)
    if version == 43:
        return _Layout(order, "Q", "Q", "Q", 8, ndpi=False)
    if version != 42:
        return None
    ndpi = ndpi and order == "<"
    return _Layout(order, "Q" if ndpi else "I", "H", "I", 4, ndpi)


@dataclass(frozen=True)
class _Directory:
    """Where a directory leads to."""

    children: list[int]
    next: int


def _look(file: BinaryIO, offset: int, size: int, layout: _Layout) -> _Directory | str:
    """Where a directory leads to, or what is wrong with it."""
    if not 8 <= offset < size:
        return f"truncated: a directory would lie at byte {offset:,} of {size:,}"
    file.seek(offset)
    data = file.read(struct.calcsize(layout.count))
    if len(data) < struct.calcsize(layout.count):
        return "truncated: it ends amid a directory"
    (count,) = layout.unpack(layout.count, data)
    if not 0 < count <= _MOST_ENTRIES:
        return f"a directory of {count:,} entries"
    length = 4 + 2 * struct.calcsize(layout.word)
    tail = struct.calcsize(layout.head)
    data = file.read(count * length + tail + (4 * count if layout.ndpi else 0))
    if len(data) < count * length + tail:
        return "truncated: it ends amid a directory"
    (following,) = layout.unpack(layout.head, data[count * length :])
    children: list[int] = []
    for k in range(count):
        entry = data[k * length : (k + 1) * length]
        code, kind, values = layout.unpack("HH" + layout.word, entry)
        if code not in _NAMES:
            continue
        value = entry[-layout.inline :]
        if layout.ndpi:
            value += data[count * length + tail + 4 * k :][:4].ljust(4, b"\0")
        if reason := _entry_damage(code, kind, values, value, size, layout):
            return reason
        if code == _CHILDREN:
            children += _values(file, kind, min(values, _MOST_DIRECTORIES), value, layout)
            if len(children) > _MOST_DIRECTORIES:
                return f"a directory of {len(children):,} others"
    return _Directory(children, following)


def _entry_damage(code: int, kind: int, values: int, value: bytes, size: int, layout: _Layout) -> str | None:
    """Why an entry makes no sense."""
    name = _NAMES[code]
    single, several = code in _SINGLE, code in _SEVERAL
    if kind not in _SIZES or ((single or several) and kind not in _INTEGERS):
        return f"its tag {name} is of the kind {kind}"
    if values < 1 or (single and values != 1):
        return f"its tag {name} has {values:,} values"
    extent = values * _SIZES[kind]
    if extent > layout.inline:
        (place,) = layout.unpack("Q" if layout.ndpi else layout.word, value)
        if place < 8 or place + extent > size:
            return f"truncated: its tag {name} would lie behind its end"
    elif code in _SIDES and not any(value[:extent]):
        return f"a level is empty: its tag {name} is 0"
    return None


def _values(file: BinaryIO, kind: int, values: int, value: bytes, layout: _Layout) -> list[int]:
    extent = values * _SIZES[kind]
    if extent > layout.inline:
        file.seek(layout.unpack("Q" if layout.ndpi else layout.word, value)[0])
        value = file.read(extent)
    letter = {1: "B", 3: "H", 4: "I", 13: "I"}.get(kind, "Q")
    return list(layout.unpack(f"{values}{letter}", value))
