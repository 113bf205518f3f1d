"""One Ray for all tests of this folder: it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from cluster.resources import start_ray


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of the test run's own, as `--address local` starts it."""
    if ray.is_initialized():
        yield
        return
    start_ray("local")
    yield
    ray.shutdown()
