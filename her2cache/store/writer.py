"""Writing one slide into one feature space: an attempt, filled in any order, then committed once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from her2cache.errors import IncompleteSlideError, StoreError
from her2cache.store import chunks
from her2cache.store.records import Records, sync_up_to
from her2cache.store.schema import (
    CommitRecord,
    attempt_path,
    commit_path,
    failure_path,
    features_digest,
    row_order,
)
from her2cache.units import Coords

COORDS_CHUNK = "coords/c/0/0"


def features_chunk(view: int) -> str:
    """Path of the chunk of a view within an attempt."""
    return f"features/c/{view}/0/0"


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
        self._folder = records.root / attempt_path(shape.slide_id, shape.space_key, self.attempt)
        n_planned = len(shape.coords)
        self._order = row_order(shape.slide_id, shape.coords)  # (n_planned,)
        self._rank = np.empty_like(self._order)
        self._rank[self._order] = np.arange(n_planned)
        self._written = np.zeros(n_planned, np.bool_)  # by store row
        self._failed = np.zeros(n_planned, np.bool_)
        self._committed = False
        self._views = []
        try:
            self._views = [
                chunks.reserve(self._folder / features_chunk(view), n_planned, shape.dim, shape.dtype)
                for view in range(shape.views)
            ]
        except StoreError:
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
        for mapped, view in zip(self._views, features, strict=True):
            mapped[rows[ok]] = view[ok]
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
        if not self._records.put_new(commit_path(shape.slide_id, shape.space_key), record.to_json()):
            self.discard()
            return "lost"
        self._committed = True
        self._records.delete(failure_path(shape.slide_id, shape.space_key))
        return "committed"

    def _finish(self, made: dict[str, Any]) -> CommitRecord:
        """Turns the attempt into what its record says, flushed to disk and read back."""
        shape, keep = self._shape, ~self._failed
        coords = shape.coords[self._order][keep]  # (n_patches, 2)
        n_patches = len(coords)
        for view, mapped in enumerate(self._views):
            if not keep.all():
                chunks.compact(mapped, keep)
            mapped.flush()
            chunks.seal(self._folder / features_chunk(view), n_patches * shape.dim * mapped.itemsize)
        self._views = []
        written = chunks.reserve(self._folder / COORDS_CHUNK, n_patches, 2, np.int32)
        written[:] = coords
        written.flush()
        chunks.seal(self._folder / COORDS_CHUNK, coords.nbytes)
        _describe(self._folder, shape, coords)
        return CommitRecord(
            space_key=shape.space_key,
            slide_id=shape.slide_id,
            attempt=self.attempt,
            digest=self._digest(n_patches),
            n_patches=n_patches,
            views=shape.views,
            dim=shape.dim,
            dtype=shape.dtype,
            n_planned=len(keep),
            patch_level0_px=shape.patch_level0_px,
            slide=shape.slide,
            made=made,
        )

    def _digest(self, n_patches: int) -> str:
        """Digest of what lies on disk, read back through the checks every reader makes."""
        shape = self._shape
        views = [
            chunks.map_chunk(self._folder / features_chunk(view), n_patches, shape.dim, shape.dtype, verify=True)
            for view in range(shape.views)
        ]
        coords = chunks.map_chunk(self._folder / COORDS_CHUNK, n_patches, 2, np.int32, verify=True)
        return features_digest(coords, views)

    def discard(self) -> None:
        """Removes the attempt, unless it is committed.

        Emptied folders above it stay: another writer may be about to make its attempt in them.
        """
        self._views = []
        if not self._committed:
            shutil.rmtree(self._folder, ignore_errors=True)


def _describe(folder: Path, shape: SlideShape, coords: Coords) -> None:
    """Writes the Zarr metadata of an attempt, checks it against the chunk files, and flushes the lot."""
    n_patches = len(coords)
    group = zarr.create_group(store=folder, attributes={"slide_id": shape.slide_id, "space_key": shape.space_key})
    _add_array(group, "coords", (n_patches, 2), (n_patches, 2), "int32", 0)
    whole, chunk = (shape.views, n_patches, shape.dim), (1, n_patches, shape.dim)
    _add_array(group, "features", whole, chunk, shape.dtype, float("nan"))
    found = zarr.open_group(store=folder, mode="r")["coords"]
    if not isinstance(found, zarr.Array) or not np.array_equal(np.asarray(found[:]), coords):
        raise StoreError(f"{folder} does not read back through zarr: the disk is failing; run the same command again")
    for path in sorted(folder.rglob("*"), reverse=True):
        sync_up_to(path, path)
    sync_up_to(folder, folder.parents[3])


def _add_array(
    group: zarr.Group, name: str, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str, fill: float
) -> None:
    """An uncompressed array whose chunks end in their crc32c; its chunk files lie there already."""
    group.create_array(
        name,
        shape=shape,
        chunks=tuple(max(1, n) for n in chunk),
        dtype=dtype,
        compressors=[Crc32cCodec()],
        fill_value=fill,
    )
