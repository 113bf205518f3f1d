"""PatchCamelyon as it is published (six HDF5 files), or as an .npz of patches and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import h5py
import numpy as np
from numpy.typing import NDArray

from her2cache.errors import ConfigError
from her2cache.units import PatchBatch
from trainers.pretraining.gzipped import unpacked
from trainers.pretraining.patches import SourceData
from trainers.pretraining.stored import Rows, StoredPatches

PX = 96
MPP = 0.97
"""um/px: level 2 of Camelyon16's slides, which is about 10x (github.com/basveeling/pcam, README)."""

CLASSES = ("normal", "tumour")
PARTS = ("train", "valid", "test")

OFFICIAL = {"train": 262_144, "valid": 32_768, "test": 32_768}
"""Patches of the published files."""

MD5 = {
    "train_x": "1571f514728f59376b705fc836ff4b63",
    "train_y": "35c2d7259d906cfc8143347bb8e05be7",
    "valid_x": "d5b63470df7cfa627aeec8b9dc0c066e",
    "valid_y": "2b85f58b927af9964a4c15b8f7e8f179",
    "test_x": "d8c2d60d490dbd479f8199bdfa0cf6ec",
    "test_y": "60a7035772fbdb7f34eb86d4420cf66a",
}
"""Of the published .h5.gz files, as torchvision.datasets.PCAM has them; the README swaps those of valid and test."""

_TRAIN_SHARE, _VALID_SHARE = 0.70, 0.15  # of the patches of an .npz; the rest is for the test


def open_pcam(path: Path, *, cache: Path | None = None) -> SourceData:
    """Opens PatchCamelyon. Of HDF5 files only labels are held in memory; an .npz is read whole.

    Args:
        path: a folder with the published files, each as .h5 or .h5.gz; or an .npz of `x` uint8 (n, 96, 96, 3) and
            `y` (n,), whose patches are split by the hash of their bytes.
        cache: where .h5.gz files are unpacked to, once; default beside them.

    Raises:
        ConfigError: files are missing, damaged, or not PatchCamelyon's, or a part lacks a class.
    """
    if path.is_file():
        parts = _of_npz(path)
    elif path.is_dir():
        parts = {part: _of_folder(path, part, cache) for part in PARTS}
    else:
        raise ConfigError(
            f"{path} does not exist: name a folder with PatchCamelyon's HDF5 files, or an .npz of x and y"
        )
    for name, part in parts.items():
        _require_both_classes(path, name, part.labels)
    return SourceData("pcam", CLASSES, MPP, PX, _digest(parts.values()), parts["train"], parts["valid"], parts["test"])


def file_name(part: str, member: str) -> str:
    """Name of a published file, unpacked: `part` is train, valid or test; `member` x (patches) or y (labels)."""
    return f"camelyonpatch_level_2_split_{part}_{member}.h5"


def _require_both_classes(path: Path, part: str, labels: NDArray[np.int64]) -> None:
    if missing := sorted({0, 1} - set(np.unique(labels).tolist())):
        called = {"train": "training", "valid": "validation", "test": "test"}[part]
        why = "nothing can be learned from it" if part == "train" else "there is no AUC of one class"
        raise ConfigError(
            f"{path} has no {called} patch of class {CLASSES[missing[0]]!r} (y = {missing[0]}): {why}; is this the"
            " right file, and are there patches enough?"
        )


# -- HDF5


def _of_folder(folder: Path, part: str, cache: Path | None) -> StoredPatches:
    x, y = (_file(folder, part, member, cache) for member in "xy")
    n = _check(x, "x", (PX, PX, 3), np.uint8)
    if (labels := _check(y, "y", (1, 1, 1), np.integer)) != n:
        raise ConfigError(f"{x} has {n:,} patches and {y.name} {labels:,} labels: they are not of one data set")
    with _dataset(y, "y") as rows:
        return StoredPatches(_labels(rows[:].reshape(-1), y), partial(_dataset, x, "x"))


