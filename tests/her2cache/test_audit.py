"""Verify names every kind of damage; garbage collection takes only what no commit names."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from her2cache.errors import IncompleteSlideError, StoreError
from her2cache.store.audit import collect_garbage, retire, verify
from her2cache.store.reader import FeatureStore
from her2cache.store.schema import attempt_path, commit_path, space_path
from tests.planted import planted_store

SLIDES = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    planted_store(folder, {"a": 1.0, "b": 2.0}, SLIDES)
    return folder / "store"


@pytest.fixture
def store(made: Path, tmp_path: Path) -> FeatureStore:
    return FeatureStore.open(shutil.copytree(made, tmp_path / "store"))


def attempt(store: FeatureStore, slide_id: str, name: str = "a") -> Path:
    key = store.find_space(name).key
    return store.records.root / attempt_path(slide_id, key, store.record(slide_id, key).attempt)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_whole_store_has_no_problem_and_progress_is_told(store: FeatureStore) -> None:
    seen: list[tuple[int, int]] = []
    checked = verify(store.records, lambda done, total: seen.append((done, total)))
    assert [c.problem for c in checked] == [""] * 2 * SLIDES
    assert seen == [(k + 1, 2 * SLIDES) for k in range(2 * SLIDES)]
    assert {c.n_patches for c in checked} == {60}


def test_slides_are_checked_side_by_side(store: FeatureStore) -> None:
    """Whoever watches the results sees more than one thread at work."""
    seen: set[str] = set()

    def watch(_done: int, _total: int) -> None:
        seen.update(t.name for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor"))

    verify(store.records, watch, threads=3)
    assert len(seen) > 1


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


Damage = Callable[[Path], object]
CHUNKS = ("coords/c/0/0", "features/c/0/0/0", "features/c/1/0/0")


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: flip(p, 17), "does not match its crc32c"),
        (lambda p: flip(p, -1), "does not match its crc32c"),
        (Path.unlink, "is gone"),
        (lambda p: os.truncate(p, 100), "has 100 bytes instead of"),
        (lambda p: os.truncate(p, 0), "has 0 bytes instead of"),
        (lambda p: p.write_bytes(p.read_bytes() + b"more"), "has"),
    ],
    ids=["bit", "bit of the checksum", "missing", "truncated", "empty", "grown"],
)
def test_every_damaged_chunk_is_named(store: FeatureStore, chunk: str, damage: Damage, said: str) -> None:
    damage(attempt(store, "s02") / chunk)
    bad = [c for c in verify(store.records) if c.problem]
    assert [(c.slide_id, c.space_key) for c in bad] == [("s02", store.find_space("a").key)]
    assert f"{chunk} {said}" in bad[0].problem
    assert not any(other in bad[0].problem for other in CHUNKS if other != chunk)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda a: a.rename(a.with_name("moved")), "without data"),
        (lambda a: (a / "zarr.json").unlink(), "/zarr.json: the Zarr metadata cannot be read"),
        (lambda a: edit(a / "zarr.json", attributes={"slide_id": "s01"}), "attributes is {'slide_id': 's01'}"),
        (lambda a: (a / "features/zarr.json").write_text("{}"), "features/zarr.json: the Zarr metadata is damaged"),
        (lambda a: (a / "features/zarr.json").write_text("{"), "features/zarr.json: the Zarr metadata is damaged"),
        (lambda a: (a / "coords/zarr.json").write_bytes(b"\xff"), "coords/zarr.json: the Zarr metadata is damaged"),
        (lambda a: edit(a / "coords/zarr.json", shape=[59, 2]), "shape is [59, 2] instead of [60, 2]"),
        (lambda a: edit(a / "features/zarr.json", data_type="int16"), "data_type is int16 instead of float16"),
        (lambda a: edit(a / "features/zarr.json", fill_value=0), "fill_value is 0 instead of NaN"),
        (lambda a: edit(a / "features/zarr.json", codecs=[{"name": "bytes"}]), "codecs"),
        (lambda a: edit(a / "features/zarr.json", chunk_grid={}), "chunk_grid"),
    ],
)
def test_damage_beside_the_chunks_is_named(store: FeatureStore, damage: Damage, said: str) -> None:
    damage(attempt(store, "s02"))
    bad = [c for c in verify(store.records) if c.problem]
    assert [(c.slide_id, c.space_key) for c in bad] == [("s02", store.find_space("a").key)]
    assert said in bad[0].problem


def test_all_damage_of_a_slide_is_named_at_once(store: FeatureStore) -> None:
    folder = attempt(store, "s02")
    flip(folder / CHUNKS[0], 1)
    (folder / CHUNKS[1]).unlink()
    os.truncate(folder / CHUNKS[2], 10)
    (bad,) = [c for c in verify(store.records) if c.problem]
    assert all(chunk in bad.problem for chunk in CHUNKS)


def test_a_damaged_space_is_named(store: FeatureStore) -> None:
    keys = {name: store.find_space(name).key for name in ("a", "b")}
    path = store.records.root / space_path(keys["a"])
    record = json.loads(path.read_text())
    for content, said in (
        ("{", "is not a readable record"),
        ("{}", "is not a readable record"),
        (json.dumps(record | {"space": record["space"] | {"views": 3}}), "holds another feature space"),
    ):
        path.write_text(content)
        (bad,) = [c for c in verify(store.records) if c.problem]
        assert (bad.space_key, bad.slide_id) == (keys["a"], "")
        assert said in bad.problem
    path.unlink()
    (bad,) = [c for c in verify(store.records) if c.problem]
    assert f"spaces/{keys['a']}.json is gone" in bad.problem


def test_both_bytes_and_checksum_forged_are_found_by_the_digest(store: FeatureStore) -> None:
    folder, other = attempt(store, "s02"), attempt(store, "s03")
    (folder / "features/c/0/0/0").write_bytes((other / "features/c/0/0/0").read_bytes())
    (bad,) = [c for c in verify(store.records) if c.problem]
    assert "not those committed" in bad.problem


@pytest.mark.parametrize("field", ["n_patches", "dim", "views", "dtype", "attempt"])
def test_a_record_of_nonsense_is_a_finding(store: FeatureStore, field: str) -> None:
    key = store.find_space("a").key
    edit(store.records.root / commit_path("s01", key), **{field: ["many"]})
    (bad,) = [c for c in verify(store.records) if c.problem]
    assert (bad.slide_id, bad.space_key) == ("s01", key)


def test_a_record_of_another_slide_is_a_finding(store: FeatureStore) -> None:
    key = store.find_space("a").key
    root = store.records.root
    (root / commit_path("s01", key)).write_bytes((root / commit_path("s02", key)).read_bytes())
    (bad,) = [c for c in verify(store.records) if c.problem]
    assert "says it is of slide 's02'" in bad.problem


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', "\0" * 100])
def test_an_unreadable_record_is_a_finding(store: FeatureStore, content: str) -> None:
    key = store.find_space("a").key
    (store.records.root / commit_path("s01", key)).write_text(content)
    (bad,) = [c for c in verify(store.records) if c.problem]
    assert (bad.slide_id, bad.space_key) == ("s01", key)
    assert f"commits/{key}/s01.json" in bad.problem
    with pytest.raises(StoreError, match="nothing was removed"):
        collect_garbage(store.records, older_than_s=0)


def test_retired_slides_are_gone_but_their_record_is_kept(store: FeatureStore) -> None:
    key = store.find_space("a").key
    record = store.records.get(commit_path("s00", key))
    retire(store.records, key, "s00")
    with pytest.raises(IncompleteSlideError):
        store.features("s00", key)
    (kept,) = store.records.list("retired")
    assert store.records.get(kept) == record
    assert store.has("s00", store.find_space("b").key)


def test_garbage_is_what_no_commit_names_and_nobody_writes_to(store: FeatureStore) -> None:
    key = store.find_space("a").key
    committed = attempt(store, "s00")
    orphan = committed.with_name("0" * 32)
    (orphan / "features/c/0/0").mkdir(parents=True)
    (orphan / "features/c/0/0/0").write_bytes(b"x" * 1000)
    assert collect_garbage(store.records, older_than_s=3600) == []
    assert orphan.exists()
    old = time.time() - 7200
    for path in (orphan, *orphan.rglob("*")):
        os.utime(path, (old, old))
    assert collect_garbage(store.records, older_than_s=3600, dry_run=True) == [(orphan, 1000)]
    assert orphan.exists()
    assert collect_garbage(store.records, older_than_s=3600) == [(orphan, 1000)]
    assert not orphan.exists()
    assert np.isfinite(store.features("s00", key)).all()
    assert not [c for c in verify(store.records) if c.problem]


def test_records_that_were_never_linked_are_garbage(store: FeatureStore) -> None:
    key = store.find_space("a").key
    staged = store.records.root / f"{commit_path('s09', key)}#123"
    staged.write_bytes(b"{")
    assert collect_garbage(store.records, older_than_s=3600) == []
    assert collect_garbage(store.records, older_than_s=0) == [(staged, 1)]
    assert not staged.exists()
    assert len(store.slides(key)) == SLIDES
