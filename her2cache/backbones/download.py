"""torchvision's weights: by its own download, checked against the hash in their name, and never unpickled."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.models import WeightsEnum

from her2cache.errors import EmbedderError

_TIMEOUT_S = 20.0


def cached(weights: WeightsEnum) -> Path | None:
    """The file of weights that were downloaded before; None where there is none."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    return path if path.exists() else None


def download(weights: WeightsEnum, what: str, remedy: str, *, offline: bool) -> dict[str, Tensor]:
    """The state dict of torchvision's weights, downloaded where it is not here.

    Args:
        weights: which.
        what: they are, for people: "the ImageNet weights of alexnet".
        remedy: what to do where they cannot be had.
        offline: never try a download.

    Raises:
        EmbedderError: they cannot be had.
    """
    if offline and cached(weights) is None:
        raise EmbedderError(f"{what} are not on this machine, and downloads are off; {remedy}")
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(_TIMEOUT_S)
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (URLError, OSError, RuntimeError) as error:
        raise EmbedderError(f"{what} cannot be downloaded ({error}); {remedy}") from error
    finally:
        socket.setdefaulttimeout(timeout)
