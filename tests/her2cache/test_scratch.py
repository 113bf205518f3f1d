"""Large arrays lie in files that nobody sees; where there is no room for them they lie in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from her2cache.scratch import IN_MEMORY_BYTES, scratch


def test_a_large_array_is_a_map_of_zeros_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    array = scratch((IN_MEMORY_BYTES // 3 + 1, 3), np.uint8)
    assert isinstance(array, np.memmap)
    assert not array.any()
    array[1:3] = 7
    assert array.sum() == 2 * 3 * 7
    assert not list(tmp_path.iterdir())


def test_a_small_array_is_plain() -> None:
    array = scratch((10, 4), np.float32)
    assert type(array) is np.ndarray
    assert (array.shape, array.dtype, array.any()) == ((10, 4), np.float32, False)


def test_without_a_folder_or_room_it_lies_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    shape = (IN_MEMORY_BYTES + 1,)
    assert type(scratch(shape, np.uint8)) is np.ndarray
    monkeypatch.setattr(tempfile, "tempdir", "/proc/self")  # a folder that takes no file
    assert type(scratch(shape, np.uint8)) is np.ndarray
