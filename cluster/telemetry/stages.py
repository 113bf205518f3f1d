"""What readers, embedders and writers say of their work, a block at a time: patches, bytes, seconds, where."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Literal, TypeVar

import ray

from cluster.telemetry import metrics
from her2cache.ingest import FeatureBlock, PatchBlock

Stage = Literal["decode", "forward", "write"]
STAGES: tuple[Stage, ...] = ("decode", "forward", "write")

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Spent:
    """What an actor did since it said so last.

    Attributes:
        stage: which it is.
        patches: that it finished.
        nbytes: that it made or wrote.
        seconds: in which it worked, at one thing or at several at once.
        node: address of its machine.
        pid: of its process.
    """

    stage: Stage
    patches: int
    nbytes: int
    seconds: float
    node: str
    pid: int


@dataclass(frozen=True)
class DecodedBlock(PatchBlock):
    """A block, and what it took to read it."""

    spent: Spent


@dataclass(frozen=True)
class EmbeddedBlock(FeatureBlock):
    """Features of a block, and what it took to read and to embed it."""

    spent: tuple[Spent, ...]


class Meter:
    """Of an actor: entered while it works, by several threads at once if need be.

    Seconds in which two threads work count once, so that an actor never works more than the time that passes.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage: Stage = stage
        self._lock = Lock()
        self._threads = 0
        self._since = self._seconds = 0.0
        self._node = ""

    def __enter__(self) -> None:
        with self._lock:
            if not self._threads:
                self._since = time.perf_counter()
            self._threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            now = time.perf_counter()
            self._seconds += now - self._since
            self._since = now
            self._threads -= 1

    def each(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """The same items; it works while one is made, and rests while nobody takes it."""
        ahead = iter(items)
        while True:
            with self:
                try:
                    item = next(ahead)
                except StopIteration:
                    return
            yield item

    def spent(self, patches: int = 0, nbytes: int = 0) -> Spent:
        """What was done since the last call, which Ray's metrics are told as well."""
        with self._lock:
            seconds, self._seconds = self._seconds, 0.0
        if not self._node:
            self._node = ray.util.get_node_ip_address() if ray.is_initialized() else "localhost"
        metrics.count_stage(self._stage, patches, nbytes, seconds)
        return Spent(self._stage, patches, nbytes, seconds, self._node, os.getpid())
