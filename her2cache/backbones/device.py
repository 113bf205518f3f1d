"""What embedders run on here."""

from __future__ import annotations

import torch

from her2cache.embedder import Batching


def best_device() -> str:
    """ "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """What torch computes on here, as its maker calls it."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def instruction_set() -> str:
    """The vector instructions torch uses on this CPU; digests agree between machines that share it."""
    return torch.backends.cpu.get_cpu_capability()


def settle(batching: Batching) -> None:
    """Makes this process compute as it is told, the same way every time.

    cuDNN may neither time its algorithms and take the quickest of the day, nor round the factors of a float32
    product to TF32.
    """
    torch.set_num_threads(batching.threads)
    if batching.device == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
