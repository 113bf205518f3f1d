"""Weights files: safetensors whose metadata say what was trained, on what, and whose labels it has seen.

No code of a file is ever run: safetensors hold numbers and text only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from her2cache.errors import EmbedderError, WeightsMismatchError

Arrays = dict[str, NDArray[Any]]

_KEY = "her2cache"
_FORMAT = 1


@dataclass(frozen=True)
class WeightsCard:
    """What a weights file says of itself.

    Attributes:
        architecture: name of the network in torchvision, e.g. "alexnet".
        source_task: what it was trained for: "pcam" or "ihc".
        classes: names of the classes of that task, in the order of the network's outputs.
        source_mpp: scale of the patches it was trained on, um/px.
        input_px: side of these, px.
        mean, std: of the training patches' RGB in 0 to 1, a number a channel.
        data_digest: over what it was trained on, hex.
        metrics: of its own test split, by name; `n` is the number of patches.
        case_ids: cases whose labels the weights have seen, in training or in the choice of the epoch.
        settings: how it was trained.
        version: of her2cache.
    """

    architecture: str
    source_task: str
    classes: tuple[str, ...]
    source_mpp: float
    input_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    data_digest: str
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    case_ids: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    version: str = ""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """The card of a JSON document.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        values = {f.name: document[f.name] for f in fields(cls)}
        values |= {name: tuple(values[name]) for name in ("classes", "mean", "std", "case_ids")}
        card = cls(**values)
        numbers = np.array([*card.mean, *card.std, card.source_mpp], np.float64)  # (7,)
        if numbers.shape != (7,) or not np.isfinite(numbers).all() or min(*card.std, card.source_mpp) <= 0:
            raise ValueError("mean, std or source_mpp are not what they should be")
        return card


def write_weights(path: Path, tensors: Mapping[str, NDArray[Any]], card: WeightsCard) -> None:
    """Writes a weights file; it has its name only once it is whole.

    Args:
        path: ending in .safetensors; a file of that name is replaced.
        tensors: the whole network's state dict.
        card: what they are.

    Raises:
        EmbedderError: the file cannot be written.
    """
    metadata = {_KEY: json.dumps({"format": _FORMAT, **card.document()}, sort_keys=True)}
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            file.write(save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, metadata=metadata))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise EmbedderError(
            f"weights file {path} cannot be written ({error}): the disk is full or not writable; free some space, or"
            " name another --out"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def read_weights(path: Path) -> tuple[Arrays, WeightsCard | None]:
    """Reads a safetensors file.

    Returns:
        Its tensors, and what it says of itself, if `write_weights` made it.

    Raises:
        EmbedderError: there is no file.
        WeightsMismatchError: it is truncated, or no safetensors file.
    """
    return _opened(path, tensors=True)


def read_card(path: Path) -> WeightsCard | None:
    """What a safetensors file says of itself, without reading its tensors; see `read_weights`."""
    return _opened(path, tensors=False)[1]


def _opened(path: Path, *, tensors: bool) -> tuple[Arrays, WeightsCard | None]:
    if not path.is_file():
        raise EmbedderError(f"weights file {path} does not exist; correct NAME=FILE")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise WeightsMismatchError(
            f"{path} is not a whole safetensors file ({error}): it is truncated, or something else under that name;"
            " copy or train it anew"
        ) from error
    return arrays, _card(metadata, path)


def _card(metadata: Mapping[str, str], path: Path) -> WeightsCard | None:
    if _KEY not in metadata:
        return None
    try:
        document = json.loads(metadata[_KEY])
        if document["format"] != _FORMAT:
            raise ValueError(f"format {document['format']!r}, this version reads {_FORMAT}")
        return WeightsCard.of(document)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsMismatchError(
            f"{path} says of itself what this her2cache does not understand ({type(error).__name__}: {error}):"
            " another version wrote it, or it was edited; train it anew with `her2cache pretrain`"
        ) from error
