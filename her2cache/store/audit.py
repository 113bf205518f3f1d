"""Checking a store against its own records, and clearing away what no record names."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from her2cache.embedder import canonical_json
from her2cache.errors import CorruptFeaturesError, SchemaVersionError, StoreError
from her2cache.ids import decode_slide_id
from her2cache.store import chunks
from her2cache.store.records import Records
from her2cache.store.schema import (
    COORDS_CHUNK,
    CommitRecord,
    attempt_path,
    commit_path,
    features_chunk,
    parse_json,
    space_path,
    zarr_documents,
)

HOUR_S = 3600.0


@dataclass(frozen=True)
class Checked:
    """What became of a commit record, or of a feature space's, under verification.

    Attributes:
        space_key, slide_id: of the commit; the slide_id is the file's name where that is no encoded id, and "" where
            the record is a feature space's.
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
    """Recomputes the digest of every committed slide from the bytes on disk, and the key of every feature space.

    Args:
        records: of the store.
        watch: called with slides checked and slides in all.
        threads: slides checked at once; hashing lets other threads run. Default: one a core.

    Returns:
        One a commit record, in the order of their paths, and before them one a feature space that has a problem.
    """
    paths = records.list("commits")
    keys = {Path(path).stem for path in records.list("spaces")} | {path.split("/")[1] for path in paths}
    results = [Checked(key, "", 0, problem) for key in sorted(keys) if (problem := _space_problem(records, key))]
    done = 0
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for result in pool.map(lambda path: _check(records, path), paths):
            results.append(result)
            done += 1
            watch(done, len(paths))
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
    """Removes what killed writers left: attempts that no commit names, and records never linked to their name.

    Args:
        records: of the store.
        older_than_s: least age of the newest file of an attempt, seconds; younger ones may still be written.
        dry_run: only say what would go.

    Returns:
        What was removed, and the bytes of each.

    Raises:
        StoreError: a commit record cannot be read, so what it names is not known.
    """
    found = sorted([*records.root.glob("attempts/*/*/*"), *records.staged()])  # before the commits that may name them
    named: set[Path] = set()
    for path in records.list("commits"):
        try:
            record = CommitRecord.from_json(records.get(path) or b"", path)
        except (CorruptFeaturesError, SchemaVersionError) as error:
            raise StoreError(f"nothing was removed, for {error}") from error
        named.add(records.root / attempt_path(record.slide_id, record.space_key, record.attempt))
    removed: list[tuple[Path, int]] = []
    for path in found:
        if path in named:
            continue
        size, newest = _weigh(path)
        if newest and time.time() - newest >= older_than_s:
            removed.append((path, size))
            if not dry_run:
                _remove(path)
    return removed


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _space_problem(records: Records, key: str) -> str:
    """What is wrong with the record of a feature space, "" when nothing is."""
    path = space_path(key)
    remedy = "remove the file if it is there, and run the `her2cache embed` that made the space again"
    data = records.get(path)
    if data is None:
        return f"{path} is gone, though slides are committed in the space; {remedy}"
    try:
        document = parse_json(data, path)["space"]
        found = hashlib.sha256(canonical_json(document).encode()).hexdigest()
    except (CorruptFeaturesError, KeyError, ValueError) as error:
        return f"{path} is not a readable record ({type(error).__name__}); {remedy}"
    return "" if found == key else f"{path} holds another feature space, {found[:12]}; {remedy}"


def _check(records: Records, path: str) -> Checked:
    _, space_key, name = path.split("/", 2)
    stem = name.removesuffix(".json")
    try:
        slide_id = decode_slide_id(stem)
        record = CommitRecord.from_json(records.get(path) or b"", path)
        problem = "; ".join(_problems(records, path, record)).replace(f"{records.root}/", "")
    except Exception as error:  # noqa: BLE001 - whatever a damaged record raises is the finding
        return Checked(space_key, stem, 0, f"{path}: {type(error).__name__}: {error}")
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
    digest, damaged = _read_through(folder, record)
    yield from damaged
    if not damaged and digest != record.digest:
        yield f"{folder}: the bytes are not those committed, though their checksums are right"
    yield from _metadata_problems(folder, record)


def _read_through(folder: Path, record: CommitRecord) -> tuple[str, list[str]]:
    """Reads every chunk of an attempt.

    Returns:
        sha256 over coords (n_patches, 2), then each view (n_patches, dim), hex; and what is wrong with the chunks: one
        is missing, has another size, or fails its checksum.
    """
    digest = hashlib.sha256()
    problems: list[str] = []
    views = [(features_chunk(view), record.dim, record.dtype) for view in range(record.views)]
    for chunk, columns, dtype in [(COORDS_CHUNK, 2, "int32"), *views]:
        try:
            chunks.add_to(digest, folder / chunk, record.n_patches, columns, dtype)
        except CorruptFeaturesError as error:
            problems.append(str(error))
    return digest.hexdigest(), problems


def _metadata_problems(folder: Path, record: CommitRecord) -> Iterator[str]:
    """Whether Zarr will read the attempt as it was written. Zarr itself would take milliseconds a slide to say so."""
    for name, written in zarr_documents(
        record.slide_id, record.space_key, record.n_patches, record.views, record.dim, record.dtype
    ).items():
        try:
            found = parse_json((folder / name).read_bytes(), f"{folder}/{name}")
        except OSError as error:
            yield f"{folder}/{name}: the Zarr metadata cannot be read ({error.strerror})"
        except CorruptFeaturesError:
            yield f"{folder}/{name}: the Zarr metadata is damaged"
        else:
            for key, value in written.items():
                if found.get(key) != value:
                    yield f"{folder}/{name}: the Zarr metadata is damaged, {key} is {found.get(key)} instead of {value}"


def _weigh(folder: Path) -> tuple[int, float]:
    """Bytes of a file or under a folder, and when something of it was last written; 0 when it is gone."""
    size, newest = 0, 0.0
    for path in (folder, *folder.rglob("*")):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue  # its writer is at work
        size += found.st_size if path.is_file() else 0
        newest = max(newest, found.st_mtime)
    return size, newest
