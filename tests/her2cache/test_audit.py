"""Verify names every kind of damage; garbage collection takes only what no commit names."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from her2cache.errors import IncompleteSlideError, StoreError
from her2cache.store.audit import collect_garbage, retire, verify
from her2cache.store.reader import FeatureStore
from her2cache.store.schema import attempt_path, commit_path
from tests.planted import planted_store

SLIDES = 4


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    planted_store(tmp_path, {"a": 1.0, "b": 2.0}, SLIDES)
    return FeatureStore.open(tmp_path / "store")


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


Damage = Callable[[Path], None]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda a: flip(a / "features/c/0/0/0", 17), "features/c/0/0/0"),
        (lambda a: flip(a / "features/c/1/0/0", 17), "features/c/1/0/0"),
        (lambda a: flip(a / "coords/c/0/0", 3), "coords/c/0/0"),
        (lambda a: (a / "features/c/1/0/0").unlink(), "features/c/1/0/0 is gone"),
        (lambda a: os.truncate(a / "features/c/0/0/0", 100), "has 100 bytes"),
        (lambda a: (a / "features/zarr.json").write_text("{}"), "Zarr metadata"),
        (lambda a: a.rename(a.with_name("moved")), "without data"),
    ],
    ids=["flipped", "flipped view", "flipped coords", "missing", "truncated", "metadata", "no data"],
)
def test_damage_is_found_and_named_and_nothing_else_is(store: FeatureStore, damage: Damage, said: str) -> None:
    damage(attempt(store, "s02"))
    bad = [c for c in verify(store.records) if c.problem]
    assert [(c.slide_id, c.space_key) for c in bad] == [("s02", store.find_space("a").key)]
    assert said in bad[0].problem


def test_both_bytes_and_checksum_forged_are_found_by_the_digest(store: FeatureStore) -> None:
    folder, other = attempt(store, "s02"), attempt(store, "s03")
    (folder / "features/c/0/0/0").write_bytes((other / "features/c/0/0/0").read_bytes())
    (bad,) = [c for c in verify(store.records) if c.problem]
    assert "not those committed" in bad.problem


def test_an_unreadable_record_is_a_finding(store: FeatureStore) -> None:
    key = store.find_space("a").key
    (store.records.root / commit_path("s01", key)).write_text("{")
    (bad,) = [c for c in verify(store.records) if c.problem]
    assert (bad.slide_id, bad.space_key) == ("s01", key)
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
