"""Segments of JPEG 2000 whose colours no codec turns into RGB unasked.

A codestream does not say what its components are (ITU-T T.800, annex A); Aperio's TIFF compression 33003 does: YCbCr,
of which the chroma may have half the width. imagecodecs gives wrong pixels for the latter, without an error.
"""

from __future__ import annotations

import struct
from io import BytesIO

import imagecodecs
import numpy as np
from PIL import Image

from her2cache.units import RgbImage

_START = b"\xff\x4f\xff\x51"  # the markers SOC and SIZ
_WHOLE = b"\7\1\1"  # a component of 8 bits and a sample a pixel
_COMPONENTS = 42  # where the components of the marker SIZ begin, 3 bytes each: depth, and pixels a sample in x and y


def header_damage(data: bytes, place: tuple[int, int], inside: tuple[int, int]) -> str | None:
    """Why the header of a codestream cannot be that of a segment: codecs make room for whatever it says.

    Args:
        data: the codestream, perhaps in the boxes of a JP2 file.
        place: (height, width) of a segment, px.
        inside: of the part of it that lies inside the level.
    """
    start = data.find(_START)
    head = data[start + 8 : start + 42]
    if start < 0 or len(head) < 34:
        return "its JPEG 2000 header is broken"
    right, bottom, left, top, tile_width, tile_height, _, _, components = struct.unpack(">8IH", head)
    width, height = right - left, bottom - top
    if not (inside[0] <= height <= place[0] and inside[1] <= width <= place[1]):
        return f"its JPEG 2000 image is {width} x {height} px"
    if components not in {3, 4} or not tile_width or not tile_height:
        return "its JPEG 2000 header is broken"
    first, *others = (data[k : k + 3] for k in range(start + _COMPONENTS, start + _COMPONENTS + 3 * components, 3))
    if first != _WHOLE or not {*others} <= {_WHOLE, b"\7\2\1", b"\7\2\2"}:
        return "its JPEG 2000 components are none of 8 bits, or of other sizes than chroma has"
    return None


def is_subsampled(data: bytes) -> bool:
    """Whether some component of a codestream of three has fewer samples than pixels."""
    start = data.find(_START) + _COMPONENTS
    return any(data[k + 1 : k + 3] != b"\1\1" for k in range(start, start + 9, 3))


def decode_ycbcr(data: bytes) -> RgbImage:
    """Pixels of a codestream of YCbCr, uint8 (height, width, 3) RGB.

    Raises:
        Exception: whatever the codec makes of broken data.
    """
    if is_subsampled(data):  # Pillow takes only these for YCbCr by itself
        with Image.open(BytesIO(data), formats=["JPEG2000"]) as image:
            return np.asarray(image.convert("RGB"))
    samples = np.ascontiguousarray(imagecodecs.jpeg2k_decode(data))
    return np.asarray(Image.fromarray(samples, "YCbCr").convert("RGB"))
