"""State dicts from files. Whatever a file is, no code of it runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from her2cache.errors import EmbedderError, WeightsMismatchError
from her2cache.weights import WeightsCard, read_card


def read_state(path: Path) -> tuple[dict[str, Any], WeightsCard | None]:
    """Reads a state dict from safetensors, or from a torch file without unpickling objects.

    Returns:
        Its items, which need not be tensors, and what the file says of itself.

    Raises:
        EmbedderError: there is no file.
        WeightsMismatchError: it is truncated, or no weights file.
    """
    if not path.is_file():
        raise EmbedderError(f"weights file {path} does not exist; correct NAME=FILE")
    card = read_card(path) if path.suffix == ".safetensors" else None
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _load(path)
    except Exception as error:  # unpickling what is no pickle raises anything
        reason = str(error).partition("\n")[0]
        raise WeightsMismatchError(
            f"{path} is not a weights file ({type(error).__name__}: {reason}); give a state dict, saved by"
            " torch or as safetensors"
        ) from error
    if not isinstance(state, Mapping):
        raise WeightsMismatchError(f"{path} holds a {type(state).__name__}, not a state dict; save model.state_dict()")
    return named(state), card


def named(state: Mapping[Any, Any]) -> dict[str, Any]:
    """A state dict with names for keys. What torch keeps beside its items, the versions of its layers, stays."""
    found = OrderedDict((str(name), value) for name, value in state.items())
    if hasattr(state, "_metadata"):
        found._metadata = state._metadata  # pyright: ignore
    return found


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def matched(
    found: Mapping[str, Any], expected: Mapping[str, Tensor], ignored: Collection[str], what: str, remedy: str
) -> dict[str, Tensor]:
    """The tensors that a network needs, of a state dict that must hold them all and hardly anything else.

    Args:
        found: the state dict.
        expected: that of the network.
        ignored: prefixes of what the file may hold beyond it, such as a head that was cut off.
        what: it is, for people: "x.pth does not hold an AlexNet trunk".
        remedy: what to give instead.

    Raises:
        WeightsMismatchError: a tensor is missing, extra, or of another shape.
    """
    kept = {name: value for name, value in found.items() if name in expected or not name.startswith(tuple(ignored))}
    wrong = sorted(
        name
        for name in expected.keys() | kept.keys()
        if name not in expected or not isinstance(kept.get(name), Tensor) or kept[name].shape != expected[name].shape
    )
    if wrong:
        raise WeightsMismatchError(
            f"{what}: {len(wrong)} tensors are missing, extra or of another shape ({', '.join(wrong[:3])}); {remedy}"
        )
    return {name: kept[name] for name in expected}


def refuse_other_card(card: WeightsCard | None, path: str, architecture: str) -> None:
    """Stops where a file says that its weights are those of another network.

    Raises:
        WeightsMismatchError: it does.
    """
    if card is not None and card.architecture != architecture:
        raise WeightsMismatchError(
            f"{path} says that it holds weights of {card.architecture}, not of {architecture}; ask for the embedder"
            " that it was trained as"
        )
