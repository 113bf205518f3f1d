"""The batch shape and the precision of an embedder in a job."""

from __future__ import annotations

from her2cache.embedder import Batching

CPU_BATCH, GPU_BATCH = 64, 512
BATCH_BYTES = 32 << 20
"""Most pixels a batch may have; larger patches come in smaller batches."""


def fixed_batching(side_px: int, device: str, precision: str = "auto") -> Batching:
    """How an embedder runs. It depends on sides and the kind of device alone, so that bytes reproduce.

    Args:
        side_px: of the patches, or of what the network sees of them, whichever is larger.
        device: "cpu" or "cuda".
        precision: "auto" is float16 (autocast) on a GPU and float32 elsewhere; "float32" is that everywhere.
    """
    largest = GPU_BATCH if device == "cuda" else CPU_BATCH
    fits = max(1, min(largest, BATCH_BYTES // (side_px**2 * 3)))
    half = device == "cuda" and precision == "auto"
    return Batching(batch=1 << (fits.bit_length() - 1), device=device, precision="float16" if half else "float32")
