"""Reading a feature store. Readers follow commit records only: what is not committed does not exist."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from her2cache.embedder import FeatureSpace
from her2cache.errors import IncompleteSlideError, StoreError
from her2cache.ids import decode_slide_id
from her2cache.store import chunks
from her2cache.store.records import Records
from her2cache.store.schema import (
    STORE_RECORD,
    CommitRecord,
    FailureRecord,
    StoreRecord,
    attempt_path,
    check_schema,
    commit_path,
    failure_path,
    parse_json,
    space_path,
    unreadable,
)
from her2cache.store.writer import COORDS_CHUNK, SlideShape, SlideWriter, features_chunk
from her2cache.units import Coords

_checked: set[Path] = set()
"""Chunk files whose crc32c this process has compared."""


@dataclass(frozen=True)
class SpaceInfo:
    """A feature space of a store.

    Attributes:
        key: the space key.
        name: name of its embedder.
        dim, views, dtype: of its features.
        document: the JSON document the key is the digest of.
        weights: where the embedder's weights were read from, for people and for embedding more slides.
    """

    key: str
    name: str
    dim: int
    views: int
    dtype: str
    document: dict[str, Any]
    weights: str | None


class FeatureStore:
    """A store of features. Use `open` to read, `create` to open or make one.

    Attributes:
        uri: where it is.
        records: its JSON records.
    """

    def __init__(self, records: Records, *, verify: Literal["once", "never"]) -> None:
        self.records = records
        self._verify = verify
        self.uri = str(records.root)

    @classmethod
    def open(cls, uri: str | Path, *, verify: Literal["once", "never"] = "once") -> Self:
        """Opens a store.

        Args:
            uri: a directory.
            verify: "once" compares each chunk file with its checksum the first time a process maps it.

        Raises:
            StoreError: there is no store.
            SchemaVersionError: it has another schema.
        """
        exists = Path(str(uri).removeprefix("file://")).is_dir() or "://" in str(uri)
        records = Records(uri) if exists else None
        data = records.get(STORE_RECORD) if records else None
        if records is None or data is None:
            raise StoreError(
                f"{uri} is not a feature store (no {STORE_RECORD}); make one with `her2cache embed --store`"
            )
        check_schema(parse_json(data, f"{uri}/{STORE_RECORD}"), f"{uri}/{STORE_RECORD}")
        return cls(records, verify=verify)

    @classmethod
    def create(cls, uri: str | Path, *, verify: Literal["once", "never"] = "once") -> Self:
        """Opens a store, making it first where there is none."""
        Records(uri).put_new(STORE_RECORD, (json.dumps(asdict(StoreRecord())) + "\n").encode())
        return cls.open(uri, verify=verify)

    # -- spaces

    def add_space(self, space: FeatureSpace, *, weights: str | None = None) -> str:
        """Records a feature space; returns its key. `weights` says where they were read from."""
        record = {"space": space.document(), "name": space.embedder.name, "weights": weights}
        self.records.put_new(space_path(space.key), (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
        return space.key

    def spaces(self) -> list[SpaceInfo]:
        """The feature spaces, by name then key."""
        found = [self._space(Path(path).stem) for path in self.records.list("spaces")]
        return sorted(found, key=lambda space: (space.name, space.key))

    def find_space(self, name_or_key: str) -> SpaceInfo:
        """The feature space with an embedder's name, or a key or its beginning.

        Raises:
            StoreError: none fits, or several do.
        """
        spaces = self.spaces()
        fits = [s for s in spaces if s.name == name_or_key or (len(name_or_key) >= 6 and s.key.startswith(name_or_key))]
        if len(fits) == 1:
            return fits[0]
        if fits:
            keys = ", ".join(s.key[:12] for s in fits)
            raise StoreError(
                f"{self.uri}: {len(fits)} feature spaces are called {name_or_key!r}; name one by its key: {keys}"
            )
        known = ", ".join(f"{s.name} ({s.key[:12]})" for s in spaces) or "none yet"
        raise StoreError(f"{self.uri} has no feature space {name_or_key!r}, only: {known}; run `her2cache embed` first")

    def _space(self, key: str) -> SpaceInfo:
        path = f"{self.uri}/{space_path(key)}"
        record = parse_json(self.records.get(space_path(key)) or b"", path)
        try:
            document = record["space"]
            return SpaceInfo(
                key=key,
                name=record["name"],
                dim=document["embedder"]["dim"],
                views=document["views"],
                dtype=document["dtype"],
                document=document,
                weights=record["weights"],
            )
        except (KeyError, TypeError) as error:
            raise unreadable(path, error) from error

    # -- slides

    def slides(self, space_key: str) -> list[str]:
        """Ids of the slides committed in a space, sorted."""
        return sorted(decode_slide_id(Path(path).stem) for path in self.records.list(f"commits/{space_key}"))

    def has(self, slide_id: str, space_key: str) -> bool:
        """Whether a slide is committed in a space."""
        return self.records.get(commit_path(slide_id, space_key)) is not None

    def record(self, slide_id: str, space_key: str) -> CommitRecord:
        """The commit record of a slide.

        Raises:
            IncompleteSlideError: it is not committed.
        """
        path = commit_path(slide_id, space_key)
        data = self.records.get(path)
        if data is None:
            raise IncompleteSlideError(
                f"slide {slide_id!r} has no features in space {space_key[:12]} of {self.uri}: it was not embedded,"
                " or failed (see failures/); run `her2cache embed`"
            )
        return CommitRecord.from_json(data, f"{self.uri}/{path}")

    def features(self, slide_id: str, space_key: str, view: int = 0) -> NDArray[np.float16]:
        """Features of a slide, memory-mapped: processes of a machine share one page cache.

        Args:
            slide_id, space_key: which.
            view: 0 is the patch itself, higher ones are its augmented views.

        Returns:
            Read-only (n_patches, dim) in the space's dtype; row k belongs to row k of `coords`.

        Raises:
            IncompleteSlideError: the slide is not committed.
            CorruptFeaturesError: its bytes are not what was committed.
        """
        record = self.record(slide_id, space_key)
        if not 0 <= view < record.views:
            raise StoreError(
                f"slide {slide_id!r} has views 0 to {record.views - 1}, not {view}; embed with more --views"
            )
        return self._map(record, features_chunk(view), record.dim, record.dtype)  # pyright: ignore[reportReturnType]

    def coords(self, slide_id: str, space_key: str) -> Coords:
        """Level-0 (x, y) of the patches of a slide, memory-mapped read-only int32 (n_patches, 2)."""
        return self._map(self.record(slide_id, space_key), COORDS_CHUNK, 2, "int32")  # pyright: ignore[reportReturnType]

    def _map(self, record: CommitRecord, chunk: str, columns: int, dtype: str) -> NDArray[np.generic]:
        path = self.records.root / attempt_path(record.slide_id, record.space_key, record.attempt) / chunk
        verify = self._verify == "once" and path not in _checked
        mapped = chunks.map_chunk(path, record.n_patches, columns, dtype, verify=verify)
        if verify:
            _checked.add(path)
        return mapped

    # -- writing

    def writer(self, shape: SlideShape) -> SlideWriter:
        """Starts an attempt at a slide."""
        return SlideWriter(self.records, shape)

    def add_failure(self, failure: FailureRecord) -> None:
        """Records why a slide has no features; the last reason counts."""
        self.records.put(failure_path(failure.slide_id, failure.space_key), failure.to_json())

    def failures(self, space_key: str) -> Iterator[FailureRecord]:
        """The failures of a space, without those of slides that were committed meanwhile."""
        committed = set(self.slides(space_key))
        for path in self.records.list(f"failures/{space_key}"):
            data = self.records.get(path)
            if data is not None and decode_slide_id(Path(path).stem) not in committed:
                yield FailureRecord.from_json(data, f"{self.uri}/{path}")
