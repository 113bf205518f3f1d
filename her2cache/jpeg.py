"""Damage that a JPEG decoder passes over.

libjpeg fills what it cannot read with grey and goes on; only its warnings tell, and imagecodecs does not
hand them on. The checks here cost about a hundredth of decoding. They see data that breaks off, markers
amid the pixels, and blocks of zeros (a hole in a copied file); JPEG has no checksum, so a few flipped
bits go unseen. Markers and tables: ITU-T T.81, annex B.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_END = b"\xff\xd9"
_RESTARTS = range(0xD0, 0xD8)
_BASELINE, _HUFFMAN, _SCAN = {0xC0, 0xC1}, 0xC4, 0xDA
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # neither a stuffed 0xFF nor a restart
_HOLE = bytes(32)


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

    def damage(self, data: bytes) -> str | None:
        """Why the data of a segment cannot be whole, or None where nothing shows."""
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
        while end > start and data[end - 1] == 0xFF:  # fill bytes
            end -= 1
        if head.one_pass and _MARKER.search(data, start, end):
            return "its JPEG data has a marker amid the pixels"
        if not (head.zeros_mean_flat and self._zeros_mean_flat) and data.find(_HOLE, start, end) >= 0:
            return "its JPEG data has a hole"
        return None


@dataclass
class _Head:
    """What comes before the pixels.

    Attributes:
        length: bytes up to the first pixels; 0 if there are none.
        one_pass: whether all components come in one pass, with no marker but restarts.
        zeros_mean_flat: whether zero bits may stand for flat blocks, because the first code of each AC table
            is the end of a block.
    """

    length: int = 0
    one_pass: bool = False
    zeros_mean_flat: bool = True


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
        if kind in _BASELINE and len(payload) > 5:
            components = payload[5]
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
