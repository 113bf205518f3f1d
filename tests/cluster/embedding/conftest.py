"""What the tests of embed jobs share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from her2cache.backbones.alexnet import Trunk
from her2cache.backbones.registry import load_recipe
from her2cache.cohort import Slide
from her2cache.store.reader import FeatureStore
from tests.embedding import (
    as_slide,
)
from tests.slides import texture, write_slide


@pytest.fixture
def time_limit() -> Iterator[None]:
    """A job that hangs fails its test instead of stopping the run."""

    def stop(*_: object) -> None:
        raise TimeoutError("the job hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(100)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return load_recipe("alexnet-random", 96)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Slide]:
    """Three slides of 70, 130 and 192 patches: two, three and three blocks, one of them full."""
    folder = tmp_path_factory.mktemp("slides")
    grids = {"small": (10, 7), "middle": (13, 10), "full": (16, 12)}
    return [
        as_slide(write_slide(folder / f"{name}.tif", texture(96 * w, 96 * h, seed=w))) for name, (w, h) in grids.items()
    ]


@pytest.fixture(scope="module")
def long_slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    """960 patches in 15 blocks: more than a reader may be ahead, so that it is at work almost to the end."""
    path = tmp_path_factory.mktemp("slides") / "long.tif"
    return as_slide(write_slide(path, np.tile(texture(96 * 8, 96 * 10), (3, 4, 1)), segment_px=(256, 256)))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.create(tmp_path / "store")
