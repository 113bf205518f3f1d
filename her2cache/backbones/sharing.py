"""Several embedders on the same patches: whoever shares a device shares the copy on it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from her2cache.backbones.network import TorchEmbedder
from her2cache.backbones.placement import Placed
from her2cache.embedder import Embedder
from her2cache.errors import EmbedderError
from her2cache.units import PatchBatch

_TURN = Lock()
"""Threads copy at any time, and compute by turns: seconds are those of one."""

Noises = Mapping[int, NDArray[np.float32]]


def embed_with_each(
    embedders: Sequence[Embedder], patches: PatchBatch, noises: Noises
) -> list[tuple[NDArray[np.float32] | EmbedderError, float]]:
    """Pushes patches once through each embedder; those of torch find them on their device, where they are put once.

    Args:
        embedders: one that fails does not stop the others.
        patches: uint8 (n, px, px, 3).
        noises: by the side that a network sees, float32 (n, 3, side, side); empty where there is none.

    Returns:
        For each embedder its features, float32 (n, dim), or why it has none, and the seconds it took.
    """
    ours = [embedder for embedder in embedders if isinstance(embedder, TorchEmbedder)]
    placed = {
        device: Placed(patches, noises, device, max(e.batching.batch for e in ours if e.batching.device == device))
        for device in {e.batching.device for e in ours}
    }
    found: list[tuple[NDArray[np.float32] | EmbedderError, float]] = []
    with _TURN:
        for embedder in embedders:
            started = time.perf_counter()
            features = _features(embedder, patches, noises, placed)
            found.append((features, time.perf_counter() - started))
    return found


def _features(
    embedder: Embedder, patches: PatchBatch, noises: Noises, placed: Mapping[str, Placed]
) -> NDArray[np.float32] | EmbedderError:
    spec = embedder.spec
    try:
        if isinstance(embedder, TorchEmbedder):
            features = embedder.embed_placed(placed[embedder.batching.device])
        else:
            features = embedder.embed(patches, noises.get(spec.input_px))
    except EmbedderError as error:
        return error
    except Exception as error:  # noqa: BLE001 - anybody's network, a full GPU among it
        return EmbedderError(f"{spec.name} failed on its patches ({type(error).__name__}: {error})")
    if features.shape != (len(patches), spec.dim):
        return EmbedderError(
            f"{spec.name} gave features of shape {features.shape} for {len(patches)} patches, not"
            f" {(len(patches), spec.dim)} as its spec says; that is for its authors to mend"
        )
    return features
