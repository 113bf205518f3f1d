"""The feature store from outside and from below: what it keeps, what it refuses, what damage it notices."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from her2cache.embedder import EmbedderSpec, FeatureSpace
from her2cache.errors import (
    CohortError,
    CorruptFeaturesError,
    IncompleteSlideError,
    SchemaVersionError,
    StoreError,
)
from her2cache.store.chunks import compact, reserve
from her2cache.store.reader import FeatureStore
from her2cache.store.schema import FailureRecord, row_order
from her2cache.store.writer import SlideShape, SlideWriter
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset

DIM = 8


def space(name: str = "net", views: int = 1) -> FeatureSpace:
    spec = EmbedderSpec(name, DIM, 96, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), hashlib.sha256(name.encode()).hexdigest())
    return FeatureSpace(PatchSpec(), preset("HE"), spec, views=views)


def planned(n: int, side: int = 96) -> NDArray[np.int32]:
    """n patches in raster order on a grid 7 wide."""
    return np.stack([np.arange(n) % 7 * side, np.arange(n) // 7 * side], axis=1).astype(np.int32)


def drawn(n: int, views: int = 1, seed: int = 0) -> NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((views, n, DIM)).astype(np.float16)


def shape_of(slide_id: str, key: str, n: int, views: int = 1) -> SlideShape:
    return SlideShape(slide_id, key, planned(n), views, DIM, "float16", 96.0, {"path": "x.svs"})


def filled(
    store: FeatureStore,
    slide_id: str,
    key: str,
    n: int = 20,
    *,
    views: int = 1,
    failed: tuple[int, ...] = (),
    seed: int = 0,
) -> SlideWriter:
    writer = store.writer(shape_of(slide_id, key, n, views))
    ok = np.ones(n, np.bool_)
    ok[list(failed)] = False
    writer.write(0, drawn(n, views, seed), ok)
    return writer


def expected_order(slide_id: str, coords: NDArray[np.int32]) -> list[int]:
    """An independent transcription of: sorted by blake2b(slide_id, x, y)."""

    def rank(k: int) -> bytes:
        x, y = (int(v) for v in coords[k])
        return hashlib.blake2b(slide_id.encode() + b"\0" + struct.pack("<ii", x, y), digest_size=16).digest()

    return sorted(range(len(coords)), key=rank)


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def attempt_folder(store: FeatureStore, slide_id: str, key: str) -> Path:
    attempt = store.record(slide_id, key).attempt
    (found,) = Path(store.uri).glob(f"attempts/*/{key}/{attempt}")
    return found


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


def flip_bit(path: Path, byte: int = 11) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


class TestDamage:
    @pytest.mark.parametrize("chunk", ["features/c/0/0/0", "coords/c/0/0"])
    @pytest.mark.parametrize("damage", [flip_bit, cut, lengthen, Path.unlink, lambda p: p.write_bytes(b"")])
    def test_it_is_named_and_never_read(
        self, store: FeatureStore, key: str, chunk: str, damage: Callable[[Path], object]
    ) -> None:
        filled(store, "s", key).commit({})
        filled(store, "t", key).commit({})
        path = attempt_folder(store, "s", key) / chunk
        damage(path)
        read = store.features if chunk.startswith("features") else store.coords
        for _ in range(2):  # a failed check is not remembered as a good one
            with pytest.raises(CorruptFeaturesError) as caught:
                read("s", key)
            assert str(path) in str(caught.value)
        assert read("t", key).shape[0] == 20

    def test_a_flipped_bit_of_the_checksum(self, store: FeatureStore, key: str) -> None:
        filled(store, "s", key).commit({})
        path = attempt_folder(store, "s", key) / "features/c/0/0/0"
        flip_bit(path, byte=len(path.read_bytes()) - 1)
        with pytest.raises(CorruptFeaturesError, match="crc32c"):
            store.features("s", key)

    def test_a_commit_without_data(self, store: FeatureStore, key: str) -> None:
        writer = filled(store, "s", key)
        writer.commit({})
        folder = attempt_folder(store, "s", key)
        folder.rename(folder.with_name("gone"))
        with pytest.raises(CorruptFeaturesError, match=writer.attempt):
            store.features("s", key)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"schema": 1}', b"\xff\xfe"])
    def test_a_damaged_commit_record(self, store: FeatureStore, key: str, content: bytes) -> None:
        filled(store, "s", key).commit({})
        path = Path(store.uri) / f"commits/{key}/s.json"
        path.write_bytes(content)
        with pytest.raises(CorruptFeaturesError) as caught:
            store.features("s", key)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"space": {}, "name": "x"}', b"[1]"])
    def test_a_damaged_space_record(self, store: FeatureStore, key: str, content: bytes) -> None:
        path = Path(store.uri) / f"spaces/{key}.json"
        path.write_bytes(content)
        with pytest.raises(CorruptFeaturesError) as caught:
            store.spaces()
        assert str(path) in str(caught.value)

    def test_without_verification_the_checksum_is_not_read(self, store: FeatureStore, key: str) -> None:
        filled(store, "s", key).commit({})
        path = attempt_folder(store, "s", key) / "features/c/0/0/0"
        flip_bit(path)
        assert FeatureStore.open(store.uri, verify="never").features("s", key).shape == (20, DIM)
        with pytest.raises(CorruptFeaturesError, match="crc32c"):
            store.features("s", key)  # what was mapped unverified counts as unverified
        cut(path)  # the size is compared all the same
        with pytest.raises(CorruptFeaturesError):
            FeatureStore.open(store.uri, verify="never").features("s", key)
        with pytest.raises(CorruptFeaturesError):
            store.features("s", key)

    def test_the_checksum_is_compared_once_a_process_and_again_in_the_next(self, store: FeatureStore, key: str) -> None:
        filled(store, "s", key).commit({})
        before = store.features("s", key).copy()
        flip_bit(attempt_folder(store, "s", key) / "features/c/0/0/0")
        assert (FeatureStore.open(store.uri).features("s", key) != before).any()
        code = (
            "import sys; from her2cache.store.reader import FeatureStore;"
            " FeatureStore.open(sys.argv[1]).features('s', sys.argv[2])"
        )
        run = subprocess.run([sys.executable, "-c", code, store.uri, key], capture_output=True, text=True, check=False)
        assert run.returncode != 0
        assert "CorruptFeaturesError" in run.stderr


class TestStore:
    def test_creating_twice_is_opening(self, store: FeatureStore, key: str) -> None:
        filled(store, "s", key).commit({})
        before = files_under(Path(store.uri))
        assert FeatureStore.create(store.uri).slides(key) == ["s"]
        FeatureStore.create(store.uri).add_space(space(), weights="another.pth")
        assert files_under(Path(store.uri)) == before

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
        with pytest.raises(StoreError, match="directory"):
            FeatureStore.create("s3://bucket/prefix")
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


class TestFullDisk:
    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A file system of 2 MB."""
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
        try:
            mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if mounted.returncode:
            pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
        yield folder
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # maps may still be open

    def test_no_room_for_the_features(self, small_disk: Path) -> None:
        store = FeatureStore.create(small_disk / "store")
        key = store.add_space(space())
        filled(store, "small", key).commit({})
        before = files_under(small_disk)
        with pytest.raises(StoreError, match="is full: 3 MB are needed"):
            store.writer(shape_of("large", key, 200_000))
        assert files_under(small_disk) == before
        assert store.features("small", key).shape == (20, DIM)

    @pytest.mark.parametrize("left", [0, 4096, 8192, 12288, 16384, 20480, 24576, 28672])
    def test_no_room_for_the_rest(self, small_disk: Path, left: int) -> None:
        """Wherever the last bytes run out: in the coordinates, in the metadata, in the commit record."""
        store = FeatureStore.create(small_disk / "store")
        key = store.add_space(space())
        filled(store, "first", key).commit({})
        writer = filled(store, "s", key, n=200, failed=(3,))
        with (small_disk / "filler").open("wb") as filler:
            free = os.statvfs(small_disk)
            os.posix_fallocate(filler.fileno(), 0, max(1, free.f_bavail * free.f_bsize - left))
        outcome, message = None, "No space left"
        try:
            outcome = writer.commit({})
        except StoreError as error:
            message = str(error)
            writer.discard()
            assert [p for p in files_under(small_disk / "store/attempts") if p.startswith("s/")] == []
        assert "No space left" in message or "is full" in message
        assert "\n" not in message
        assert store.slides(key) == (["first", "s"] if outcome else ["first"])
        for slide_id in store.slides(key):
            store.features(slide_id, key)
            store.coords(slide_id, key)
        (small_disk / "filler").unlink()
        assert filled(store, "s", key, n=200).commit({}) == ("lost" if outcome else "committed")
        assert store.slides(key) == ["first", "s"]


