"""The file that a killed training goes on from."""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from her2cache.errors import ConfigError, TrainingError
from trainers.files import whole

State = dict[str, Tensor]


def checkpoint_of(out: Path) -> Path:
    """The epoch checkpoint of a training, beside the weights it will write."""
    return out.with_name(f"{out.name}.checkpoint")


def save(path: Path, training: str, document: dict[str, Any]) -> None:
    """Writes a checkpoint; a reader sees the one before or this one, whole.

    Args:
        path: of the checkpoint.
        training: digest of what is trained and how.
        document: tensors, numbers and text, in dicts and lists.

    Raises:
        TrainingError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial, partial.open("wb") as file:
            torch.save({"training": training, **document}, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        raise TrainingError(
            f"the epoch checkpoint {path} cannot be written ({error}): the disk is full or not writable; free some"
            " space (a GiB for an AlexNet) and run the same command again"
        ) from error


def load(path: Path, training: str) -> dict[str, Any] | None:
    """What `save` wrote for the same training; None where there is no file.

    Raises:
        ConfigError: the file is of another training, or damaged.
    """
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
        written_for = document["training"]
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, EOFError, UnpicklingError, KeyError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{path} is no epoch checkpoint ({type(error).__name__}: {reason}): it is damaged, or something else;"
            " remove it to train from the start"
        ) from error
    if written_for != training:
        raise ConfigError(
            f"{path} is the epoch checkpoint of another training, of other patches or settings: run that one's command"
            " again to finish it, remove the file to give it up, or name another --out"
        )
    return document
