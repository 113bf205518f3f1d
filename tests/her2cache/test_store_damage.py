"""What goes wrong below a store: damaged files, full disks, half-written records, writers that sleep."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from her2cache.errors import (
    CorruptFeaturesError,
    StoreError,
)
from her2cache.store.chunks import compact, reserve
from her2cache.store.reader import FeatureStore
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
from tests.stores import drawn, shape_of
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
