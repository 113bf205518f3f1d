"""The batch shape of an embed job."""

from __future__ import annotations

from her2cache.embedder import Batching

CPU_BATCH, GPU_BATCH = 64, 512
BATCH_BYTES = 32 << 20
"""Most pixels a batch may have; larger patches come in smaller batches."""


def fixed_batching(patch_px: int, device: str) -> Batching:
    """The batch shape of a job. It depends on the patches and the kind of device alone, so that bytes reproduce."""
    largest = GPU_BATCH if device == "cuda" else CPU_BATCH
    fits = max(1, min(largest, BATCH_BYTES // (patch_px**2 * 3)))
    return Batching(batch=1 << (fits.bit_length() - 1), device=device)
