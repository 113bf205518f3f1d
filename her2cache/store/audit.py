"""Checking a store against its own records, and clearing away what no record names."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from her2cache.embedder import canonical_json
from her2cache.errors import CorruptFeaturesError, SchemaVersionError, StoreError, StoreUnreachableError
from her2cache.ids import decode_slide_id
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
    """Recomputes the digest of every committed slide from the bytes in the store, and the key of every feature space.

    It reads through the store itself, never a copy in the node's cache.

    Args:
        records: of the store.
        watch: called with slides checked and slides in all.
        threads: slides checked at once; hashing lets other threads run. Default: as many as the store is worth.

    Returns:
        One a commit record, in the order of their paths, and before them one a feature space that has a problem.
    """
    paths = records.list("commits")
    keys = {Path(path).stem for path in records.list("spaces")} | {path.split("/")[1] for path in paths}
    results = [Checked(key, "", 0, problem) for key in sorted(keys) if (problem := _space_problem(records, key))]
    done = 0
    with ThreadPoolExecutor(threads or records.at_once) as pool:
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


def collect_garbage(records: Records, *, older_than_s: float, dry_run: bool = False) -> list[tuple[Path | str, int]]:
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
    found = records.leftovers()  # before the commits that may name them
    named: set[str] = set()
    paths = records.list("commits")
    for path, data in zip(paths, records.get_each(paths), strict=True):
        try:
            record = CommitRecord.from_json(data or b"", path)
        except (CorruptFeaturesError, SchemaVersionError) as error:
            raise StoreError(f"nothing was removed, for {error}") from error
        named.add(attempt_path(record.slide_id, record.space_key, record.attempt))
    removed: list[tuple[Path | str, int]] = []
    for left in found:
        if left.path in named:
            continue
        size, newest = left.weigh()
        if newest and time.time() - newest >= older_than_s:
            removed.append((left.name, size))
            if not dry_run:
                left.remove()
    return removed


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
        problem = "; ".join(_problems(records, path, record)).replace(f"{records.uri}/", "")
    except StoreUnreachableError:
        raise  # says nothing about the slide
    except Exception as error:  # noqa: BLE001 - whatever a damaged record raises is the finding
        return Checked(space_key, stem, 0, f"{path}: {type(error).__name__}: {error}")
    return Checked(space_key, slide_id, record.n_patches, problem)


def _problems(records: Records, path: str, record: CommitRecord) -> Iterator[str]:
    """What is wrong with a committed slide."""
    if commit_path(record.slide_id, record.space_key) != path:
        yield f"{path} says it is of slide {record.slide_id!r} in space {record.space_key[:12]}"
        return
    folder = attempt_path(record.slide_id, record.space_key, record.attempt)
    if not records.has_attempt(folder):
        yield f"{folder} is gone: a commit without data"
        return
    digest, damaged = _read_through(records, folder, record)
    yield from damaged
    if not damaged and digest != record.digest:
        yield f"{folder}: the bytes are not those committed, though their checksums are right"
    yield from _metadata_problems(records, folder, record)


def _read_through(records: Records, folder: str, record: CommitRecord) -> tuple[str, list[str]]:
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
            records.add_to(digest, f"{folder}/{chunk}", record.n_patches * columns * np.dtype(dtype).itemsize)
        except CorruptFeaturesError as error:
            problems.append(str(error))
    return digest.hexdigest(), problems


def _metadata_problems(records: Records, folder: str, record: CommitRecord) -> Iterator[str]:
    """Whether Zarr will read the attempt as it was written. Zarr itself would take milliseconds a slide to say so."""
    for name, written in zarr_documents(
        record.slide_id, record.space_key, record.n_patches, record.views, record.dim, record.dtype
    ).items():
        data = records.get(f"{folder}/{name}")
        if data is None:
            yield f"{folder}/{name}: the Zarr metadata cannot be read (it is gone)"
            continue
        try:
            found = parse_json(data, f"{folder}/{name}")
        except CorruptFeaturesError:
            yield f"{folder}/{name}: the Zarr metadata is damaged"
        else:
            for key, value in written.items():
                if found.get(key) != value:
                    yield f"{folder}/{name}: the Zarr metadata is damaged, {key} is {found.get(key)} instead of {value}"
