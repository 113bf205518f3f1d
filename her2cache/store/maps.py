"""Feature maps of many slides: opened when they are asked for, and only so many at a time."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from her2cache.store import chunks
from her2cache.store.objects import is_remote
from her2cache.store.schema import CommitRecord, attempt_path, features_chunk
from her2cache.store.staging import StagedMaps, stage_ahead

_KERNEL_MAPS = 16_384
"""A quarter of the maps that Linux grants a process (vm.max_map_count, 65,530 by default)."""

_checked: set[str] = set()
"""Chunk files whose crc32c this process has compared."""


def open_map(path: str, rows: int, columns: int, dtype: str, *, verify: bool) -> NDArray[np.generic]:
    """Maps a chunk file read-only, (rows, columns); its checksum is compared the first time in a process.

    One of a store in a bucket is staged into the node's cache first, where it is not there yet.

    Raises:
        CorruptFeaturesError: the file is not what was committed.
        StoreUnreachableError: it is in a bucket whose server does not answer.
        StoreError: the process may open no more files, or make no more maps.
    """
    verify = verify and path not in _checked
    if is_remote(path):
        mapped = _staged_maps.map(path, rows, columns, dtype, verify=verify)
    else:
        mapped = chunks.map_chunk(Path(path), rows, columns, dtype, verify=verify)
    if verify:
        _checked.add(path)
    return mapped


def most_kept() -> int:
    """How many maps a process keeps open: half of the files that it may open, and of maps what the kernel grants."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _KERNEL_MAPS if files == resource.RLIM_INFINITY else min(max(1, files // 2), _KERNEL_MAPS)


_staged_maps = StagedMaps(most_kept())

_kept_map = lru_cache(maxsize=most_kept())(open_map)
"""`open_map` for all `SlideMaps` of the process: those used last stay open."""


@dataclass(frozen=True)
class SlideViews(Sequence[NDArray[np.floating[Any]]]):
    """The stored views of a slide; view 0 is the patches themselves. A view is mapped when it is asked for.

    Attributes:
        folder: of the attempt; of a store in a bucket its URI.
        n_patches, dim, dtype: of a view, (n_patches, dim).
        views: how many there are.
        verify: whether checksums are compared.
    """

    folder: str
    n_patches: int
    dim: int
    dtype: str
    views: int
    verify: bool

    def __len__(self) -> int:
        return self.views

    @overload
    def __getitem__(self, index: int) -> NDArray[np.floating[Any]]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.floating[Any]]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.floating[Any]] | list[NDArray[np.floating[Any]]]:
        if isinstance(index, slice):
            return [self[view] for view in range(self.views)[index]]
        chunk = features_chunk(range(self.views)[index])  # raises where there is no such view
        path = f"{self.folder}/{chunk}"
        opened = open_map if is_remote(path) else _kept_map  # what is staged is kept open by `_staged_maps`
        return opened(path, self.n_patches, self.dim, self.dtype, verify=self.verify)  # pyright: ignore[reportReturnType]


class SlideMaps(Mapping[str, SlideViews]):
    """slide_id -> its views, for slides of one space. Nothing is mapped before it is asked for.

    An open map takes a file descriptor and one of the maps that the kernel grants a process; ten thousand slides of
    eight views would need more of both than a process usually has. So the maps used last stay open, as many as
    `most_kept` says for the whole process, and the others are opened again when they are asked for. An array
    that someone holds stays valid all the same.

    Those of a store in a bucket are staged into the node's cache when they are asked for, each in a request of its own;
    `stage` has several requests under way at once.

    It pickles without features, and without credentials.
    """

    def __init__(self, root: str, records: Sequence[CommitRecord], *, verify: bool) -> None:
        self._slides = {
            r.slide_id: SlideViews(
                folder=f"{root}/{attempt_path(r.slide_id, r.space_key, r.attempt)}",
                n_patches=r.n_patches,
                dim=r.dim,
                dtype=r.dtype,
                views=r.views,
                verify=verify,
            )
            for r in records
        }

    def stage(self, views: int | None = None) -> None:
        """Brings the features of all slides to this node, before they are read; nothing happens where they are files.

        Args:
            views: how many views of each slide, the first of them; all by default. What does not fit into the node's
                cache is left for when it is asked for.

        Raises:
            CorruptFeaturesError: an object is not what was committed.
            StoreUnreachableError: the store does not answer.
            StoreError: there is no room in the node's cache.
        """
        remote = [slide for slide in self._slides.values() if is_remote(slide.folder)]
        most = max((slide.views for slide in remote), default=0)
        stage_ahead(
            (f"{slide.folder}/{features_chunk(view)}", slide.n_patches * slide.dim * np.dtype(slide.dtype).itemsize)
            for view in range(most if views is None else min(views, most))
            for slide in remote
            if view < slide.views
        )

    def __getitem__(self, slide_id: str) -> SlideViews:
        return self._slides[slide_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._slides)

    def __len__(self) -> int:
        return len(self._slides)