def _file(folder: Path, part: str, member: str, cache: Path | None) -> Path:
    """The unpacked file of a member."""
    plain = folder / file_name(part, member)
    packed = plain.with_name(f"{plain.name}.gz")
    if plain.is_file():
        return plain
    if not packed.is_file():
        raise ConfigError(
            f"{folder} has neither {plain.name} nor {packed.name}: PatchCamelyon is six files"
            " (train, valid, test; x, y), to be had from github.com/basveeling/pcam"
        )

    def verify(unpacked_file: Path, md5: str) -> None:
        with _dataset(unpacked_file, member, packed) as rows:
            official = len(rows) == OFFICIAL[part]
        if official and md5 != MD5[f"{part}_{member}"]:
            raise ConfigError(
                f"{packed} has the size of PatchCamelyon's own file, but MD5 {md5} instead of"
                f" {MD5[f'{part}_{member}']}: the download is damaged, or another file has that name; get it anew"
            )

    return unpacked(packed, cache, verify)


def _check(path: Path, member: str, shape: tuple[int, ...], dtype: type[np.generic]) -> int:
    """How many rows a member has."""
    with _dataset(path, member) as rows:
        wanted = f"(N, {', '.join(map(str, shape))}) {'uint8' if dtype is np.uint8 else 'integers'}"
        if rows.shape[1:] != shape or not np.issubdtype(rows.dtype, dtype) or not len(rows):
            raise ConfigError(
                f"{path}: {member} is {rows.shape} {rows.dtype}, PatchCamelyon's is {wanted}: this is another data set"
            )
        return len(rows)


@contextmanager
def _dataset(path: Path, member: str, named: Path | None = None) -> Generator[h5py.Dataset]:
    """A member of an HDF5 file; what goes wrong in reading it is said of `named`."""
    named = named or path
    try:
        with h5py.File(path, "r") as file:
            found = file.get(member)
            if not isinstance(found, h5py.Dataset):
                raise ConfigError(
                    f"{named} has no member {member!r} (it has {', '.join(map(repr, file)) or 'none'}): this is not"
                    " PatchCamelyon's file of that name"
                )
            yield found
    except OSError as error:
        raise ConfigError(
            f"{named} cannot be read as HDF5 ({error}): it is truncated or something else; copy or download it anew"
        ) from error


# -- npz


def _of_npz(path: Path) -> dict[str, StoredPatches]:
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y = file["x"], file["y"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, TypeError) as error:
        raise ConfigError(
            f"{path} is no .npz of arrays x and y ({error}): it is truncated or something else; name an .npz, or a"
            " folder with PatchCamelyon's HDF5 files"
        ) from error
    if x.dtype != np.uint8 or x.shape[1:] != (PX, PX, 3) or y.size != len(x) or not np.issubdtype(y.dtype, np.integer):
        raise ConfigError(
            f"{path}: x is {x.shape} {x.dtype} and y {y.shape} {y.dtype}; x should be (n, {PX}, {PX}, 3) uint8 and y"
            " (n,) integers"
        )
    labels, part = _labels(y.reshape(-1), path), hash_split(x)
    own = {name: part == k for k, name in enumerate(PARTS)}
    if empty := [name for name, members in own.items() if not members.any()]:
        raise ConfigError(f"{path} has {len(x)} patches, of which none falls to {' and '.join(empty)}: give more")
    return {name: StoredPatches(labels[own[name]], partial(_in_memory, x[own[name]])) for name in PARTS}


def hash_split(patches: PatchBatch) -> NDArray[np.int64]:
    """The part of each patch, 0 to 2 in the order of `PARTS`, (n,): by its bytes, so equal patches fall on one side.

    The shares are 70, 15 and 15 %; a patch keeps its part whatever other patches there are.
    """
    words = [hashlib.sha256(patch.tobytes()).digest()[:8] for patch in patches]
    u = np.array([int.from_bytes(word, "big") / 2**64 for word in words])  # (n,), uniform in [0, 1]
    return np.digitize(u, [_TRAIN_SHARE, _TRAIN_SHARE + _VALID_SHARE])


def _in_memory(pixels: PatchBatch) -> nullcontext[Rows]:
    return nullcontext(pixels)


def _labels(y: NDArray[np.integer], path: Path) -> NDArray[np.int64]:
    if wrong := sorted(set(np.unique(y).tolist()) - {0, 1}):
        raise ConfigError(f"{path}: y holds {wrong[0]}, and a label is 0 or 1 ({', '.join(CLASSES)})")
    return y.astype(np.int64)


def _digest(parts: Iterable[StoredPatches]) -> str:
    """Over pixels and labels of all parts, whatever the files that hold them."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.size};".encode())
        for pixels, labels in part.ordered():
            digest.update(pixels.tobytes())
            digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()
