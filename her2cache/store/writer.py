"""Writing one slide into one feature space: an attempt, filled in any order, then committed once."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import zarr
from numpy.typing import NDArray

from her2cache.errors import IncompleteSlideError, StoreError, StoreUnreachableError
from her2cache.store import chunks
from her2cache.store.records import Records
from her2cache.store.schema import (
    COORDS_CHUNK,
    CommitRecord,
    attempt_path,
    commit_path,
    failure_path,
    features_chunk,
    row_order,
    zarr_documents,
)
from her2cache.units import Coords

_KEPT_AT_ONCE = 4
"""Files flushed to disk, or sent away, at once: a file system commits them together."""


@dataclass(frozen=True)
class SlideShape:
    """What is about to be written.

    Attributes:
        slide_id, space_key: names of the slide and of the feature space.
        coords: level-0 (x, y) of every planned patch in plan order, int32 (n_planned, 2).
        views, dim, dtype: of the features.
        patch_level0_px: side of a patch, level-0 px.
        slide: provenance of the slide, see `CommitRecord`.
    """

    slide_id: str
    space_key: str
    coords: Coords
    views: int
    dim: int
    dtype: str
    patch_level0_px: float
    slide: dict[str, Any]


class SlideWriter:
    """One attempt at a slide's features. Only `commit` makes it visible; `discard` removes it.

    Memory does not grow with the slide: rows go straight into mapped chunk files.
    """

    def __init__(self, records: Records, shape: SlideShape) -> None:
        self._records = records
        self._shape = shape
        self.attempt = uuid4().hex
        path, n_planned = attempt_path(shape.slide_id, shape.space_key, self.attempt), len(shape.coords)
        self._order = row_order(shape.slide_id, shape.coords)  # (n_planned,)
        self._rank = np.empty_like(self._order)
        self._rank[self._order] = np.arange(n_planned)
        self._written = np.zeros(n_planned, np.bool_)  # by store row
        self._failed = np.zeros(n_planned, np.bool_)
        self._committed = self._doubtful = False
        self._views = []
        self._place = records.place(path)
        self._folder = self._place.folder
        try:
            self._views = [
                chunks.reserve(self._folder / features_chunk(view), n_planned, shape.dim, shape.dtype)
                for view in range(shape.views)
            ]
        except BaseException:
            self.discard()
            raise

    def write(self, start: int, features: NDArray[np.float16], ok: NDArray[np.bool_]) -> None:
        """Takes the features of consecutive patches of the plan.

        Args:
            start: plan index of the first.
            features: (views, n, dim) in the store's dtype.
            ok: bool (n,); a False row is left out of the store and counted as failed.
        """
        rows = self._rank[start : start + len(ok)]  # (n,)
        good = slice(None) if ok.all() else ok
        for mapped, view in zip(self._views, features, strict=True):
            mapped[rows[good]] = view[good]
        self._written[rows] = True
        self._failed[rows[~ok]] = True

    def commit(self, made: dict[str, Any]) -> Literal["committed", "lost"]:
        """Compacts, seals, verifies and flushes the attempt, then makes it the slide's features.

        Args:
            made: provenance of the writer, see `CommitRecord`.

        Returns:
            "lost" when another writer committed first; this attempt is then removed.

        Raises:
            IncompleteSlideError: rows are missing, or none could be decoded.
            StoreError: the disk is full or failing. Nothing is visible then; `discard` removes the attempt.
        """
        shape = self._shape
        if not self._written.all():
            raise IncompleteSlideError(
                f"slide {shape.slide_id}: {int((~self._written).sum())} of {len(self._written)} rows were never"
                " written: a part of the job died; run the same command again"
            )
        if self._failed.all():
            raise IncompleteSlideError(
                f"slide {shape.slide_id}: none of its {len(self._failed)} patches could be decoded: the file is"
                " damaged; copy it again"
            )
        try:
            record = self._finish(made)
        except OSError as error:
            raise StoreError(
                f"{self._folder} cannot be finished ({error}): the disk is full or failing; free some space and run"
                " the same command again"
            ) from error
        path = commit_path(shape.slide_id, shape.space_key)
        if not self._put(path, record.to_json()):
            self.discard()
            return "lost"
        self._committed = True
        self._place.leave(remove=False)
        with suppress(StoreUnreachableError):  # a failure before the commit does not count, there or not
            self._records.delete(failure_path(shape.slide_id, shape.space_key))
        return "committed"

    def _put(self, path: str, data: bytes) -> bool:
        """Puts the commit record. A request that ended in an error may have been done all the same: it is looked up."""
        try:
            return self._records.put_new(path, data)
        except StoreUnreachableError:
            self._doubtful = True
            found = self._records.get(path)
            if found is None:  # and if it still comes, its attempt is there
                raise
            self._doubtful = False
            return found == data

    def _finish(self, made: dict[str, Any]) -> CommitRecord:
        """Turns the attempt into what its record says: failed rows cut out, summed from the files, kept for good."""
        shape, keep, place = self._shape, ~self._failed, self._place
        coords = shape.coords[self._order][keep]  # (n_patches, 2)
        n_patches = len(coords)
        if not keep.all():
            for mapped in self._views:
                chunks.compact(mapped, keep)
        self._views = []
        digest = hashlib.sha256()
        self._write_coords(coords, digest)
        files = [self._folder / features_chunk(view) for view in range(shape.views)]
        size = n_patches * shape.dim * np.dtype(shape.dtype).itemsize
        with ThreadPoolExecutor(1) as summing, ThreadPoolExecutor(_KEPT_AT_ONCE) as keeping:
            # the disk is slow, and so is sha256: neither waits for the other, nor for the metadata
            sealed = [summing.submit(chunks.seal, file, size, digest) for file in files]
            kept = [keeping.submit(place.begin, file) for file in files]
            _describe(self._folder, shape, coords)
            others = {self._folder, *self._folder.rglob("*")} - {*files}
            kept += [keeping.submit(place.keep, path) for path in (*others, *place.above)]
            for file, done in zip(files, sealed, strict=True):
                done.result()
                kept.append(keeping.submit(place.keep, file))  # and what its checksum changed
            for one in kept:
                one.result()
        place.check()
        return CommitRecord(
            space_key=shape.space_key,
            slide_id=shape.slide_id,
            attempt=self.attempt,
            digest=digest.hexdigest(),
            n_patches=n_patches,
            views=shape.views,
            dim=shape.dim,
            dtype=shape.dtype,
            n_planned=len(keep),
            patch_level0_px=shape.patch_level0_px,
            slide=shape.slide,
            made=made,
        )

    def _write_coords(self, coords: Coords, digest: chunks.Digest) -> None:
        path = self._folder / COORDS_CHUNK
        chunks.reserve(path, len(coords), 2, np.int32)[:] = coords
        chunks.seal(path, coords.nbytes, digest)

    def discard(self) -> None:
        """Removes the attempt, unless it is committed, or may be: that is for garbage collection to find out."""
        self._views = []
        if not self._committed:
            self._place.leave(remove=not self._doubtful)


def _describe(folder: Path, shape: SlideShape, coords: Coords) -> None:
    """Writes the Zarr metadata of an attempt, and checks that zarr reads the chunk files by it."""
    documents = zarr_documents(shape.slide_id, shape.space_key, len(coords), shape.views, shape.dim, shape.dtype)
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    group = zarr.open_group(store=folder, mode="r")
    found, features = group["coords"], group["features"]
    if (
        not (isinstance(found, zarr.Array) and isinstance(features, zarr.Array))
        or features.shape != (shape.views, len(coords), shape.dim)
        or not np.array_equal(np.asarray(found[:]), coords)
    ):
        raise StoreError(f"{folder} does not read back through zarr: the disk is failing; run the same command again")
