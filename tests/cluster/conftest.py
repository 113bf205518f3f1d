"""One Ray for all tests of this folder, which takes seconds to start; and a clock that stands still."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import ray

from cluster.resources import start_ray
from tests.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the process: it stands still until the test turns it."""
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of the test run's own, as `--address local` starts it."""
    if ray.is_initialized():
        yield
        return
    start_ray("local")
    yield
    ray.shutdown()
