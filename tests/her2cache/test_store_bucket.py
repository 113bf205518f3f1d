"""A store in a bucket of a real S3 server: what it keeps, what a commit is there, and what goes wrong on the way."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import numpy as np
import obstore
import pytest
import zarr
from zarr.storage import ObjectStore

from her2cache.errors import CorruptFeaturesError, IncompleteSlideError, StoreError, StoreUnreachableError
from her2cache.store import maps, staging
from her2cache.store.audit import collect_garbage, retire, verify
from her2cache.store.cache import Cache
from her2cache.store.objects import open_bucket, split_uri
from her2cache.store.reader import FeatureStore
from her2cache.store.schema import FailureRecord, attempt_path, commit_path, row_order
from tests.processes import eventually
from tests.s3 import SECRET_KEY, Asked, Proxy, S3Server
from tests.stores import DIM, drawn, expected_order, files_under, filled, flip_bit, planned, shape_of, space

ROOT = Path(__file__).parents[2]


@pytest.fixture
def s3(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a place in a bucket, with the environment to use it and a cache of its own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HER2CACHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HER2CACHE_STORE_PATIENCE", "5")
    return f"{s3_server.make_bucket('tests')}/{uuid4().hex}"


@pytest.fixture
def store(s3: str) -> FeatureStore:
    return FeatureStore.create(s3)


@pytest.fixture
def key(store: FeatureStore) -> str:
    return store.add_space(space(), weights="w.pth")


@pytest.fixture
def proxy(s3_server: S3Server, s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def chunk_of(store: FeatureStore, slide_id: str, key: str, chunk: str = "features/c/0/0/0") -> str:
    """Path of a chunk in the store."""
    return f"{attempt_path(slide_id, key, store.record(slide_id, key).attempt)}/{chunk}"


def damage(store: FeatureStore, path: str) -> None:
    data = bytearray(store.records.get(path) or b"")
    data[11] ^= 1
    store.records.put(path, bytes(data))


def problems(store: FeatureStore) -> list[str]:
    return [c.problem for c in verify(store.records) if c.problem]


def is_commit(asked: Asked) -> bool:
    return asked.method == "PUT" and "/commits/" in asked.path


class TestOneSlide:
    def test_it_is_the_slide_of_a_store_in_a_directory(self, store: FeatureStore, tmp_path: Path) -> None:
        here = FeatureStore.create(tmp_path / "store")
        for one in (store, here):
            key = one.add_space(space(views=3))
            assert filled(one, "s", key, views=3, failed=(0, 7)).commit({"by": "test"}) == "committed"
        assert [s.key for s in store.spaces()] == [s.key for s in here.spaces()]
        ours, theirs = (vars(one.record("s", key)) | {"attempt": ""} for one in (store, here))
        assert ours == theirs
        for view in range(3):
            found = store.features("s", key, view)
            np.testing.assert_array_equal(found, here.features("s", key, view))
            assert not found.flags.writeable
        np.testing.assert_array_equal(store.coords("s", key), here.coords("s", key))
        paths = {path.split("/", 4)[4] for path in store.records.list("attempts")}
        assert paths == {path.split("/", 3)[3] for path in files_under(Path(here.uri) / "attempts")}
        assert problems(store) == []

    def test_zarr_itself_reads_it(self, store: FeatureStore, s3: str) -> None:
        key = store.add_space(space(views=2))
        filled(store, "s", key, views=2, failed=(3,)).commit({})
        _, prefix = split_uri(s3)
        path = f"{prefix}/{attempt_path('s', key, store.record('s', key).attempt)}"
        group = zarr.open_group(store=ObjectStore(open_bucket(s3), read_only=True), path=path, mode="r")  # pyright: ignore
        np.testing.assert_array_equal(np.asarray(group["features"][:]), [store.features("s", key, v) for v in (0, 1)])  # pyright: ignore[reportIndexIssue]
        np.testing.assert_array_equal(np.asarray(group["coords"][:]), store.coords("s", key))  # pyright: ignore[reportIndexIssue]

    def test_any_id(self, store: FeatureStore, key: str) -> None:
        ids = sorted(["a b", "a/b", "../../up", "ü漢", "100%", "a%20b", ".hidden", "x#1", "a.json", "A\\B:*?", "-"])
        for slide_id in ids:
            filled(store, slide_id, key).commit({})
        assert store.slides(key) == ids
        assert [record.slide_id for record in store.committed(key)] == ids
        order = expected_order("a%20b", planned(20))
        np.testing.assert_array_equal(store.features("a%20b", key), drawn(20)[0, order])
        assert problems(store) == []

    def test_a_large_chunk_goes_in_parts(self, store: FeatureStore, proxy: Proxy, tmp_path: Path) -> None:
        """20 MB of features in one view: three parts, one object, nothing left in the scratch folder."""
        key, n, dim = store.add_space(space()), 10_000, 1000
        writer = store.writer(replace(shape_of("s", key, n), dim=dim))
        rows = np.random.default_rng(0).integers(0, 255, (1, n, dim)).astype(np.float16)
        writer.write(0, rows, np.ones(n, np.bool_))
        assert writer.commit({}) == "committed"
        assert proxy.count("PUT", "partNumber=") == 3
        assert problems(store) == []
        np.testing.assert_array_equal(store.features("s", key), rows[0, row_order("s", planned(n))])
        assert [p for p in (tmp_path / "cache/scratch").iterdir() if p.is_dir()] == []


class TestCommit:
    def test_the_second_writer_loses_and_its_objects_go(self, store: FeatureStore, key: str) -> None:
        first, second = filled(store, "s", key, seed=1), filled(store, "s", key, seed=2)
        assert first.commit({"by": 1}) == "committed"
        before = store.records.get(commit_path("s", key))
        assert second.commit({"by": 2}) == "lost"
        assert store.records.get(commit_path("s", key)) == before
        assert {path.split("/")[3] for path in store.records.list("attempts")} == {first.attempt}

    def test_discard_and_missing_rows_leave_nothing(self, store: FeatureStore, key: str) -> None:
        filled(store, "s", key).discard()
        writer = store.writer(shape_of("s", key, 20))
        writer.write(0, drawn(19), np.ones(19, np.bool_))
        with pytest.raises(IncompleteSlideError):
            writer.commit({})
        writer.discard()
        assert store.records.list("attempts") == []
        assert store.slides(key) == []

    def test_a_success_removes_the_failure(self, store: FeatureStore, key: str) -> None:
        for slide_id in ("s", "t"):
            store.add_failure(FailureRecord(key, slide_id, "DecodeError", "broken", "", 1, "2026-01-01"))
        filled(store, "s", key).commit({})
        assert [f.slide_id for f in store.failures(key)] == ["t"]
        assert store.records.list("failures") == [f"failures/{key}/t.json"]

    @pytest.mark.parametrize("patience", ["0", "5"])
    def test_a_lost_answer_is_no_lost_commit(
        self, store: FeatureStore, key: str, proxy: Proxy, patience: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server has the record and its answer is lost. Tried again it says that there is one already: ours."""
        monkeypatch.setenv("HER2CACHE_STORE_PATIENCE", patience)
        lost: list[Asked] = []

        def lose(asked: Asked) -> Any:
            if is_commit(asked) and not lost:
                lost.append(asked)
                return "lose answer"
            return None

        proxy.fault = lose
        assert filled(store, "s", key).commit({}) == "committed"
        assert len(lost) == 1
        assert store.features("s", key).shape == (20, DIM)
        assert problems(store) == []

    def test_of_a_commit_that_may_have_happened_nothing_is_removed(
        self, store: FeatureStore, key: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The answer is lost, and then the server cannot be asked what has become of it."""
        monkeypatch.setenv("HER2CACHE_STORE_PATIENCE", "0")
        proxy.fault = lambda asked: (
            "lose answer" if is_commit(asked) else "refuse" if proxy.count("PUT", "/commits/") else None
        )
        writer = filled(store, "s", key)
        with pytest.raises(StoreUnreachableError, match="no S3 server answers"):
            writer.commit({})
        writer.discard()
        proxy.fault = lambda _: None
        assert store.features("s", key).shape == (20, DIM)
        assert problems(store) == []

    def test_a_commit_that_did_not_happen_leaves_an_attempt_for_gc(
        self, store: FeatureStore, key: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HER2CACHE_STORE_PATIENCE", "0")
        proxy.fault = lambda asked: "refuse" if is_commit(asked) else None
        writer = filled(store, "s", key)
        with pytest.raises(StoreUnreachableError):
            writer.commit({})
        writer.discard()
        assert store.slides(key) == []
        path = attempt_path("s", key, writer.attempt)
        assert collect_garbage(store.records, older_than_s=3600) == []
        ((name, size),) = collect_garbage(store.records, older_than_s=0)
        assert name == f"{store.uri}/{path}"
        assert size > 20 * DIM * 2
        assert store.records.list("attempts") == []

    def test_bytes_that_came_otherwise_than_they_were_sent_are_refused(
        self, store: FeatureStore, key: str, proxy: Proxy
    ) -> None:
        """The server compares what comes with the sha256 that goes with it."""
        proxy.fault = lambda asked: "damage body" if "/features/c/" in asked.path else None
        writer = filled(store, "s", key)
        with pytest.raises(StoreError):
            writer.commit({})
        writer.discard()
        assert store.slides(key) == []
        assert not [path for path in store.records.list("attempts") if "/features/c/" in path]

    def test_a_server_without_conditions_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Careless(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.send_header("ETag", '"x"')
                self.end_headers()

            def log_message(self, *_: object) -> None: ...  # pyright: ignore[reportIncompatibleMethodOverride]

        server = HTTPServer(("127.0.0.1", 0), Careless)
        Thread(target=server.serve_forever, daemon=True).start()
        for name, value in (("URL", f"http://127.0.0.1:{server.server_port}"),):
            monkeypatch.setenv(f"AWS_ENDPOINT_{name}", value)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        with pytest.raises(StoreError, match="ignores conditional puts"):
            FeatureStore.create("s3://bucket/store")
        server.shutdown()


class TestDamage:
    @pytest.mark.parametrize("chunk", ["features/c/0/0/0", "coords/c/0/0"])
    def test_a_damaged_object_is_named_and_never_read(self, store: FeatureStore, key: str, chunk: str) -> None:
        read = store.features if chunk.startswith("features") else store.coords
        for slide_id in ("s", "t", "u", "v"):
            filled(store, slide_id, key).commit({})
        read("v", key)  # staged before it is damaged: verify must not trust the copy
        paths = {slide_id: chunk_of(store, slide_id, key, chunk) for slide_id in "stuv"}
        damage(store, paths["s"])
        store.records.delete(paths["t"])
        store.records.put(paths["u"], (store.records.get(paths["u"]) or b"")[:-1])
        damage(store, paths["v"])
        for slide_id, said in (("s", "crc32c"), ("t", "is gone"), ("u", "bytes instead of")):
            for _ in range(2):
                with pytest.raises(CorruptFeaturesError, match=said) as caught:
                    read(slide_id, key)
                assert f"{store.uri}/{paths[slide_id]}" in str(caught.value)
        found = {c.slide_id: c.problem for c in verify(store.records)}
        assert [slide_id for slide_id, problem in found.items() if problem] == ["s", "t", "u", "v"]
        assert all(chunk in problem for problem in found.values())
        retire(store.records, key, "s")
        assert filled(store, "s", key).commit({}) == "committed"
        assert read("s", key).shape[0] == 20

    def test_metadata_and_records(self, store: FeatureStore, key: str) -> None:
        for slide_id in ("s", "t", "u"):
            filled(store, slide_id, key).commit({})
        store.records.delete(chunk_of(store, "s", key, "zarr.json"))
        store.records.put(chunk_of(store, "t", key, "features/zarr.json"), b"{")
        store.records.put(commit_path("u", key), b"{")
        found = {c.slide_id: c.problem for c in verify(store.records)}
        assert "zarr.json: the Zarr metadata cannot be read" in found["s"]
        assert "features/zarr.json: the Zarr metadata is damaged" in found["t"]
        assert f"commits/{key}/u.json" in found["u"]
        with pytest.raises(StoreError, match="nothing was removed"):
            collect_garbage(store.records, older_than_s=0)

    def test_a_damaged_copy_is_staged_once_more(
        self, store: FeatureStore, key: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        filled(store, "s", key).commit({})
        chunk = chunk_of(store, "s", key)

        def staged() -> int:
            """Reads as another process would, without open maps; how often the object was fetched."""
            monkeypatch.setattr(maps, "_checked", set[str]())
            monkeypatch.setattr(maps, "_staged_maps", staging.StagedMaps(8))
            found = store.features("s", key)
            np.testing.assert_array_equal(found, drawn(20)[0, expected_order("s", planned(20))])
            return proxy.count("GET", chunk)

        assert [staged(), staged()] == [1, 1]
        (copy,) = Path(os.environ["HER2CACHE_CACHE"], "files").iterdir()
        flip_bit(copy)
        assert [staged(), staged()] == [2, 2]
        copy.write_bytes(copy.read_bytes()[:-1])
        assert [staged(), staged()] == [3, 3]
        proxy.fault = lambda asked: "damage answer" if chunk in asked.path else None
        flip_bit(copy)
        with pytest.raises(CorruptFeaturesError, match="crc32c"):
            staged()  # what comes is damaged as well


class TestRequests:
    def test_of_a_slide(self, store: FeatureStore, proxy: Proxy) -> None:
        """Five files, a listing to check them, the commit, the removal of a failure. Reading: record and chunks."""
        key = store.add_space(space())
        proxy.asked.clear()
        filled(store, "s", key).commit({})
        assert [proxy.count(method) for method in ("PUT", "GET", "DELETE", "POST", "HEAD")] == [6, 1, 0, 1, 0]
        proxy.asked.clear()
        found = store.maps(key)
        assert len(proxy.asked) == 2  # the listing, the record
        found.stage()
        assert found["s"][0].shape == (20, DIM)
        assert len(proxy.asked) == 3
        store.maps(key).stage()
        store.maps(key)["s"][0]
        assert len(proxy.asked) == 7

    def test_records_and_features_of_many_slides_come_side_by_side(self, store: FeatureStore, proxy: Proxy) -> None:
        key = store.add_space(space())
        for k in range(16):
            filled(store, f"s{k:02d}", key).commit({})
        proxy.delay_s = 0.05
        proxy.most_at_once = 0
        found = store.maps(key)
        assert proxy.most_at_once > 8
        proxy.most_at_once = 0
        found.stage()
        assert 4 < proxy.most_at_once <= 8
        assert [found[slide][0].shape for slide in found] == [(20, DIM)] * 16

    def test_a_map_stays_open_while_its_file_is_in_the_cache(self, store: FeatureStore, key: str) -> None:
        filled(store, "s", key).commit({})
        views = store.maps(key)["s"]
        first = views[0]
        assert views[0] is first
        for file in (Cache.of_node().folder / "files").iterdir():
            file.unlink()
        again = views[0]
        assert again is not first
        assert np.array_equal(again, first)

    def test_what_left_the_cache_leaves_the_disk(
        self, store: FeatureStore, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for k in range(8):
            filled(store, f"s{k}", key, 1000, seed=k).commit({})  # 16 kB each
        monkeypatch.setenv("HER2CACHE_CACHE_GB", "0.00005")
        monkeypatch.setattr(staging, "_LOOK_S", 0.0)
        maps = store.maps(key)
        sums = [float(maps[f"s{k}"][0].astype(np.float32).sum()) for k in range(8) for _ in range(2)]
        assert sums[::2] == sums[1::2]
        assert len(set(sums)) == 8
        held = Path("/proc/self/maps").read_text()
        assert sum(line.endswith("(deleted)") and "/cache/files/" in line for line in held.splitlines()) == 0

    @pytest.mark.slow
    def test_two_processes_of_a_node_stage_a_slide_once(self, store: FeatureStore, proxy: Proxy) -> None:
        key = store.add_space(space(views=2))
        for k in range(6):
            filled(store, f"s{k}", key, views=2).commit({})
        proxy.asked.clear()
        proxy.delay_s = 0.05
        code = (
            "import sys; from her2cache.store.reader import FeatureStore;"
            " maps = FeatureStore.open(sys.argv[1]).maps(sys.argv[2]); sys.stdin.readline(); maps.stage();"
            " print(sum(float(view.astype('f8').sum()) for views in maps.values() for view in views))"
        )
        command = [sys.executable, "-c", code, store.uri, key]
        two = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            for _ in range(2)
        ]
        assert eventually(lambda: proxy.count("GET", "/commits/") >= 12, 60)
        answers = _together(two)
        assert answers[0] == answers[1] != ""
        assert proxy.count("GET", "/features/c/") == 12


def _together(processes: list[subprocess.Popen[str]]) -> list[str]:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate()[0] for process in processes]


_KILLED = """
import os, signal, sys
import numpy as np
from her2cache.store.reader import FeatureStore
from tests.stores import filled
writer = filled(FeatureStore.open(sys.argv[1]), "killed", sys.argv[2])
print("filled", flush=True)
sys.stdin.readline()
"""


class TestProcesses:
    def test_the_scratch_of_a_killed_process_goes_with_the_next_attempt(self, store: FeatureStore, key: str) -> None:
        scratch = Path(os.environ["HER2CACHE_CACHE"], "scratch")
        process = subprocess.Popen(
            [sys.executable, "-c", _KILLED, store.uri, key], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"filled\n"
        (theirs,) = [p for p in scratch.iterdir() if p.is_dir()]
        ours = filled(store, "s", key)
        assert theirs.is_dir()  # its owner lives
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert filled(store, "t", key).commit({}) == "committed"
        assert not theirs.exists()
        assert ours.commit({}) == "committed"
        assert [p for p in scratch.iterdir() if p.is_dir()] == []
        assert problems(store) == []

    def test_a_forked_process_says_why_it_cannot(self, store: FeatureStore, key: str) -> None:
        """obstore's threads do not survive a fork: a request would wait for ever."""
        filled(store, "s", key).commit({})
        store.features("s", key)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            asked = pool.apply_async(_slides_of, (store.uri, key))
            with pytest.raises(StoreError, match="forked"):
                asked.get(timeout=20)

    def test_nothing_that_is_pickled_or_shown_holds_credentials(self, store: FeatureStore, key: str) -> None:
        filled(store, "s", key).commit({})
        found = store.maps(key)
        found["s"][0]
        packed = pickle.dumps((store, found, found["s"], store.records))
        assert SECRET_KEY.encode() not in packed
        assert SECRET_KEY not in repr((vars(store), found, open_bucket(store.uri)))
        opened, copies, _, _ = pickle.loads(packed)
        np.testing.assert_array_equal(copies["s"][0], opened.features("s", key))


def _slides_of(uri: str, key: str) -> list[str]:
    return FeatureStore.open(uri).slides(key)


def test_an_outage_is_bridged_and_then_told(
    store: FeatureStore, key: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, "s", key).commit({})
    refused: list[Asked] = []

    def some(asked: Asked) -> Any:
        refused.append(asked)
        return "refuse" if len(refused) <= 3 else None

    proxy.fault = some
    assert store.slides(key) == ["s"]
    assert len(refused) == 4
    proxy.fault = lambda _: "refuse"
    monkeypatch.setenv("HER2CACHE_STORE_PATIENCE", "0.5")
    for read in (
        store.spaces,
        lambda: store.slides(key),
        lambda: store.record("s", key),
        lambda: verify(store.records),
    ):
        with pytest.raises(StoreUnreachableError, match="no S3 server answers") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_obstore_sees_no_other_bucket(s3: str) -> None:
    bucket, prefix = split_uri(s3)
    obstore.put(open_bucket(s3), f"{prefix}-beside/store.json", b"{}")
    with pytest.raises(StoreError, match="is not a feature store"):
        FeatureStore.open(f"s3://{bucket}/{prefix}-besid")