class TestRecords:
    def test_a_record_is_on_disk_before_it_has_its_name(
        self, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the kernel is told: the bytes are flushed, then linked, then the folders above are flushed."""
        told: list[tuple[str, str]] = []
        fsync, link = os.fsync, os.link

        def watched_fsync(descriptor: int) -> None:
            target = Path(f"/proc/self/fd/{descriptor}").readlink()
            told.append(("fsync", str(target.relative_to(store.uri))))
            fsync(descriptor)

        def watched_link(source: Path, target: Path) -> None:
            told.append(("link", str(target.relative_to(store.uri))))
            link(source, target)

        monkeypatch.setattr(os, "fsync", watched_fsync)
        monkeypatch.setattr(os, "link", watched_link)
        assert store.records.put_new("commits/k/s.json", b"{}")
        (first, staged), *rest = told
        assert first == "fsync"
        assert staged.startswith("commits/k/s.json#")
        assert rest == [("link", "commits/k/s.json"), ("fsync", "commits/k"), ("fsync", "commits"), ("fsync", ".")]
        assert list(files_under(Path(store.uri) / "commits")) == ["k/s.json"]

    def test_of_many_writers_at_once_one_wins_and_its_bytes_are_whole(self, store: FeatureStore) -> None:
        with ThreadPoolExecutor(8) as pool:
            for k in range(20):
                contents = [bytes([writer]) * 100_000 for writer in range(8)]
                won = list(pool.map(lambda data, k=k: store.records.put_new(f"x/{k}.json", data), contents))
                assert won.count(True) == 1
                assert store.records.get(f"x/{k}.json") == contents[won.index(True)]
        assert store.records.list("x") == sorted(f"x/{k}.json" for k in range(20))
        assert list(store.records.staged()) == []

    def test_a_record_that_was_never_linked_is_invisible(self, store: FeatureStore, key: str) -> None:
        filled(store, "s", key).commit({})
        (staged,) = [Path(store.uri) / f"commits/{key}/t.json#{2**127}"]
        staged.write_bytes(b"{")
        assert store.slides(key) == ["s"]
        assert list(store.records.staged()) == [staged]

    def test_putting_replaces_whole(self, store: FeatureStore) -> None:
        store.records.put("x/a.json", b"long" * 100)
        store.records.put("x/a.json", b"short")
        assert store.records.get("x/a.json") == b"short"
        assert list(store.records.staged()) == []


_WRITER = """
import sys
import numpy as np
from her2cache.store.reader import FeatureStore
from tests.her2cache.test_store import drawn, shape_of
store, key = FeatureStore.open(sys.argv[1]), sys.argv[2]
for line in sys.stdin:
    slide_id, n = line.split()[0], int(line.split()[1])
    writer = store.writer(shape_of(slide_id, key, n))
    writer.write(0, drawn(n, seed=7)[:, : n // 2], np.ones(n // 2, np.bool_))
    print("half", flush=True)
    sys.stdin.readline()
    writer.write(n // 2, drawn(n, seed=7)[:, n // 2 :], np.ones(n - n // 2, np.bool_))
    print("commits", flush=True)
    print(writer.commit({"by": "the one that slept"}), flush=True)
"""


class TestSleepingWriter:
    """A real process, stopped with SIGSTOP while it writes or commits, and woken after another has committed."""

    N = 3000

    @pytest.fixture
    def sleeper(self, store: FeatureStore, key: str) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-c", _WRITER, store.uri, key]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        yield process
        process.kill()
        process.communicate()

    @staticmethod
    def tell(process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()

    @staticmethod
    def hear(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def test_it_changes_nothing(self, store: FeatureStore, key: str, sleeper: subprocess.Popen[str]) -> None:
        root, rng, outcomes = Path(store.uri), random.Random(0), list[str]()
        for k in range(12):
            slide_id = f"s{k}"
            self.tell(sleeper, f"{slide_id} {self.N}")
            assert self.hear(sleeper) == "half"
            if k >= 2:  # else it sleeps with half of its rows written
                self.tell(sleeper, "go on")
                assert self.hear(sleeper) == "commits"
                time.sleep(rng.uniform(0, 0.015))  # somewhere in the commit, mostly
            sleeper.send_signal(signal.SIGSTOP)
            ours = filled(store, slide_id, key, n=self.N, seed=k).commit({"by": "its replacement"})
            record = root / f"commits/{key}/{slide_id}.json"
            before, data = record.read_bytes(), files_under(attempt_folder(store, slide_id, key))
            sleeper.send_signal(signal.SIGCONT)
            if k < 2:
                self.tell(sleeper, "go on")
                assert self.hear(sleeper) == "commits"
            theirs = self.hear(sleeper)
            assert {ours, theirs} == {"committed", "lost"}
            assert record.read_bytes() == before
            assert files_under(attempt_folder(store, slide_id, key)) == data
            assert [p.name for p in (root / "attempts" / slide_id / key).iterdir()] == [
                json.loads(before)["attempt"]  # the loser took its attempt away
            ]
            seed = k if ours == "committed" else 7
            expected = drawn(self.N, seed=seed)[0, expected_order(slide_id, planned(self.N))]
            np.testing.assert_array_equal(store.features(slide_id, key), expected)
            outcomes.append(theirs)
        assert outcomes[:2] == ["lost", "lost"]
        assert list(store.records.staged()) == []


class TestChunks:
    def test_compacting_moves_blocks_over_themselves(self, tmp_path: Path) -> None:
        """More rows than one block of the copy holds, so that targets overlap sources."""
        n, columns = 70_000, 200  # 28 MB in float16; a block has 8
        mapped = reserve(tmp_path / "chunk", n, columns, "float16")
        rows = np.arange(n) % 2048
        mapped[:] = rows[:, None]
        keep = np.random.default_rng(0).random(n) > 0.1
        assert compact(mapped, keep) == keep.sum()
        np.testing.assert_array_equal(mapped[: keep.sum(), 0], rows[keep])
        np.testing.assert_array_equal(mapped[: keep.sum(), -1], rows[keep])

    def test_a_reservation_takes_the_space_at_once(self, tmp_path: Path) -> None:
        reserve(tmp_path / "chunk", 1000, 1000, "float16")
        status = (tmp_path / "chunk").stat()
        assert status.st_size == 2_000_004
        assert status.st_blocks * 512 >= 2_000_004
