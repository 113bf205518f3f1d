"""PyTorch's .pt files, of which CLAM's training reads its features. Apart, for torch is slow to import."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from her2cache.errors import ConfigError


def read_tensor(path: Path) -> NDArray[Any]:
    """The tensor that a file holds. No code in it is run.

    Raises:
        ConfigError: it holds anything but one tensor of a type that NumPy has.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickles; what cannot be read is an error
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{path} cannot be read as a tensor ({type(error).__name__}: {reason}): it is truncated, or a pickle of"
            " something else, which is not run; make it again"
        ) from error
    if not isinstance(found, torch.Tensor):
        raise ConfigError(f"{path} holds a {type(found).__name__}, not one tensor of features: CLAM did not write it")
    try:
        return np.asarray(found.detach().numpy())
    except TypeError as error:
        raise ConfigError(f"{path}: features are {found.dtype}, which no store holds; convert to float32") from error


def write_tensor(values: NDArray[Any], target: BinaryIO) -> None:
    """Writes an array as a tensor; the same values give the same bytes."""
    torch.save(torch.from_numpy(np.ascontiguousarray(values)), target)
