"""Checking a store against its own records, and clearing away what no record names."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from zarr.errors import BaseZarrError

from her2cache.errors import CorruptFeaturesError, SchemaVersionError, StoreError
from her2cache.ids import decode_slide_id
from her2cache.store import chunks
from her2cache.store.records import Records
from her2cache.store.schema import CommitRecord, attempt_path, commit_path, features_digest
from her2cache.store.writer import COORDS_CHUNK, features_chunk

HOUR_S = 3600.0


@dataclass(frozen=True)
class Checked:
    """What became of a commit record under verification.

    Attributes:
        space_key, slide_id: of the commit; the slide_id is the file's name where that is no encoded id.
        n_patches: by the record; 0 where it cannot be read.
        problem: what is wrong, "" when all is well.
    """

    space_key: str
    slide_id: str
    n_patches: int
    problem: str = ""


def verify(
    records: Records, watch: Callable[[int, int], None] = lambda _done, _total: None, *, threads: int | None = None
) -> list[Checked]:
    """Recomputes the digest of every committed slide from the bytes on disk.

    Args:
        records: of the store.
        watch: called with slides checked and slides in all.
        threads: slides checked at once; hashing lets other threads run. Default: one a core.

    Returns:
        One a commit record, in the order of their paths.
    """
    paths = records.list("commits")
    results: list[Checked] = []
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for result in pool.map(lambda path: _check(records, path), paths):
            results.append(result)
            watch(len(results), len(paths))
    return results


def retire(records: Records, space_key: str, slide_id: str) -> None:
    """Takes a commit back: its record goes to retired/, and the slide can be embedded anew.

    The attempt that the record named stays until `collect_garbage` finds it unreferenced.
    """
    path = commit_path(slide_id, space_key)
    data = records.get(path)
    if data is not None:
        kept = Path(path).with_suffix(f".{time.time_ns()}.json").relative_to("commits")
        records.put_new(f"retired/{kept}", data)
        records.delete(path)


def collect_garbage(records: Records, *, older_than_s: float, dry_run: bool = False) -> list[tuple[Path, int]]:
    """Removes attempts that no commit names and that nobody has written to for a while.

    Args:
        records: of the store.
        older_than_s: least age of the newest file of an attempt, seconds; younger ones may still be written.
        dry_run: only say what would go.

    Returns:
        The attempts, and the bytes of each.

    Raises:
        StoreError: a commit record cannot be read, so what it names is not known.
    """
    named: set[str] = set()
    for path in records.list("commits"):
        try:
            record = CommitRecord.from_json(records.get(path) or b"", path)
        except (CorruptFeaturesError, SchemaVersionError) as error:
            raise StoreError(f"nothing was removed, for {error}") from error
        named.add(attempt_path(record.slide_id, record.space_key, record.attempt))
    removed: list[tuple[Path, int]] = []
    for attempt in sorted(records.root.glob("attempts/*/*/*")):
        if attempt.relative_to(records.root).as_posix() in named:
            continue
        size, newest = _weigh(attempt)
        if time.time() - newest >= older_than_s:
            removed.append((attempt, size))
            if not dry_run:
                shutil.rmtree(attempt, ignore_errors=True)
    return removed


def _check(records: Records, path: str) -> Checked:
    _, space_key, name = path.split("/", 2)
    stem = name.removesuffix(".json")
    try:
        slide_id = decode_slide_id(stem)
        record = CommitRecord.from_json(records.get(path) or b"", path)
    except Exception as error:  # noqa: BLE001 - whatever a damaged record raises is the finding
        return Checked(space_key, stem, 0, str(error))
    problem = "; ".join(_problems(records, path, record))
    return Checked(space_key, slide_id, record.n_patches, problem)


def _problems(records: Records, path: str, record: CommitRecord) -> Iterator[str]:
    """What is wrong with a committed slide."""
    if commit_path(record.slide_id, record.space_key) != path:
        yield f"{path} says it is of slide {record.slide_id!r} in space {record.space_key[:12]}"
        return
    folder = records.root / attempt_path(record.slide_id, record.space_key, record.attempt)
    if not folder.is_dir():
        yield f"{folder} is gone: a commit without data"
        return
    try:
        views = [
            chunks.map_chunk(folder / features_chunk(view), record.n_patches, record.dim, record.dtype, verify=False)
            for view in range(record.views)
        ]
        coords = chunks.map_chunk(folder / COORDS_CHUNK, record.n_patches, 2, np.int32, verify=False)
    except CorruptFeaturesError as error:
        yield str(error)
        return
    if features_digest(coords, views) != record.digest:
        broken = [chunk for chunk in _chunks(record) if not _sums(folder / chunk)]
        yield f"{folder}: the bytes are not those committed (checksum fails: {', '.join(broken) or 'nowhere'})"
    yield from _metadata_problems(folder, record)


def _chunks(record: CommitRecord) -> list[str]:
    return [COORDS_CHUNK, *(features_chunk(view) for view in range(record.views))]


def _sums(path: Path) -> bool:
    size = path.stat().st_size - chunks.CRC_BYTES
    try:
        chunks.map_chunk(path, 1, size, np.uint8, verify=True)
    except CorruptFeaturesError:
        return False
    return True


def _metadata_problems(folder: Path, record: CommitRecord) -> Iterator[str]:
    """Whether Zarr's own view of the attempt agrees with the record."""
    try:
        group = zarr.open_group(store=folder, mode="r")
        found = {name: (array.shape, str(array.dtype)) for name, array in group.arrays()}
    except (BaseZarrError, OSError, ValueError, KeyError) as error:
        yield f"{folder}: the Zarr metadata cannot be read ({type(error).__name__}: {error})"
        return
    expected = {
        "coords": ((record.n_patches, 2), "int32"),
        "features": ((record.views, record.n_patches, record.dim), record.dtype),
    }
    if found != expected:
        yield f"{folder}: the Zarr metadata says {found}, the record {expected}"


def _weigh(folder: Path) -> tuple[int, float]:
    """Bytes under a folder, and when something in it was last written."""
    size, newest = 0, folder.stat().st_mtime
    for path in folder.rglob("*"):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue  # its writer is at work
        size += found.st_size if path.is_file() else 0
        newest = max(newest, found.st_mtime)
    return size, newest
