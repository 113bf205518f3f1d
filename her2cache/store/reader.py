"""A feature store: its spaces, its slides, their features. What no commit record names does not exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from her2cache.embedder import FeatureSpace
from her2cache.errors import IncompleteSlideError, StoreError
from her2cache.ids import decode_slide_id
from her2cache.store.bucket import Bucket
from her2cache.store.directory import Directory
from her2cache.store.maps import SlideMaps, open_map
from her2cache.store.objects import is_remote
from her2cache.store.records import Records
from her2cache.store.schema import (
    COORDS_CHUNK,
    STORE_RECORD,
    CommitRecord,
    FailureRecord,
    StoreRecord,
    attempt_path,
    check_schema,
    commit_path,
    failure_path,
    features_chunk,
    parse_json,
    space_path,
    unreadable,
)
from her2cache.store.writer import SlideShape, SlideWriter
from her2cache.units import Coords
from her2cache.weights import WeightsCard

_SPACE_KEY = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class SpaceInfo:
    """A feature space of a store.

    Attributes:
        key: the space key.
        name: name of its embedder.
        dim, views, dtype: of its features.
        document: the JSON document the key is the digest of.
        weights: where the embedder's weights were read from, for people and for embedding more slides.
        card: what the weights file said of itself; None where there was no file, or it said nothing.
    """

    key: str
    name: str
    dim: int
    views: int
    dtype: str
    document: dict[str, Any]
    weights: str | None
    card: WeightsCard | None = None


Space = SpaceInfo | str
"""How a feature space is named: by itself, by its key or its beginning, or by the name of its embedder."""


class FeatureStore:
    """A store of features. Use `open` to read, `create` to open or make one.

    A feature space may be given as its `SpaceInfo`, its key, the beginning of its key, or the name of its embedder
    where only one space has that; a `StoreError` says what there is when none fits.

    Attributes:
        uri: where it is.
        records: its JSON records.
    """

    def __init__(self, records: Records, *, verify: Literal["once", "never"]) -> None:
        self.records = records
        self._verify = verify
        self.uri = records.uri

    @classmethod
    def open(cls, uri: str | Path, *, verify: Literal["once", "never"] = "once") -> Self:
        """Opens a store.

        Args:
            uri: a directory, or s3://bucket/prefix.
            verify: "once" compares each chunk file with its checksum the first time a process maps it.

        Raises:
            StoreError: there is no store.
            SchemaVersionError: it has another schema.
            ConfigError: the URI is of no kind that is known, or the environment does not fit it.
            StoreUnreachableError: its server does not answer, or refuses us.
        """
        exists = is_remote(uri) or Path(str(uri).removeprefix("file://")).is_dir()
        records = open_records(uri) if exists else None
        data = records.get(STORE_RECORD) if records else None
        if records is None or data is None:
            raise StoreError(
                f"{uri} is not a feature store (no {STORE_RECORD}); make one with `her2cache embed --store`"
            )
        check_schema(parse_json(data, f"{uri}/{STORE_RECORD}"), f"{uri}/{STORE_RECORD}")
        return cls(records, verify=verify)

    @classmethod
    def create(cls, uri: str | Path, *, verify: Literal["once", "never"] = "once") -> Self:
        """Opens a store, making it first where there is none.

        Raises:
            StoreError: nothing can be written there, or its server cannot tell two writers apart.
        """
        records, data = open_records(uri), (json.dumps(asdict(StoreRecord())) + "\n").encode()
        records.put_new(STORE_RECORD, data)
        records.require_exclusive(STORE_RECORD, data)
        return cls.open(uri, verify=verify)

    # -- spaces

    def add_space(self, space: FeatureSpace, *, weights: str | None = None, card: WeightsCard | None = None) -> str:
        """Records a feature space, or adds to its record what was not known of its weights.

        Files of the same tensors may say different things. All labels that any of them has seen count: a card's
        cases are added to those of the record that is there.

        Args:
            space: what it is.
            weights: where the embedder's weights were read from.
            card: what their file says of itself.

        Returns:
            The space key.

        Raises:
            CorruptFeaturesError: the record that is there is damaged.
        """
        key, path = space.key, space_path(space.key)
        if self.records.put_new(path, _space_record(space, weights, card)) or card is None:
            return key
        there = self._space(key)
        if there.card is None:
            self.records.put(path, _space_record(space, weights, card))
        elif unseen := set(card.case_ids) - set(there.card.case_ids):
            cases = tuple(sorted({*there.card.case_ids, *unseen}))
            self.records.put(path, _space_record(space, there.weights, replace(there.card, case_ids=cases)))
        return key

    def spaces(self) -> list[SpaceInfo]:
        """The feature spaces, by name then key."""
        paths = self.records.list("spaces")
        found = [
            self._parsed(Path(path).stem, data) for path, data in zip(paths, self.records.get_each(paths), strict=True)
        ]
        return sorted(found, key=lambda space: (space.name, space.key))

    def find_space(self, name_or_key: str, *, views: int | None = None) -> SpaceInfo:
        """The feature space with an embedder's name, or a key or its beginning.

        Args:
            name_or_key: which.
            views: number of views it must hold; any by default.

        Raises:
            StoreError: none fits, or several do.
        """
        spaces = self.spaces()
        named = _called(spaces, name_or_key)
        fits = [s for s in named if views in {None, s.views}]
        if len(fits) == 1:
            return fits[0]
        if named:
            keys = ", ".join(f"{s.key[:12]} (views: {s.views})" for s in fits or named)
            if not fits:
                raise StoreError(
                    f"{self.uri} holds {name_or_key!r}, but not with views = {views}: {keys}; say the views that it"
                    f" has, or run `her2cache embed --views {views}`"
                )
            raise StoreError(
                f"{self.uri}: {len(fits)} feature spaces are called {name_or_key!r}; name one by its key: {keys}"
            )
        known = ", ".join(f"{s.name} ({s.key[:12]})" for s in spaces) or "none yet"
        raise StoreError(f"{self.uri} has no feature space {name_or_key!r}, only: {known}; run `her2cache embed` first")

    def spaces_called(self, name_or_key: str, *, views: int | None = None) -> list[SpaceInfo]:
        """Every feature space that `find_space` would have to choose from; perhaps none."""
        return [s for s in _called(self.spaces(), name_or_key) if views in {None, s.views}]

    def _space(self, key: str) -> SpaceInfo:
        return self._parsed(key, self.records.get(space_path(key)))

    def _parsed(self, key: str, data: bytes | None) -> SpaceInfo:
        path = f"{self.uri}/{space_path(key)}"
        record = parse_json(data or b"", path)
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
                card=WeightsCard.of(record["card"]) if record.get("card") else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(path, error) from error

    # -- slides

    def slides(self, space: Space) -> list[str]:
        """Ids of the slides committed in a space, sorted."""
        return sorted(decode_slide_id(Path(path).stem) for path in self.records.list(f"commits/{self._key(space)}"))

    def has(self, slide_id: str, space: Space) -> bool:
        """Whether a slide is committed in a space."""
        return self.records.get(commit_path(slide_id, self._key(space))) is not None

    def record(self, slide_id: str, space: Space) -> CommitRecord:
        """The commit record of a slide: counts, digest, and where the features came from.

        Raises:
            IncompleteSlideError: it is not committed.
            CorruptFeaturesError: the record is damaged.
        """
        (record,) = self.committed(space, [slide_id])
        return record

    def committed(self, space: Space, slides: Iterable[str] | None = None) -> list[CommitRecord]:
        """The commit records of many slides: of a store in a bucket, many requests are under way at once.

        Args:
            space: which.
            slides: which of its slides; all by default, sorted.

        Raises:
            IncompleteSlideError: one is not committed.
            CorruptFeaturesError: a record is damaged.
        """
        found = self.committed_each(space, slides).values()
        for record in found:
            if isinstance(record, StoreError):
                raise record
        return [record for record in found if isinstance(record, CommitRecord)]

    def committed_each(self, space: Space, slides: Iterable[str] | None = None) -> dict[str, CommitRecord | StoreError]:
        """Like `committed`, with the error of each slide in the place of its record."""
        key = self._key(space)
        chosen = list(self.slides(key) if slides is None else slides)
        paths = [commit_path(slide_id, key) for slide_id in chosen]
        found: dict[str, CommitRecord | StoreError] = {}
        for slide_id, path, data in zip(chosen, paths, self.records.get_each(paths), strict=True):
            try:
                if data is None:
                    raise IncompleteSlideError(
                        f"slide {slide_id!r} has no features in space {key[:12]} of {self.uri}: it was not embedded,"
                        " or failed (see failures/); run `her2cache embed`"
                    )
                found[slide_id] = CommitRecord.from_json(data, f"{self.uri}/{path}")
            except StoreError as error:
                found[slide_id] = error
        return found

    def features(self, slide_id: str, space: Space, view: int = 0) -> NDArray[np.float16]:
        """Features of a slide, memory-mapped: processes of a machine share one page cache.

        An array holds a file descriptor for as long as it lives; for many slides at once see `maps`.

        Args:
            slide_id, space: which.
            view: 0 is the patch itself, higher ones are its augmented views.

        Returns:
            Read-only (n_patches, dim) in the space's dtype; row k belongs to row k of `coords`.

        Raises:
            IncompleteSlideError: the slide is not committed.
            CorruptFeaturesError: its bytes are not what was committed.
        """
        record = self.record(slide_id, space)
        if not 0 <= view < record.views:
            raise StoreError(
                f"slide {slide_id!r} has views 0 to {record.views - 1}, not {view}; embed with more --views"
            )
        return self._map(record, features_chunk(view), record.dim, record.dtype)  # pyright: ignore[reportReturnType]

    def coords(self, slide_id: str, space: Space) -> Coords:
        """Where the patches of a slide are, memory-mapped like its features.

        Returns:
            Level-0 (x, y) of each patch's corner, read-only int32 (n_patches, 2).

        Raises:
            IncompleteSlideError: the slide is not committed.
            CorruptFeaturesError: its bytes are not what was committed.
        """
        return self._map(self.record(slide_id, space), COORDS_CHUNK, 2, "int32")  # pyright: ignore[reportReturnType]

    def maps(self, space: Space, slides: Iterable[str] | None = None) -> SlideMaps:
        """Features of many slides, each mapped when it is asked for, with a bounded number of open files.

        Args:
            space: which.
            slides: which of its slides; all by default.

        Returns:
            slide_id -> its views -> read-only (n_patches, dim). Asking it for features raises
            `CorruptFeaturesError` where their bytes are not what was committed.

        Raises:
            IncompleteSlideError: a slide is not committed.
            CorruptFeaturesError: a commit record is damaged.
        """
        return SlideMaps(self.uri, self.committed(space, slides), verify=self._verify == "once")

    def _key(self, space: Space) -> str:
        if isinstance(space, SpaceInfo):
            return space.key
        return space if _SPACE_KEY.fullmatch(space) else self.find_space(space).key

    def _map(self, record: CommitRecord, chunk: str, columns: int, dtype: str) -> NDArray[np.generic]:
        path = f"{self.uri}/{attempt_path(record.slide_id, record.space_key, record.attempt)}/{chunk}"
        return open_map(path, record.n_patches, columns, dtype, verify=self._verify == "once")

    # -- writing

    def writer(self, shape: SlideShape) -> SlideWriter:
        """Starts an attempt at a slide."""
        return SlideWriter(self.records, shape)

    def add_failure(self, failure: FailureRecord) -> None:
        """Records why a slide has no features; the last reason counts."""
        self.records.put(failure_path(failure.slide_id, failure.space_key), failure.to_json())

    def failures(self, space: Space) -> Iterator[FailureRecord]:
        """The failures of a space, without those of slides that were committed meanwhile."""
        key = self._key(space)
        committed = set(self.slides(key))
        paths = self.records.list(f"failures/{key}")
        paths = [path for path in paths if decode_slide_id(Path(path).stem) not in committed]
        for path, data in zip(paths, self.records.get_each(paths), strict=True):
            if data is not None:
                yield FailureRecord.from_json(data, f"{self.uri}/{path}")


def open_records(uri: str | Path) -> Records:
    """The records of a store, which need not exist yet: in a directory, or in a bucket.

    Raises:
        ConfigError: the URI is of no kind that is known, or the environment does not fit it.
        StoreError: it cannot be a directory.
    """
    return Bucket(uri) if is_remote(uri) else Directory(uri)


def _space_record(space: FeatureSpace, weights: str | None, card: WeightsCard | None) -> bytes:
    record: dict[str, Any] = {"space": space.document(), "name": space.embedder.name, "weights": weights}
    if card is not None:
        record["card"] = card.document()
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()


def _called(spaces: Iterable[SpaceInfo], name_or_key: str) -> list[SpaceInfo]:
    by_key = len(name_or_key) >= 6
    return [s for s in spaces if s.name == name_or_key or (by_key and s.key.startswith(name_or_key))]
