"""Arrays that grow with a slide, kept in files instead of a process's own memory."""

from __future__ import annotations

import math
import tempfile

import numpy as np
from numpy.typing import DTypeLike, NDArray

IN_MEMORY_BYTES = 4 << 20


def scratch(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
    """An array of zeros. A large one is mapped from an unlinked temporary file: the kernel may take its pages back."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY_BYTES:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return np.memmap(file, dtype, "r+", shape=shape)
