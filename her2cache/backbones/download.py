"""torchvision's weights: by its own download, checked against the hash in their name, and never unpickled."""

from __future__ import annotations

import hashlib
import socket
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import WeightsEnum

from her2cache.errors import EmbedderError

_TIMEOUT_S = 20.0


def cached(weights: WeightsEnum) -> Path | None:
    """The file of weights that were downloaded before; None where there is none. See `damage` for what it holds."""
    path = _path(weights)
    return path if path.exists() else None


def damage(path: Path) -> str:
    """What is wrong with a cached file, and what to do; "" where its bytes have the hash that its name ends in.

    torch compares them only as it downloads. A file is read once a process, and again when it changes.
    """
    wanted = _hash_in(path.name)
    try:
        made = path.stat()
        found = _sha256(path, made.st_size, made.st_mtime_ns)
    except OSError as error:
        return f"{path} cannot be read ({error}); delete it, and it is downloaded anew"
    if found.startswith(wanted):
        return ""
    return (
        f"{path} is damaged (its SHA-256 begins with {found[: len(wanted)]}, not with {wanted}): a download or a copy"
        " of it was cut off; delete it, and it is downloaded anew"
    )


def download(weights: WeightsEnum, what: str, remedy: str, *, offline: bool) -> dict[str, Tensor]:
    """The state dict of torchvision's weights, downloaded where it is not here.

    Args:
        weights: which.
        what: they are, for people: "the ImageNet weights of alexnet".
        remedy: what to do where they cannot be had.
        offline: never try a download.

    Raises:
        EmbedderError: they cannot be had, or the file that is here is damaged.
    """
    path = _path(weights)
    if not path.exists():
        if offline:
            raise EmbedderError(f"{what} are not on this machine, and downloads are off; {remedy}")
        _fetch(weights.url, path, what, remedy)
    if damaged := damage(path):
        raise EmbedderError(f"{what}: {damaged}; or {remedy}")
    try:
        return dict(weights.get_state_dict(progress=False, weights_only=True))
    except Exception as error:  # unpickling raises anything
        reason = str(error).partition("\n")[0]
        raise EmbedderError(
            f"{what} cannot be read from {path} ({type(error).__name__}: {reason}): this torch may not know their"
            f" form; delete the file, and it is downloaded anew; or {remedy}"
        ) from error


def _path(weights: WeightsEnum) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name


def _hash_in(name: str) -> str:
    """The hash in a file's name, hex; "" where there is none."""
    found = torch.hub.HASH_REGEX.search(name)
    return found[1] if found else ""


def _fetch(url: str, path: Path, what: str, remedy: str) -> None:
    """Downloads a file under its name, whole or not at all; torch's own download says on stdout that it does."""
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(_TIMEOUT_S)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), _hash_in(path.name), progress=False)
    except (OSError, HTTPException, RuntimeError) as error:
        reason = f"{type(error).__name__}: {str(error).strip()}"
        raise EmbedderError(f"{what} cannot be downloaded ({reason}); {remedy}") from error
    finally:
        socket.setdefaulttimeout(timeout)


@lru_cache
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    """Of a file; the size and the time of change tell its states apart."""
    del size, changed_ns
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
