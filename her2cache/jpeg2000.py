"""Segments of JPEG 2000 whose colours no codec turns into RGB unasked.

A codestream does not say what its components are (ITU-T T.800, annex A); Aperio's TIFF compression 33003 does: YCbCr,
of which the chroma may have half the width. imagecodecs gives wrong pixels for the latter, without an error.
"""

from __future__ import annotations

from io import BytesIO

import imagecodecs
import numpy as np
from PIL import Image

from her2cache.units import RgbImage

_COMPONENTS = 42  # where the components of the marker SIZ begin, 3 bytes each: depth, and pixels a sample in x and y


def is_subsampled(data: bytes) -> bool:
    """Whether some component of a codestream of three has fewer samples than pixels."""
    return any(data[k + 1 : k + 3] != b"\1\1" for k in range(_COMPONENTS, _COMPONENTS + 9, 3))


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
