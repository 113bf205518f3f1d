"""The records of a store and where they lie. Pure: no file is touched here.

store.json                                     schema version
spaces/<space_key>.json                        the feature space
attempts/<slide_id>/<space_key>/<uuid>/        one Zarr group, one writer
commits/<space_key>/<slide_id>.json            written once; names the attempt
failures/<space_key>/<slide_id>.json           why a slide has no features
"""

from __future__ import annotations

import builtins
import hashlib
import json
import struct
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from her2cache.embedder import SCHEMA
from her2cache.errors import CorruptFeaturesError, SchemaVersionError
from her2cache.ids import encode_slide_id
from her2cache.units import Coords

STORE_RECORD = "store.json"

COORDS_CHUNK = "coords/c/0/0"
"""Path of the coordinates within an attempt."""

T = TypeVar("T")


def space_path(space_key: str) -> str:
    return f"spaces/{space_key}.json"


def attempt_path(slide_id: str, space_key: str, attempt: str) -> str:
    return f"attempts/{encode_slide_id(slide_id)}/{space_key}/{attempt}"


def commit_path(slide_id: str, space_key: str) -> str:
    return f"commits/{space_key}/{encode_slide_id(slide_id)}.json"


def failure_path(slide_id: str, space_key: str) -> str:
    return f"failures/{space_key}/{encode_slide_id(slide_id)}.json"


def features_chunk(view: int) -> str:
    """Path of the chunk of a view within an attempt."""
    return f"features/c/{view}/0/0"


@dataclass(frozen=True)
class StoreRecord:
    """store.json: says that a folder is a store, and in which schema."""

    schema: int = SCHEMA
    format: str = "her2cache"


@dataclass(frozen=True)
class CommitRecord:
    """The one record that makes a slide's features exist.

    Attributes:
        space_key, slide_id: what was embedded.
        attempt: uuid of the folder that holds the arrays.
        digest: sha256 of coords and features, hex.
        n_patches, views, dim, dtype: of the features, (views, n_patches, dim).
        n_planned: eligible patches; n_planned - n_patches could not be decoded.
        patch_level0_px: side of a patch in level-0 px.
        slide: path, bytes, sha256, reader, width, height, mpp, mpp_source, and how it was read.
        made: versions, device and batching of the writer, and when.
    """

    space_key: str
    slide_id: str
    attempt: str
    digest: str
    n_patches: int
    views: int
    dim: int
    dtype: str
    n_planned: int
    patch_level0_px: float
    slide: dict[str, Any]
    made: dict[str, Any]
    schema: int = SCHEMA

    @property
    def bytes(self) -> int:
        """Size of the features and coords, without checksums."""
        return self.n_patches * (self.views * self.dim * np.dtype(self.dtype).itemsize + 2 * 4)

    def to_json(self) -> builtins.bytes:
        return _dump(asdict(self))

    @classmethod
    def from_json(cls, data: builtins.bytes, path: str) -> Self:
        """Parses a commit record.

        Raises:
            CorruptFeaturesError: the record is not readable.
            SchemaVersionError: it was written in another schema.
        """
        return _parse(cls, data, path)


@dataclass(frozen=True)
class FailureRecord:
    """Why a slide has no features in a space.

    Attributes:
        space_key, slide_id: what was tried.
        error: name of the exception.
        reason: its message.
        traceback: last lines of it.
        attempts: how often it was tried.
        at: when, ISO 8601 UTC.
    """

    space_key: str
    slide_id: str
    error: str
    reason: str
    traceback: str
    attempts: int
    at: str
    schema: int = SCHEMA

    def to_json(self) -> bytes:
        return _dump(asdict(self))

    @classmethod
    def from_json(cls, data: bytes, path: str) -> Self:
        return _parse(cls, data, path)


def row_order(slide_id: str, coords: Coords) -> NDArray[np.int64]:
    """The order in which a slide's rows are stored: by blake2b(slide_id, x, y).

    A fixed random order: every prefix is a uniform sample of the slide, and leaving a patch out keeps it.

    Args:
        slide_id: of the slide.
        coords: int32 (n, 2), level-0 (x, y).

    Returns:
        Permutation: row k of the store is patch `order[k]` of `coords`; int64 (n,).
    """
    begun = hashlib.blake2b(slide_id.encode() + b"\0", digest_size=16)
    digests: list[bytes] = []
    for (xy,) in struct.iter_unpack("8s", np.ascontiguousarray(coords, "<i4").tobytes()):
        digest = begun.copy()
        digest.update(xy)
        digests.append(digest.digest())
    keys = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2).astype(np.uint64)  # (n, 2), most significant first
    return np.lexsort((keys[:, 1], keys[:, 0]))


def zarr_documents(
    slide_id: str, space_key: str, n_patches: int, views: int, dim: int, dtype: str
) -> dict[str, dict[str, Any]]:
    """The Zarr v3 metadata of an attempt: path within it -> document, as the specification has them.

    Each array has one uncompressed chunk, or one a view, that ends in its crc32c.
    """
    return {
        "zarr.json": {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {"slide_id": slide_id, "space_key": space_key},
        },
        "coords/zarr.json": _zarr_array([n_patches, 2], [n_patches, 2], "int32", 0),
        "features/zarr.json": _zarr_array([views, n_patches, dim], [1, n_patches, dim], dtype, "NaN"),
    }


def _zarr_array(shape: list[int], chunk: list[int], dtype: str, fill: float | str) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "attributes": {},
        "storage_transformers": [],
    }


def check_schema(document: dict[str, Any], path: str) -> None:
    """Refuses a record of another schema.

    Raises:
        SchemaVersionError: the schema is not this version's.
    """
    if document.get("schema") != SCHEMA:
        raise SchemaVersionError(
            f"{path} has schema {document.get('schema')!r}, this her2cache reads {SCHEMA}: another version wrote the"
            " store; use that version, or embed into a new store"
        )


def _dump(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def _parse(kind: type[T], data: bytes, path: str) -> T:
    document = parse_json(data, path)
    check_schema(document, path)
    try:
        return kind(**{f.name: document[f.name] for f in fields(kind)})  # pyright: ignore[reportArgumentType]
    except KeyError as error:
        raise unreadable(path, error) from error


def parse_json(data: bytes, path: str) -> dict[str, Any]:
    """The JSON object in a record.

    Raises:
        CorruptFeaturesError: there is none.
    """
    try:
        document = json.loads(data)
    except ValueError as error:
        raise unreadable(path, error) from error
    if not isinstance(document, dict):
        raise unreadable(path, TypeError(f"{type(document).__name__} instead of an object"))
    return cast("dict[str, Any]", document)


def unreadable(path: str, error: Exception) -> CorruptFeaturesError:
    """The error that a damaged record is."""
    return CorruptFeaturesError(
        f"{path} is not a readable record ({type(error).__name__}: {error}): it was damaged; run `her2cache store"
        " verify`, and embed the slide again"
    )
