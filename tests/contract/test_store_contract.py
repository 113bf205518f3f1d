"""What others may rely on in a store: its files, their JSON keys, and how bytes become a slide.

A store is shared and outlives versions of this code. A change that breaks one of these tests needs another
schema number.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from her2cache.embedder import EmbedderSpec, FeatureSpace
from her2cache.store.reader import FeatureStore
from her2cache.store.schema import FailureRecord
from her2cache.store.writer import SlideShape
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset

SLIDE_ID = "case 1/ü%.svs"
NAME = "case%201%2F%C3%BC%25.svs"
COORDS = np.array([[0, 0], [96, 0], [0, 192], [-96, 2**31 - 1], [480, 96]], np.int32)
FEATURES = np.arange(2 * 5 * 4).reshape(2, 5, 4).astype(np.float16)
OK = np.array([True, True, False, True, True])
SPACE = FeatureSpace(
    PatchSpec(), preset("HE"), EmbedderSpec("net", 4, 96, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "0" * 64), views=2
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    store = FeatureStore.create(tmp_path_factory.mktemp("contract") / "store")
    key = store.add_space(SPACE, weights="w.pth")
    slide = {"path": "/slides/x.svs", "sha256": "ab"}
    writer = store.writer(SlideShape(SLIDE_ID, key, COORDS, 2, 4, "float16", 96.5, slide))
    writer.write(3, FEATURES[:, 3:], OK[3:])
    writer.write(0, FEATURES[:, :3], OK[:3])
    assert writer.commit({"versions": {"torch": "9"}}) == "committed"
    store.add_failure(FailureRecord(key, "t", "DecodeError", "broken", "last lines", 3, "2026-01-01T00:00:00+00:00"))
    return store


def test_the_files_and_where_they_lie(store: FeatureStore) -> None:
    root, attempt = Path(store.uri), store.record(SLIDE_ID, SPACE.key).attempt
    folder = f"attempts/{NAME}/{SPACE.key}/{attempt}"
    assert sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) == sorted(
        [
            "store.json",
            f"spaces/{SPACE.key}.json",
            f"commits/{SPACE.key}/{NAME}.json",
            f"failures/{SPACE.key}/t.json",
            f"{folder}/zarr.json",
            f"{folder}/coords/zarr.json",
            f"{folder}/coords/c/0/0",
            f"{folder}/features/zarr.json",
            f"{folder}/features/c/0/0/0",
            f"{folder}/features/c/1/0/0",
        ]
    )
    assert re.fullmatch("[0-9a-f]{32}", attempt)
    assert re.fullmatch("[0-9a-f]{64}", SPACE.key)


def test_the_records(store: FeatureStore) -> None:
    root = Path(store.uri)
    assert json.loads((root / "store.json").read_text()) == {"format": "her2cache", "schema": 1}
    assert json.loads((root / f"spaces/{SPACE.key}.json").read_text()) == {
        "space": json.loads(json.dumps(SPACE.document())),
        "name": "net",
        "weights": "w.pth",
    }
    commit = json.loads((root / f"commits/{SPACE.key}/{NAME}.json").read_text())
    digest, attempt = commit.pop("digest"), commit.pop("attempt")
    assert commit == {
        "schema": 1,
        "slide_id": SLIDE_ID,
        "space_key": SPACE.key,
        "n_patches": 4,
        "n_planned": 5,
        "views": 2,
        "dim": 4,
        "dtype": "float16",
        "patch_level0_px": 96.5,
        "slide": {"path": "/slides/x.svs", "sha256": "ab"},
        "made": {"versions": {"torch": "9"}},
    }
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert (root / f"attempts/{NAME}/{SPACE.key}/{attempt}").is_dir()
    failure = json.loads((root / f"failures/{SPACE.key}/t.json").read_text())
    assert failure == {
        "schema": 1,
        "slide_id": "t",
        "space_key": SPACE.key,
        "error": "DecodeError",
        "reason": "broken",
        "traceback": "last lines",
        "attempts": 3,
        "at": "2026-01-01T00:00:00+00:00",
    }


def test_the_space_key_is_the_digest_of_its_record(store: FeatureStore) -> None:
    document = json.loads((Path(store.uri) / f"spaces/{SPACE.key}.json").read_text())["space"]

    def canonical(value: object) -> str:
        """Canonical JSON by hand: keys sorted, no blanks, whole numbers without a fraction."""
        if isinstance(value, dict):
            return "{" + ",".join(f"{json.dumps(k)}:{canonical(value[k])}" for k in sorted(value)) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(canonical, value)) + "]"
        if isinstance(value, float) and value == int(value):
            return str(int(value))
        return json.dumps(value)

    assert hashlib.sha256(canonical(document).encode()).hexdigest() == SPACE.key


def test_the_bytes(store: FeatureStore) -> None:
    """Chunk files from first principles: rows by blake2b of id and coordinates, little-endian, crc32c behind."""

    def rank(k: int) -> bytes:
        name = SLIDE_ID.encode() + b"\0" + struct.pack("<ii", *map(int, COORDS[k]))
        return hashlib.blake2b(name, digest_size=16).digest()

    rows = [k for k in sorted(range(5), key=rank) if OK[k]]
    coords = b"".join(struct.pack("<ii", *map(int, COORDS[k])) for k in rows)
    views = [b"".join(struct.pack("<e", float(v)) for k in rows for v in view[k]) for view in FEATURES]
    record = store.record(SLIDE_ID, SPACE.key)
    folder = Path(store.uri) / "attempts" / NAME / SPACE.key / record.attempt
    chunks = {"coords/c/0/0": coords, "features/c/0/0/0": views[0], "features/c/1/0/0": views[1]}
    for path, content in chunks.items():
        assert (folder / path).read_bytes() == content + struct.pack("<I", google_crc32c.value(content))
    assert record.digest == hashlib.sha256(coords + views[0] + views[1]).hexdigest()


def test_the_zarr_metadata(store: FeatureStore) -> None:
    folder = Path(store.uri) / "attempts" / NAME / SPACE.key / store.record(SLIDE_ID, SPACE.key).attempt
    features = json.loads((folder / "features/zarr.json").read_text())
    assert (features["zarr_format"], features["data_type"], features["shape"]) == (3, "float16", [2, 4, 4])
    assert features["chunk_grid"]["configuration"]["chunk_shape"] == [1, 4, 4]
    assert features["fill_value"] == "NaN"  # what is missing is never taken for a number
    assert [codec["name"] for codec in features["codecs"]] == ["bytes", "crc32c"]
    coords = json.loads((folder / "coords/zarr.json").read_text())
    assert (coords["data_type"], coords["shape"]) == ("int32", [4, 2])
    assert coords["chunk_grid"]["configuration"]["chunk_shape"] == [4, 2]
    group = json.loads((folder / "zarr.json").read_text())
    assert group["attributes"] == {"slide_id": SLIDE_ID, "space_key": SPACE.key}


def test_readers_follow_commit_records_only(store: FeatureStore) -> None:
    """Attempts that nothing names are invisible, whatever is in them."""
    root = Path(store.uri)
    for stray in (root / f"attempts/other/{SPACE.key}/0", root / f"attempts/{NAME}/{SPACE.key}/0"):
        stray.mkdir(parents=True)
        (stray / "zarr.json").write_text("nonsense")
    assert store.slides(SPACE.key) == [SLIDE_ID]
    assert [store.features(SLIDE_ID, SPACE.key, view).shape for view in (0, 1)] == [(4, 4), (4, 4)]
    assert [space.key for space in store.spaces()] == [SPACE.key]
