"""The feature store from outside: what it keeps and in which order, what a commit is, how spaces are named."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from her2cache.errors import (
    CohortError,
    ConfigError,
    IncompleteSlideError,
    SchemaVersionError,
    StoreError,
)
from her2cache.store.reader import FeatureStore
from her2cache.store.schema import FailureRecord, row_order
from tests.embedders import card
from tests.stores import (
    DIM,
    attempt_folder,
    drawn,
    expected_order,
    files_under,
    filled,
    flip_bit,
    planned,
    shape_of,
    space,
)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.create(tmp_path / "store")


@pytest.fixture
def key(store: FeatureStore) -> str:
    return store.add_space(space(), weights="w.pth")


class TestOneSlide:
    @pytest.mark.parametrize("views", [1, 3])
    def test_rows_are_the_planned_ones_in_hash_order_without_the_failed(self, store: FeatureStore, views: int) -> None:
        key = store.add_space(space(views=views))
        assert filled(store, "s", key, views=views, failed=(0, 7, 19)).commit({"by": "test"}) == "committed"
        order = [k for k in expected_order("s", planned(20)) if k not in {0, 7, 19}]
        for view in range(views):
            np.testing.assert_array_equal(store.features("s", key, view), drawn(20, views)[view, order])
        np.testing.assert_array_equal(store.coords("s", key), planned(20)[order])
        record = store.record("s", key)
        assert (record.n_planned, record.n_patches, record.views, record.dim) == (20, 17, views, DIM)
        assert record.made == {"by": "test"}
        assert record.slide == {"path": "x.svs"}
        assert store.slides(key) == ["s"]

    def test_zarr_itself_reads_it(self, store: FeatureStore) -> None:
        key = store.add_space(space(views=2))
        filled(store, "s", key, views=2, failed=(3,)).commit({})
        group = zarr.open_group(store=attempt_folder(store, "s", key), mode="r")
        features, coords = np.asarray(group["features"][:]), np.asarray(group["coords"][:])  # pyright: ignore[reportIndexIssue]
        assert (features.dtype, features.shape) == (np.dtype("float16"), (2, 19, DIM))
        assert coords.dtype == np.dtype("int32")
        np.testing.assert_array_equal(features, [store.features("s", key, 0), store.features("s", key, 1)])
        np.testing.assert_array_equal(coords, store.coords("s", key))
        assert dict(group.attrs) == {"slide_id": "s", "space_key": key}

    def test_zarr_finds_a_flipped_bit_and_never_takes_a_missing_chunk_for_zeros(
        self, store: FeatureStore, key: str
    ) -> None:
        filled(store, "s", key).commit({})
        folder = attempt_folder(store, "s", key)
        features = zarr.open_group(store=folder, mode="r")["features"]
        flip_bit(folder / "features/c/0/0/0")
        with pytest.raises(ValueError, match="checksum"):
            features[:]  # pyright: ignore[reportIndexIssue]
        (folder / "features/c/0/0/0").unlink()
        assert np.isnan(np.asarray(features[:])).all()  # pyright: ignore[reportIndexIssue]

    def test_the_digest_is_of_the_bytes_on_disk(self, store: FeatureStore) -> None:
        key = store.add_space(space(views=2))
        filled(store, "s", key, views=2, failed=(5, 6)).commit({})
        folder = attempt_folder(store, "s", key)
        bytes_of = [
            (folder / chunk).read_bytes()[:-4] for chunk in ("coords/c/0/0", "features/c/0/0/0", "features/c/1/0/0")
        ]
        assert [len(b) for b in bytes_of] == [18 * 2 * 4, 18 * DIM * 2, 18 * DIM * 2]
        assert store.record("s", key).digest == hashlib.sha256(b"".join(bytes_of)).hexdigest()

    def test_maps_are_read_only_and_files_hold_nothing_else(self, store: FeatureStore, key: str) -> None:
        filled(store, "s", key).commit({})
        assert not store.features("s", key).flags.writeable
        assert not store.coords("s", key).flags.writeable
        assert sorted(files_under(attempt_folder(store, "s", key))) == [
            "coords/c/0/0",
            "coords/zarr.json",
            "features/c/0/0/0",
            "features/zarr.json",
            "zarr.json",
        ]

    def test_views_beyond_those_stored_are_refused(self, store: FeatureStore, key: str) -> None:
        filled(store, "s", key).commit({})
        for view in (-1, 1):
            with pytest.raises(StoreError, match="views 0 to 0"):
                store.features("s", key, view)

    @pytest.mark.parametrize(
        "slide_id", ["a b", "a/b", "../../up", "ü漢", "100%", "a%20b", ".hidden", "x#1", "a.json", "A\\B:*?", "-"]
    )
    def test_any_id(self, store: FeatureStore, key: str, slide_id: str, tmp_path: Path) -> None:
        filled(store, slide_id, key).commit({})
        assert store.slides(key) == [slide_id]
        assert store.record(slide_id, key).slide_id == slide_id
        order = expected_order(slide_id, planned(20))
        np.testing.assert_array_equal(store.features(slide_id, key), drawn(20)[0, order])
        assert [p.name for p in tmp_path.iterdir()] == ["store"]  # nothing outside it

    @pytest.mark.parametrize("slide_id", ["", "x" * 201, "\ud800"])
    def test_ids_that_no_file_can_have_are_refused(self, store: FeatureStore, key: str, slide_id: str) -> None:
        with pytest.raises(CohortError):
            store.writer(shape_of(slide_id, key, 3))


class TestOrder:
    def test_it_is_pinned(self) -> None:
        """Bytes of every store depend on it: it may never change."""
        assert row_order("slide-1", planned(8)).tolist() == [6, 1, 7, 0, 3, 2, 5, 4]

    def test_two_slides_are_ordered_differently(self) -> None:
        assert row_order("a", planned(50)).tolist() != row_order("b", planned(50)).tolist()

    def test_every_prefix_is_a_uniform_sample(self) -> None:
        """A prefix of a slide 40 x 50 patches wide has as many of each quarter as chance gives it (5 sigma)."""
        x, y = np.meshgrid(np.arange(40), np.arange(50))
        coords = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32) * 96
        stored = coords[row_order("s", coords)]
        quarter = (stored[:, 0] >= 20 * 96) * 2 + (stored[:, 1] >= 25 * 96)
        for length in (64, 200, 500, 1000, 1900):
            share = np.bincount(quarter[:length], minlength=4) / length
            sigma = np.sqrt(0.25 * 0.75 / length * (1 - length / len(coords)))
            assert np.abs(share - 0.25).max() < 5 * sigma

    def test_no_patch(self) -> None:
        assert row_order("s", planned(0)).shape == (0,)


class TestCommit:
    def test_nothing_is_visible_before(self, store: FeatureStore, key: str) -> None:
        writer = filled(store, "s", key)
        assert store.slides(key) == []
        assert not store.has("s", key)
        for read in (store.record, store.features, store.coords):
            with pytest.raises(IncompleteSlideError, match="'s' has no features"):
                read("s", key)
        writer.commit({})
        assert store.has("s", key)

    def test_the_second_writer_loses_and_changes_nothing(self, store: FeatureStore, key: str) -> None:
        root = Path(store.uri)
        first, second = filled(store, "s", key, seed=1), filled(store, "s", key, seed=2)
        assert first.commit({"by": 1}) == "committed"
        before = files_under(root / "commits")
        data = files_under(attempt_folder(store, "s", key))
        assert second.commit({"by": 2}) == "lost"
        assert files_under(root / "commits") == before
        assert files_under(attempt_folder(store, "s", key)) == data
        assert [p.name for p in (root / "attempts/s" / key).iterdir()] == [first.attempt]
        np.testing.assert_array_equal(store.features("s", key), drawn(20, seed=1)[0, expected_order("s", planned(20))])

    def test_discarding_after_the_commit_keeps_the_slide(self, store: FeatureStore, key: str) -> None:
        writer = filled(store, "s", key)
        writer.commit({})
        writer.discard()
        assert store.features("s", key).shape == (20, DIM)

    def test_missing_rows_are_never_committed(self, store: FeatureStore, key: str) -> None:
        writer = store.writer(shape_of("s", key, 20))
        writer.write(0, drawn(19), np.ones(19, np.bool_))
        with pytest.raises(IncompleteSlideError, match="1 of 20 rows were never written"):
            writer.commit({})
        assert store.slides(key) == []
        writer.write(19, drawn(20)[:, 19:], np.ones(1, np.bool_))
        assert writer.commit({}) == "committed"

    def test_a_slide_without_a_single_good_patch_is_never_committed(self, store: FeatureStore, key: str) -> None:
        writer = filled(store, "s", key, n=3, failed=(0, 1, 2))
        with pytest.raises(IncompleteSlideError, match="none of its 3 patches"):
            writer.commit({})
        writer.discard()
        assert store.slides(key) == []
        assert files_under(Path(store.uri) / "attempts") == {}

    def test_discard_removes_the_attempt(self, store: FeatureStore, key: str) -> None:
        filled(store, "s", key).discard()
        assert files_under(Path(store.uri) / "attempts") == {}

    def test_the_same_rows_written_twice_are_there_once(self, store: FeatureStore, key: str) -> None:
        writer = filled(store, "s", key)
        writer.write(4, drawn(20)[:, 4:9], np.ones(5, np.bool_))
        writer.commit({})
        np.testing.assert_array_equal(store.features("s", key), drawn(20)[0, expected_order("s", planned(20))])

    def test_a_later_success_removes_the_failure(self, store: FeatureStore, key: str) -> None:
        store.add_failure(FailureRecord(key, "s", "DecodeError", "broken", "", 1, "2026-01-01"))
        store.add_failure(FailureRecord(key, "t", "DecodeError", "broken", "", 1, "2026-01-01"))
        filled(store, "s", key).commit({})
        assert [f.slide_id for f in store.failures(key)] == ["t"]
        assert sorted(files_under(Path(store.uri) / "failures")) == [f"{key}/t.json"]

    def test_a_failure_that_comes_after_the_commit_does_not_count(self, store: FeatureStore, key: str) -> None:
        filled(store, "s", key).commit({})
        store.add_failure(FailureRecord(key, "s", "SlideError", "died", "", 3, "2026-01-01"))
        assert list(store.failures(key)) == []

    def test_the_last_failure_counts(self, store: FeatureStore, key: str) -> None:
        for reason in ("first", "second"):
            store.add_failure(FailureRecord(key, "s", "E", reason, "", 1, "2026-01-01"))
        assert [f.reason for f in store.failures(key)] == ["second"]


class TestStore:
    def test_creating_twice_is_opening(self, store: FeatureStore, key: str) -> None:
        filled(store, "s", key).commit({})
        before = files_under(Path(store.uri))
        assert FeatureStore.create(store.uri).slides(key) == ["s"]
        FeatureStore.create(store.uri).add_space(space(), weights="another.pth")
        assert files_under(Path(store.uri)) == before

    def test_a_space_that_was_made_without_a_card_learns_it(self, store: FeatureStore, key: str) -> None:
        filled(store, "s", key).commit({})
        assert store.find_space(key).card is None
        said = card("ihc", case_ids=("c2", "c1"))
        assert store.add_space(space(), weights="said.safetensors", card=said) == key
        found = store.find_space(key)
        assert (found.card, found.weights) == (said, "said.safetensors")
        assert found.document == json.loads(json.dumps(space().document()))
        assert store.slides(key) == ["s"]
        store.add_space(space(), weights="w.pth")  # what is known stays known
        assert store.find_space(key) == found

    def test_the_cases_of_every_card_of_a_space_count(self, store: FeatureStore) -> None:
        first, second = card("ihc", case_ids=("c1", "c2")), card("ihc", case_ids=("c3", "c2"), data_digest="cd" * 32)
        key = store.add_space(space(), weights="a.safetensors", card=first)
        before = files_under(Path(store.uri))
        store.add_space(space(), weights="b.safetensors", card=card("ihc", case_ids=("c2",), data_digest="ef" * 32))
        assert files_under(Path(store.uri)) == before  # nothing new
        for said in (second, first):
            store.add_space(space(), weights="b.safetensors", card=said)
            found = store.find_space(key)
            assert (found.card, found.weights) == (replace(first, case_ids=("c1", "c2", "c3")), "a.safetensors")
        assert FeatureStore.open(store.uri).find_space(key) == found

    def test_a_damaged_space_record_is_not_written_over(self, store: FeatureStore, key: str) -> None:
        path = Path(store.uri) / f"spaces/{key}.json"
        path.write_bytes(b"{")
        with pytest.raises(StoreError, match=f"{key}.json is not a readable record"):
            store.add_space(space(), card=card("ihc"))
        assert path.read_bytes() == b"{"

    def test_a_file_url(self, store: FeatureStore) -> None:
        assert FeatureStore.open(f"file://{store.uri}").uri == store.uri

    def test_what_is_no_store(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        for path in (tmp_path, tmp_path / "gone", tmp_path / "file"):
            with pytest.raises(StoreError, match=f"{path} is not a feature store"):
                FeatureStore.open(path)
        assert [p.name for p in tmp_path.iterdir()] == ["file"]  # looking made nothing
        with pytest.raises(StoreError, match="is a file"):
            FeatureStore.create(tmp_path / "file")
        with pytest.raises(ConfigError, match="ftp:// is no kind of store"):
            FeatureStore.create("ftp://bucket/prefix")
        with pytest.raises(StoreError, match="cannot be made"):
            FeatureStore.create(tmp_path / "file" / "below")

    @pytest.mark.parametrize("schema", [0, 2, "1", None])
    def test_another_schema(self, store: FeatureStore, key: str, schema: Any) -> None:
        filled(store, "s", key).commit({})
        root = Path(store.uri)
        for path, read in (
            (root / f"commits/{key}/s.json", lambda: store.record("s", key)),
            (root / "store.json", lambda: FeatureStore.open(root)),
            (root / "store.json", lambda: FeatureStore.create(root)),
        ):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": schema}))
            with pytest.raises(SchemaVersionError, match="schema"):
                read()

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3"])
    def test_a_damaged_store_record(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "store.json").write_bytes(content)
        with pytest.raises(StoreError, match=r"store\.json"):
            FeatureStore.open(tmp_path)

    def test_spaces(self, store: FeatureStore) -> None:
        keys = [store.add_space(s, weights=w) for s, w in ((space("b", 2), "w.pth"), (space("a"), None))]
        found = store.spaces()
        assert [(s.name, s.key, s.views, s.dim, s.dtype, s.weights) for s in found] == [
            ("a", keys[1], 1, DIM, "float16", None),
            ("b", keys[0], 2, DIM, "float16", "w.pth"),
        ]
        assert found[1].document == json.loads(json.dumps(space("b", 2).document()))

    def test_finding_a_space(self, store: FeatureStore) -> None:
        one, two, other = (store.add_space(s) for s in (space("a"), space("a", 2), space("b")))
        assert store.find_space("b").key == other
        assert store.find_space(one[:6]).key == one
        assert store.find_space(two).key == two
        assert store.find_space("a", views=2).key == two
        with pytest.raises(StoreError, match="not with views = 3"):
            store.find_space("a", views=3)
        with pytest.raises(StoreError, match="2 feature spaces are called 'a'"):
            store.find_space("a")
        with pytest.raises(StoreError, match="2 feature spaces are called 'a'"):
            store.slides("a")
        for unknown in ("c", other[:5], "", other + "0"):
            with pytest.raises(StoreError, match="no feature space"):
                store.find_space(unknown)

    def test_spaces_keep_their_slides_apart(self, store: FeatureStore) -> None:
        one, two = store.add_space(space("a")), store.add_space(space("b"))
        filled(store, "s", one, seed=1).commit({})
        assert store.slides(two) == []
        filled(store, "s", two, seed=2).commit({})
        filled(store, "r", two).commit({})
        assert (store.slides(one), store.slides(two)) == (["s"], ["r", "s"])
        assert (store.features("s", one) != store.features("s", two)).any()
        np.testing.assert_array_equal(store.coords("s", one), store.coords("s", two))  # rows of spaces align

    def test_a_space_is_named_as_one_likes(self, store: FeatureStore) -> None:
        key = store.add_space(space("a"))
        filled(store, "s", key).commit({})
        store.add_failure(FailureRecord(key, "t", "DecodeError", "broken", "", 1, "2026-01-01"))
        for name in (key, key[:6], "a", store.find_space("a")):
            assert store.slides(name) == ["s"]
            assert store.has("s", name)
            assert store.record("s", name).space_key == key
            np.testing.assert_array_equal(store.features("s", name), store.features("s", key))
            np.testing.assert_array_equal(store.coords("s", name), store.coords("s", key))
            assert list(store.maps(name)) == ["s"]
            assert [f.slide_id for f in store.failures(name)] == ["t"]
        for read in (store.slides, store.maps, lambda name: store.features("s", name)):
            with pytest.raises(StoreError, match=r"no feature space 'b', only: a \("):
                read("b")
