"""The node's cache: staged once, bounded, least recently used first, and nothing left by the killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2cache.errors import StoreError
from her2cache.store import cache as cache_module
from her2cache.store.cache import Cache

MEGABYTE = 1_000_000


def content(key: str, size: int = MEGABYTE) -> bytes:
    return (key.encode() * size)[:size]


def take(cache: Cache, key: str, size: int = MEGABYTE) -> bool:
    """Uses an entry; whether it had to be staged."""
    staged: list[Path] = []

    def fill(path: Path) -> None:
        staged.append(path)
        path.write_bytes(content(key, size))

    with cache.hold(key, size, fill) as path:
        assert path.read_bytes() == content(key, size)
    return bool(staged)


def taken(cache: Cache) -> int:
    return sum(file.stat().st_size for file in (cache.folder / "files").iterdir())


def test_staged_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert [take(cache, "a"), take(cache, "a"), take(Cache(tmp_path), "a"), take(cache, "b")] == [
        True,
        False,
        False,
        True,
    ]
    cache.drop("a")
    cache.drop("never there")
    assert [take(cache, "a"), take(cache, "b")] == [True, False]


def test_the_least_recently_used_leaves_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 3 * MEGABYTE)
    for key in "abcad":  # b is used least recently when d comes
        take(cache, key)
    assert [take(cache, key) for key in "acd"] == [False, False, False]
    assert taken(cache) <= 3 * MEGABYTE
    assert take(cache, "b")


@settings(max_examples=30, deadline=None)
@given(uses=st.lists(st.integers(0, 7), max_size=40), room=st.integers(1, 5))
def test_like_a_list_of_what_was_used(tmp_path_factory: pytest.TempPathFactory, uses: list[int], room: int) -> None:
    cache = Cache(tmp_path_factory.mktemp("cache"), room * 1000)
    kept: list[int] = []  # the last used at the end
    for use in uses:
        assert take(cache, str(use), 1000) == (use not in kept)
        kept = [*(k for k in kept if k != use), use][-room:]
        assert taken(cache) == 1000 * len(kept)


def test_what_is_held_stays_and_others_wait_for_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path, MEGABYTE)
    with ThreadPoolExecutor(1) as other:
        with cache.hold("a", MEGABYTE, lambda path: path.write_bytes(content("a"))) as path:
            waiting = other.submit(take, cache, "b")
            time.sleep(0.5)
            assert not waiting.done()
            assert path.read_bytes() == content("a")
        assert waiting.result(timeout=10)
    assert take(cache, "a")  # b took its room


def test_it_does_not_wait_for_ever_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_PATIENCE_S", 0.5)
    cache = Cache(tmp_path, MEGABYTE)
    with (
        cache.hold("a", MEGABYTE, lambda path: path.write_bytes(content("a"))),
        pytest.raises(StoreError, match=r"no room for 0\.001 GB.*in use by open slides.*raise HER2CACHE_CACHE_GB"),
    ):
        take(cache, "b")


def test_one_of_many_threads_stages_it(tmp_path: Path) -> None:
    cache, begun = Cache(tmp_path), threading.Barrier(8)

    def attempt(_: int) -> bool:
        begun.wait()
        return take(cache, "a", 100)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


STAGE = """
import sys, time
from pathlib import Path
from her2cache.store import cache as cache_module
from her2cache.store.cache import Cache

def fill(path):
    print("staging", flush=True)
    time.sleep(float(sys.argv[2]))
    path.write_bytes(b"x" * 1000)

with Cache(Path(sys.argv[1]), 1500).hold(sys.argv[3], 1000, fill) as path:
    assert path.read_bytes() == b"x" * 1000
print("done", flush=True)
"""


def process(folder: Path, seconds: float, key: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STAGE, str(folder), str(seconds), key]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_one_of_many_processes_stages_it(tmp_path: Path) -> None:
    processes = [process(tmp_path, 0.5, "a") for _ in range(3)]
    printed = sorted(p.communicate(timeout=60)[0] for p in processes)
    assert printed == ["done\n", "done\n", "staging\ndone\n"]


def test_what_a_killed_process_was_staging_is_removed_and_staged_anew(tmp_path: Path) -> None:
    killed = process(tmp_path, 60, "a")
    assert killed.stdout is not None
    assert killed.stdout.readline() == "staging\n"
    (part,) = (tmp_path / "files").iterdir()
    assert part.stat().st_size == 1000  # its room is taken from the start
    waiting = process(tmp_path, 0, "b")  # there is no room for both
    time.sleep(1)
    assert waiting.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert waiting.communicate(timeout=60)[0] == "staging\ndone\n"
    assert not part.exists()
    assert process(tmp_path, 0, "a").communicate(timeout=60)[0] == "staging\ndone\n"


def test_nothing_stays_of_what_could_not_be_staged(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fill(path: Path) -> None:
        path.write_bytes(b"half")
        raise StoreError("the server is gone")

    with pytest.raises(StoreError, match="the server is gone"), cache.hold("a", 100, fill):
        pass
    assert taken(cache) == 0
    assert take(cache, "a")


def test_too_large(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"0\.002 GB.* of 0\.001 GB; raise HER2CACHE_CACHE_GB"):
        take(Cache(tmp_path, MEGABYTE), "a", 2 * MEGABYTE)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written.*HER2CACHE_CACHE"):
        take(Cache(tmp_path / "file"), "a")


class TestOfNode:
    def test_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HER2CACHE_CACHE", str(tmp_path))
        monkeypatch.setenv("HER2CACHE_CACHE_GB", "1.5")
        assert Cache.of_node() == Cache(tmp_path, 1_500_000_000)

    def test_default(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HER2CACHE_CACHE", raising=False)
        monkeypatch.delenv("HER2CACHE_CACHE_GB", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert Cache.of_node() == Cache(tmp_path / "her2cache")
        assert not list(tmp_path.iterdir())  # nothing is made before it is needed

    @pytest.mark.parametrize("limit", ["none", "-1", "0", "nan", "inf"])
    def test_no_limit_at_all(self, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
        monkeypatch.setenv("HER2CACHE_CACHE_GB", limit)
        with pytest.raises(StoreError, match="not a positive number"):
            Cache.of_node()


def test_a_full_disk_bounds_the_cache_of_no_limit(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    size = int(free.f_bavail * free.f_frsize * 1.5)
    cache = Cache(tmp_path)
    take(cache, "a", 1000)
    reached: list[Path] = []
    with (
        pytest.raises(StoreError, match="staged all the same"),
        cache.hold("huge", size, lambda path: _reach(path, reached)),
    ):
        pass
    assert reached  # there is no limit to compare with: the disk itself says no, after all others have left
    assert take(cache, "a", 1000)


def _reach(path: Path, reached: list[Path]) -> None:
    reached.append(path)
    raise StoreError("staged all the same")
