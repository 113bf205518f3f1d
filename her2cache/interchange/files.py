"""HDF5 files of unknown origin, read with distrust; and files that appear only once they are whole."""

from __future__ import annotations

import filecmp
import math
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import h5py
import numpy as np
from numpy.typing import NDArray

from her2cache.errors import ConfigError, Her2CacheError

Write = Callable[[BinaryIO], None]
"""Writes a file's content."""

_TRUSTED_BYTES = 64 << 20
_PACKED = 100
"""No compression makes features this much smaller."""


def listed(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder by a pattern of `Path.glob`, sorted; hidden ones are left out."""
    return sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))


@contextmanager
def opened(path: Path) -> Generator[h5py.File]:
    """An HDF5 file, open for reading.

    Raises:
        ConfigError: it is none, or damaged, also where that shows only as it is read.
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except Her2CacheError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        reason = str(error).partition("\n")[0].strip("'\"")
        size = path.stat().st_size if path.is_file() else 0
        raise ConfigError(
            f"{path} ({size:,} bytes) cannot be read as HDF5 ({type(error).__name__}: {reason}): it is truncated or"
            " damaged; copy it again, or make it again"
        ) from error


def dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """A dataset that lies in the file itself and holds as much as it says.

    Raises:
        ConfigError: there is none such.
    """
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        there = ", ".join(sorted(map(str, file.keys()))) or "nothing"
        raise ConfigError(f"{path} has no dataset {name!r}, only {there}: another tool wrote it; see --from")
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or found.is_virtual or found.external:
        raise ConfigError(f"{path}: {name!r} lies in another file, which is not followed: copy the data into this one")
    if found.nbytes > max(_TRUSTED_BYTES, _PACKED * found.id.get_storage_size()):
        raise ConfigError(
            f"{path}: {name!r} says it has {found.nbytes:,} bytes, of which hardly any was written: its writer was"
            " interrupted; make it again"
        )
    return found


def array(file: h5py.File, name: str, path: Path) -> NDArray[Any]:
    """The content of a dataset; raises as `dataset`."""
    return np.asarray(dataset(file, name, path)[()])


def number(attributes: Mapping[str, Any], name: str, path: Path, *, least: float = 0.0) -> float | None:
    """An attribute that is a number of at least `least` (more than that where it is 0).

    Returns:
        None where there is none; TRIDENT writes None as text.

    Raises:
        ConfigError: it is something else.
    """
    value = attributes.get(name)
    if value is None or (isinstance(value, str) and value == "None"):
        return None
    try:
        found = float(np.asarray(value).item())
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or found < least or (least == 0.0 and found == 0.0):
        raise ConfigError(f"{path}: attribute {name} is {value!r}, not a number that makes sense: make the file again")
    return found


def text(attributes: Mapping[str, Any], name: str) -> str | None:
    """An attribute that is text; None where there is none."""
    value = attributes.get(name)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value if isinstance(value, str) and value else None


def hdf5(
    datasets: Mapping[str, tuple[NDArray[Any], Mapping[str, Any]]], attributes: Mapping[str, Any] | None = None
) -> Write:
    """Writes an HDF5 file: name -> array and its attributes, and the attributes of the file itself.

    The same content gives the same bytes.
    """

    def write(target: BinaryIO) -> None:
        with h5py.File(target, "w") as file:
            file.attrs.update(attributes or {})
            for name, (values, described) in datasets.items():
                file.create_dataset(name, data=values).attrs.update(described)

    return write


def npy(values: NDArray[Any]) -> Write:
    """Writes a NumPy file."""
    return lambda target: np.save(target, values, allow_pickle=False)


def publish(files: Mapping[Path, Write], *, replace: bool) -> bool:
    """Writes files that belong together. Each is written beside its place and comes there only once all are whole.

    A process that is killed leaves hidden files `.*.part`, which no reader takes for anything.

    Args:
        files: where -> how, in the order in which they appear.
        replace: whether files of other content that are there already may go.

    Returns:
        Whether anything was written; False when all are there already, with this content.

    Raises:
        ConfigError: other files are there, or the disk is full.
    """
    parts = {target: target.with_name(f".{uuid4().hex}.part") for target in files}
    try:
        for target, write in files.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with parts[target].open("x+b") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        missing = [target for target in files if not target.exists()]
        changed = [t for t in files if t not in missing and not filecmp.cmp(parts[t], t, shallow=False)]
        if changed and not replace:
            raise ConfigError(
                f"{changed[0]} is there already, with other content: it was exported from another space or view, or"
                " another tool made it; name another --out, or replace it with --replace"
            )
        for target in (t for t in files if t in missing or t in changed):
            parts[target].replace(target)
    except OSError as error:
        raise ConfigError(
            f"{next(iter(files))} cannot be written ({error.strerror or error}): the disk is full or not writable; free"
            " some space, or name another --out"
        ) from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return bool(missing or changed)
