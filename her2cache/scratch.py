"""Arrays that grow with a slide, kept in files instead of a process's own memory."""

from __future__ import annotations

import math
import os
import tempfile
from contextlib import suppress

import numpy as np
from numpy.typing import DTypeLike, NDArray

IN_MEMORY_BYTES = 4 << 20


def scratch(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
    """An array of zeros. A large one is mapped from an unlinked temporary file: the kernel may take its pages back.

    Where the temporary folder has no room for it, it lies in memory like any other: space is reserved beforehand, for a
    store into a map that the disk cannot hold would end the process.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size > IN_MEMORY_BYTES:
        with suppress(OSError), tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "r+", shape=shape)
    return np.zeros(shape, dtype)
