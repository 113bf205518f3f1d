"""Damage that a JPEG decoder passes over.

libjpeg fills what it cannot read with grey and goes on; only its warnings tell, and imagecodecs does not
hand them on. The checks here cost about a hundredth of decoding. They see data that breaks off, markers
amid the pixels, and blocks of zeros (a hole in a copied file); JPEG has no checksum, so a few flipped
bits go unseen. Markers and tables: ITU-T T.81, annex B.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from her2cache.units import RgbImage

_END = b"\xff\xd9"
_RESTARTS = range(0xD0, 0xD8)
_BASELINE, _HUFFMAN, _SCAN = {0xC0, 0xC1}, 0xC4, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {_HUFFMAN, 0xC8, 0xCC}
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # neither a stuffed 0xFF nor a restart
_HOLE = bytes(32)
_NO_DATA, _FILLING = 128, bytes(range(1, 251)) * 4


def damage(data: bytes, jpegtables: bytes | None = None, jpegheader: bytes | None = None) -> str | None:
    """Why the data of a segment cannot be whole, or None where nothing shows; see `Inspector`."""
    return Inspector(jpegtables, jpegheader).damage(data)


class Inspector:
    """Looks at the segments of one level."""

    def __init__(self, jpegtables: bytes | None = None, jpegheader: bytes | None = None) -> None:
        """Takes what the segments share.

        Args:
            jpegtables: tables that the streams leave out.
            jpegheader: the head of the stream that the segments are parts of, between restart markers.
        """
        self._zeros_mean_flat = _head(jpegtables or b"").zeros_mean_flat
        self._shared = _head(jpegheader) if jpegheader else None
        self._last, self._last_head = b"", _Head()  # one writer's segments begin alike

    def damage(
        self, data: bytes, place: tuple[int, int] | None = None, inside: tuple[int, int] | None = None
    ) -> str | None:
        """Why the data of a segment cannot be whole, or None where nothing shows.

        Args:
            data: of the segment.
            place: (height, width) of a segment, px; None leaves its size unlooked at. A decoder makes room for
                whatever the header says.
            inside: of the part of it that lies inside the level.
        """
        goes_on = data[-2:-1] == b"\xff" and data[-1] in _RESTARTS
        end = -1 if goes_on and self._shared is not None else data.rfind(_END)
        if end < 0:
            if not goes_on:
                return "its JPEG data breaks off"
            end = len(data)
        head, start = self._shared, 0
        if head is None:
            if not (self._last and data.startswith(self._last)):
                self._last_head = _head(data)
                self._last = data[: self._last_head.length]
            head, start = self._last_head, self._last_head.length
        if not head.length:
            return "its JPEG header is broken"
        if place is not None and inside is not None and not head.fits(place, inside):
            return f"its JPEG image is {head.size[1]} x {head.size[0]} px"
        while end > start and data[end - 1] == 0xFF:  # fill bytes
            end -= 1
        if head.one_pass and _MARKER.search(data, start, end):
            return "its JPEG data has a marker amid the pixels"
        if not (head.zeros_mean_flat and self._zeros_mean_flat) and data.find(_HOLE, start, end) >= 0:
            return "its JPEG data has a hole"
        return None


def ran_dry(data: bytes, pixels: RgbImage, decode: Callable[[bytes], RgbImage]) -> bool:
    """Whether a decoder came to the end of a segment's data before it had all pixels.

    The blocks that it has no data for are of a medium grey. Where the last one is, other data is put behind the end:
    it changes nothing as long as the pixels were complete.

    Args:
        data: of the segment, which `Inspector` finds whole.
        pixels: what it was decoded to, uint8 (height, width, 3).
        decode: decodes other data in the same way, to pixels of its own.
    """
    if (pixels[-4:, -4:] != _NO_DATA).any():
        return False
    end = data.rfind(_END)
    end = len(data) - 2 if end < 0 else end
    return not np.array_equal(decode(data[:end] + _FILLING + data[end:]), pixels)


@dataclass
class _Head:
    """What comes before the pixels.

    Attributes:
        length: bytes up to the first pixels; 0 if there are none.
        size: (height, width), px.
        one_pass: whether all components come in one pass, with no marker but restarts.
        zeros_mean_flat: whether zero bits may stand for flat blocks, because the first code of each AC table
            is the end of a block.
    """

    length: int = 0
    size: tuple[int, int] = (0, 0)
    one_pass: bool = False
    zeros_mean_flat: bool = True

    def fits(self, place: tuple[int, int], inside: tuple[int, int]) -> bool:
        return all(least <= side <= most for least, side, most in zip(inside, self.size, place, strict=True))


def _head(stream: bytes) -> _Head:
    head = _Head()
    components = 0
    position = 2
    while position + 4 <= len(stream) and stream[position] == 0xFF:
        kind = stream[position + 1]
        if kind == 0xFF:  # a fill byte
            position += 1
            continue
        stop = position + 2 + int.from_bytes(stream[position + 2 : position + 4])
        payload = stream[position + 4 : stop]
        position = stop
        if kind in _FRAMES and len(payload) > 5:
            head.size = int.from_bytes(payload[1:3]), int.from_bytes(payload[3:5])
            components = payload[5] if kind in _BASELINE else 0
        elif kind == _HUFFMAN:
            head.zeros_mean_flat &= _zeros_end_blocks(payload)
        elif kind == _SCAN and payload:
            head.length, head.one_pass = stop, payload[0] == components
            break
    return head


def _zeros_end_blocks(tables: bytes) -> bool:
    """Whether a zero bit, or a few of them, end a block in each AC table: then they are its first symbol."""
    while len(tables) > 17:
        if tables[0] >= 0x10 and tables[17] != 0:
            return False
        tables = tables[17 + sum(tables[1:17]) :]
    return True
