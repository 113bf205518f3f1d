"""Batches of one size out of blocks of any, on the device that trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from trainers.pretraining.patches import Block

Batch = tuple[Tensor, Tensor]
"""Patches uint8 (k, px, px, 3) and labels int64 (k,), on one device."""

_AHEAD = 3  # batches that are made ready while a GPU works


def batches(blocks: Iterable[Block], size: int, device: torch.device) -> Generator[Batch]:
    """Batches on a device. For a GPU a thread reads ahead into pinned memory, from where copies run beside the work.

    Args:
        blocks: of any size.
        size: patches a batch; the last may have fewer.
        device: where to.
    """
    host = (_tensors(block) for block in rebatched(blocks, size))
    if device.type == "cpu":
        yield from host
        return
    with closing(ahead(((x.pin_memory(), y.pin_memory()) for x, y in host), _AHEAD)) as pinned:
        for x, y in pinned:
            yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)


def rebatched(blocks: Iterable[Block], size: int) -> Iterator[Block]:
    """The same patches in the same order, `size` at a time; the last batch may have fewer."""
    held = list[Block]()
    count = 0
    for block in blocks:
        held.append(block)
        count += len(block[1])
        if count < size:
            continue
        pixels, labels = _joined(held)
        whole = count - count % size
        for start in range(0, whole, size):
            yield pixels[start : start + size], labels[start : start + size]
        held, count = [(pixels[whole:], labels[whole:])], count - whole
    if count:
        yield _joined(held)


def ahead(items: Iterator[Batch], depth: int) -> Generator[Batch]:
    """The same items, up to `depth` of them made beforehand by a thread; what it raises is raised here."""
    with ThreadPoolExecutor(1) as reader:
        pending = deque(reader.submit(next, items, None) for _ in range(depth))
        while (item := pending.popleft().result()) is not None:
            pending.append(reader.submit(next, items, None))
            yield item


def _joined(blocks: list[Block]) -> Block:
    return np.concatenate([pixels for pixels, _ in blocks]), np.concatenate([labels for _, labels in blocks])


def _tensors(block: Block) -> Batch:
    # what a map or another process lends is read-only, which torch only accepts as a copy
    pixels, labels = (np.require(array, requirements=["C", "W"]) for array in block)
    return torch.from_numpy(pixels), torch.from_numpy(labels)
