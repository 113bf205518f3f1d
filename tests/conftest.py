"""Fixtures of the whole test run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]

settings.register_profile("shared machine", deadline=None)  # a slow example is no fault where others run beside us
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data; without it the test is skipped."""
    folder = (ROOT / os.environ.get("HER2CACHE_DATA", "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set HER2CACHE_DATA)")
    return folder


@pytest.fixture(scope="module")
def torch_threads() -> Iterator[None]:
    """Gives the process its number of threads back: embedders and trainings set it."""
    import torch  # slow to import, and most tests do without

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
