"""Patches on a device: copied there once, for every embedder of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from her2cache.units import PatchBatch

T = TypeVar("T", bound=np.generic)


class Placed:
    """The patches of a block on a device, in chunks.

    On a GPU a copy goes through pinned memory and a stream of its own, and nothing waits for it but the computation
    that needs it: while one block is embedded, another thread may send the next.

    Attributes:
        n: patches, padding left out.
    """

    def __init__(self, patches: PatchBatch, noise: Mapping[int, NDArray[np.float32]], device: str, chunk: int) -> None:
        """Sends everything on its way.

        Args:
            patches: uint8 (n, px, px, 3).
            noise: for each side that a network may see, float32 (n, 3, side, side); empty where there is none.
            device: "cpu" or "cuda".
            chunk: patches copied at once; the batch of every embedder divides it.
        """
        self.n = len(patches)
        self._chunk = chunk
        self._device = torch.device(device)
        self._copying = torch.cuda.Stream() if device == "cuda" else None
        self._pixels = self._place(patches)
        self._noise = {side: self._place(values) for side, values in noise.items()}

    def pixels(self, start: int, size: int) -> Tensor:
        """A batch: uint8 (size, px, px, 3), zeros beyond the last patch."""
        return self._batch(self._pixels, start, size)

    def noise(self, side: int, start: int, size: int) -> Tensor | None:
        """The noise of a batch for networks that see `side` px: float32 (size, 3, side, side)."""
        return self._batch(self._noise[side], start, size) if side in self._noise else None

    def _batch(self, chunks: list[Tensor], start: int, size: int) -> Tensor:
        k, offset = divmod(start, self._chunk)
        return chunks[k][offset : offset + size]

    def _place(self, rows: NDArray[T]) -> list[Tensor]:
        return [self._place_chunk(rows[start : start + self._chunk]) for start in range(0, self.n, self._chunk)]

    def _place_chunk(self, rows: NDArray[T]) -> Tensor:
        dtype = torch.uint8 if rows.dtype == np.uint8 else torch.float32
        host = torch.empty((self._chunk, *rows.shape[1:]), dtype=dtype, pin_memory=self._copying is not None)
        host.numpy()[: len(rows)] = rows
        host[len(rows) :].zero_()
        if self._copying is None:
            return host
        with torch.cuda.stream(self._copying):
            there = host.to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream()
        computing.wait_stream(self._copying)
        there.record_stream(computing)  # its memory is taken back only when that stream has done with it
        return there
