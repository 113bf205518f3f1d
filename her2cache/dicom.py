"""The little of DICOM that OpenSlide leaves to be looked at: which series a file belongs to, and where its frames lie.

Parts of the standard: PS3.5, section 7.1 and annex A.4; PS3.10, section 7.1.
"""

from __future__ import annotations

import mmap
import re
import struct
from itertools import pairwise
from pathlib import Path

_HEAD_BYTES = 1 << 18
# StudyInstanceUID (0020,000D) and, as only the data set itself has it, SeriesInstanceUID (0020,000E) right behind;
# with and without value representation
_SERIES = re.compile(
    rb"\x20\x00\x0d\x00(?:UI..|.{4})[0-9.]{1,64}\x00?\x20\x00\x0e\x00(?:UI..|.{4})([0-9.]{1,64})", re.DOTALL
)
_PIXELS = b"\xe0\x7f\x10\x00O"  # PixelData (7FE0,0010) of kind OB or OW
_ENCAPSULATED = b"B\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0"  # of undefined length, an item first: the table of offsets


# TotalPixelMatrixColumns (0048,0006) and -Rows (0048,0007); Rows (0028,0010) and Columns (0028,0011)
_MATRIX = [
    re.compile(rb"\x48\x00" + code + rb"\x00(?:UL\x04\x00|\x04\x00{3})(.{4})", re.DOTALL) for code in (b"\x06", b"\x07")
]
_FRAME = [
    re.compile(rb"\x28\x00" + code + rb"\x00(?:US\x02\x00|\x02\x00{3})(..)", re.DOTALL) for code in (b"\x11", b"\x10")
]
_FRAMES = re.compile(rb"\x28\x00\x08\x00(?:IS..|.{4})([ 0-9]{1,12})", re.DOTALL)  # NumberOfFrames (0028,0008)
_MOST_FRAME_PX = 1 << 26


def is_dicom(path: Path) -> bool:
    """Whether a file has the preamble of DICOM."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def series_of(path: Path) -> bytes | None:
    """The UID of the series that a DICOM file belongs to; None where it has none, or the file is of another format."""
    if not is_dicom(path):
        return None
    with path.open("rb") as file:
        found = _SERIES.search(file.read(_HEAD_BYTES))
    return None if found is None else found[1]


def frames_damage(path: Path) -> str | None:
    """Why a DICOM file's frames cannot be right, or None where nothing shows.

    OpenSlide believes any size of the picture, and follows the table of frames wherever it points; a table that points
    behind the file ends the process.
    """
    if not is_dicom(path):
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(_PIXELS) + len(_PIXELS)
        if reason := _size_damage(data[: min(start, _HEAD_BYTES)]):
            return reason
        item = start + len(_ENCAPSULATED)
        if start < len(_PIXELS) or data[start:item] != _ENCAPSULATED:
            return None  # no pixels, or plain ones
        (length,) = struct.unpack("<I", data[item : item + 4].ljust(4, b"\0"))
        first = item + 4 + length
        if length % 4 or first > len(data):
            return "its table of frames is broken"
        offsets = [offset for (offset,) in struct.iter_unpack("<I", data[item + 4 : first])]
        if any(a >= b for a, b in pairwise(offsets)) or (offsets and first + offsets[-1] >= len(data)):
            return "its table of frames is broken, or the file truncated"
        return None


def _size_damage(head: bytes) -> str | None:
    """Why the sizes of a picture and its frames cannot be right. A sparse picture may have few frames, of course."""
    matrix, frame = ([found[1] for p in patterns if (found := p.search(head))] for patterns in (_MATRIX, _FRAME))
    if len(matrix) < 2 or len(frame) < 2:
        return None  # OpenSlide says what it misses
    width, height, frame_width, frame_height = (int.from_bytes(number, "little") for number in (*matrix, *frame))
    size = f"{width:,} x {height:,} px in frames of {frame_width:,} x {frame_height:,}"
    if not (width and height and frame_width and frame_height) or frame_width * frame_height > _MOST_FRAME_PX:
        return f"it has {size}"
    frames = -(-width // frame_width) * -(-height // frame_height)
    found = _FRAMES.search(head)
    there = int(found[1]) if found and found[1].strip() else 1
    if b"TILED_FULL" in head and b"\x20\x00\x61\x91" not in head and there < frames:  # ConcatenationUID (0020,9161)
        return f"it has {size}, which are {frames:,} frames, and there are {there:,}"
    return None
