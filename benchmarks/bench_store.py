"""The feature store on a local disk: writing and reading a slide, gathering rows, training, ten thousand slides.

A slide has 20,000 x 1,024 float16, 41 MB. Its floors are what numpy does with as many bytes, in the same run. "Cold"
means that the files' pages were dropped from the kernel's cache and the process forgot which files it has checked;
a disk's own cache, and that of a host below a virtual machine, stay as they are.

Training runs in a process of its own under RLIMIT_DATA: the kernel refuses it more private memory than that, of which
importing torch reserves most. Maps of files do not count, and their pages are the kernel's to take back; so what is
shown is that a store takes no memory of the process's own, not how fast it is when the page cache is too small.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Row, interleaved, main, over_floor
from her2cache.embedder import EmbedderSpec, FeatureSpace
from her2cache.store import maps
from her2cache.store.reader import FeatureStore
from her2cache.store.schema import attempt_path, commit_path
from her2cache.store.writer import SlideShape
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset

PATCHES, DIM, BLOCK, GATHERED = 20_000, 1024, 512, 512
ROUNDS = 9

LIMIT_BYTES = 1 << 30
TRAINING_SLIDES = 105  # of 41 MB: four times the limit, and some
BAGS, SIZE, BATCHES = 64, 100, 24

SMALL_SLIDES, SMALL_PATCHES, SMALL_DIM, SMALL_BAG = 10_000, 64, 64, 50
SMALL_ROUNDS = 5


def new_store(folder: Path, dim: int) -> tuple[FeatureStore, str]:
    """An empty store with a space called "net"."""
    store = FeatureStore.create(folder)
    spec = EmbedderSpec("net", dim, 96, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "0" * 64)
    return store, store.add_space(FeatureSpace(PatchSpec(), preset("HE"), spec))


def grid(n: int) -> NDArray[np.int32]:
    """Coordinates of n patches, (n, 2)."""
    return np.stack([np.arange(n) % 200 * 96, np.arange(n) // 200 * 96], axis=1).astype(np.int32)


def features(n: int, dim: int) -> NDArray[np.float16]:
    """Features like a trained AlexNet's, (n, dim): no negatives, many zeros."""
    drawn = np.random.default_rng(0).standard_normal((n, dim), np.float32)
    return np.maximum(drawn - 0.67, 0).astype(np.float16)


def commit(store: FeatureStore, key: str, slide_id: str, rows: NDArray[np.float16]) -> None:
    """Writes a slide block by block, as the pipeline does, and commits it."""
    n, dim = rows.shape
    made = {"at": "2026-01-01T00:00:00+00:00", "versions": {"her2cache": "0.1.0"}}
    slide = {"path": "/slides/x.svs", "mpp": 0.5, "mpp_source": "file"}
    writer = store.writer(SlideShape(slide_id, key, grid(n), 1, dim, "float16", 96.0, slide))
    for start in range(0, n, BLOCK):
        block = rows[None, start : start + BLOCK]
        writer.write(start, block, np.ones(block.shape[1], np.bool_))
    assert writer.commit(made) == "committed"


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def drop(path: Path) -> None:
    """Takes a file's pages out of the kernel's cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def chunk_of(store: FeatureStore, key: str, slide_id: str) -> Path:
    return store.records.root / attempt_path(slide_id, key, store.record(slide_id, key).attempt) / "features/c/0/0/0"


def writing(folder: Path, rows: NDArray[np.float16]) -> Row:
    """A durable write of a slide, over np.save and fsync of file and folder."""
    store, key = new_store(folder / "written", DIM)
    count = 0

    def save() -> None:
        nonlocal count
        count += 1
        path = folder / f"saved{count}"
        path.mkdir()
        with (path / "x.npy").open("wb") as file:
            np.save(file, rows)
            file.flush()
            os.fsync(file.fileno())
        flush(path)

    def write() -> None:
        nonlocal count
        count += 1
        commit(store, key, f"s{count}", rows)

    times = interleaved({"ours": write, "floor": save}, ROUNDS)
    name = "durable write of a slide, reserve to commit record, over np.save + fsync"
    return over_floor(name, times["ours"], times["floor"], bar=3)


def reading(folder: Path, rows: NDArray[np.float16]) -> list[Row]:
    """Opening a store and reading a slide with its checksum verified; gathering rows from its map."""
    store, key = new_store(folder / "read", DIM)
    commit(store, key, "s", rows)
    chunk, plain, buffer = chunk_of(store, key, "s"), folder / "plain", bytearray(1 << 20)
    shutil.copyfile(chunk, plain)

    def read_plain() -> None:
        with plain.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    def read_verified() -> NDArray[np.float16]:
        maps._checked.clear()
        return FeatureStore.open(store.uri).features("s", key)

    def cold(path: Path, run: Callable[[], object]) -> float:
        drop(path)
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    turns = [(cold(chunk, read_verified), cold(plain, read_plain)) for _ in range(ROUNDS)]
    ours, floor = (statistics.median(times) for times in zip(*turns, strict=True))
    warm = interleaved({"ours": read_verified, "floor": read_plain}, ROUNDS)
    rng = np.random.default_rng(1)
    bare = np.memmap(plain, np.float16, "r", shape=rows.shape)
    mapped = store.maps(key)
    gather = interleaved(
        {
            "ours": lambda: mapped["s"][0][rng.integers(0, PATCHES, GATHERED)],
            "floor": lambda: bare[rng.integers(0, PATCHES, GATHERED)],
        },
        rounds=201,
    )
    return [
        over_floor("cold: open a store and a slide, checksum verified, over a plain read", ours, floor),
        over_floor("warm: the same", warm["ours"], warm["floor"]),
        over_floor(f"gather of {GATHERED} random rows over a bare np.memmap", gather["ours"], gather["floor"], bar=2),
    ]


def small_store(folder: Path) -> str:
    """Ten thousand committed slides: one that is written, and copies of its attempt under other names."""
    store, key = new_store(folder, SMALL_DIM)
    commit(store, key, "s00000", features(SMALL_PATCHES, SMALL_DIM))
    record = store.record("s00000", key)
    attempt = folder / attempt_path("s00000", key, record.attempt)
    for k in range(1, SMALL_SLIDES):
        name = f"s{k:05d}"
        shutil.copytree(attempt, folder / attempt_path(name, key, record.attempt))
        (folder / commit_path(name, key)).write_bytes(replace(record, slide_id=name).to_json())
    return key


def many_slides(folder: Path) -> list[Row]:
    """Seconds to list ten thousand slides and to open a sampler of bags over them; the floor reads every record."""
    from trainers.dataset import BagDataset
    from trainers.features import stored_features

    key = small_store(folder)
    commits = folder / "commits" / key
    labels = {f"s{k:05d}": k % 4 for k in range(SMALL_SLIDES)}
    command = [sys.executable, "-c", "from cluster.cli.main import main; main()", "store", "ls", str(folder)]

    def list_slides() -> None:
        store = FeatureStore.open(folder)
        records = [store.record(slide_id, key) for slide_id in store.slides(key)]
        assert len(records) == SMALL_SLIDES

    times = interleaved(
        {
            "floor": lambda: [json.loads(path.read_bytes()) for path in commits.iterdir()],
            "store ls": lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL),
            "api": list_slides,
            "dataset": lambda: BagDataset(folder, "net", labels, size=SMALL_BAG),
            "stored features": lambda: stored_features(str(folder), key, labels),
        },
        SMALL_ROUNDS,
    )
    before = open_files()
    data = BagDataset(folder, "net", labels, size=SMALL_BAG, bags=3 * SMALL_SLIDES)
    for k in range(len(data)):
        data[k]
    held, files = open_files() - before, sum(len(names) for _, _, names in os.walk(folder))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    over = f"{SMALL_SLIDES:,} slides, over parsing their records"
    what = {
        "store ls": f"`store ls`, a process of its own, {over}",
        "api": f"`slides` and `record` of {over}",
        "dataset": f"opening a BagDataset of {over}",
        "stored features": f"opening `stored_features` of {over}",
    }
    rows = [Row(text, times[k], "s", times["floor"], times[k] / times["floor"], "lower") for k, text in what.items()]
    rows.append(
        Row("files of that store, over its slides", files, "files", SMALL_SLIDES, files / SMALL_SLIDES, "lower")
    )
    name = f"files held open after {len(data):,} of its bags, over the limit of the process"
    rows.append(Row(name, held, "files", limit, held / limit, "lower", bar=0.75))
    return rows


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


_TRAIN = """
import sys
from benchmarks import bench_store
bench_store.train(sys.argv[1], int(sys.argv[2]))
"""


def train(uri: str, limit: int) -> None:
    """In a process of its own: training batches from a store under a limit (0: none); prints what it took."""
    import torch

    from her2cache.bags import BagSampler
    from trainers.features import FeatureRows, stored_features
    from trainers.feeds import PART_BAGS
    from trainers.model import AttentionMIL
    from trainers.stack import Configuration, Stack

    torch.set_num_threads(1)
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    store = FeatureStore.open(uri)
    slides = store.slides("net")
    before, refused = memory(), False
    try:  # what a loader does that keeps its features in memory
        np.empty((len(slides), PATCHES, DIM), np.float16)
    except MemoryError:
        refused = True
    sampler = BagSampler(dict.fromkeys(slides, PATCHES), SIZE, seed=0)
    rows = FeatureRows(stored_features(uri, store.find_space("net").key, slides), slides, PART_BAGS * SIZE)
    stack = Stack(AttentionMIL.seeded(DIM, 4, 256, seed=0), [Configuration(1e-4, 1e-5)])
    labels = torch.arange(len(slides)) % 4
    bags = sampler.training(BATCHES * BAGS, epoch=0)
    seconds, loss = list[float](), 0.0
    for start in range(0, len(bags), BAGS):
        batch = bags[start : start + BAGS]
        parts = (batch[k : k + PART_BAGS] for k in range(0, BAGS, PART_BAGS))
        started = time.perf_counter()
        loss += stack.train_batch(((rows.bags(part), labels[part.slide]) for part in parts), BAGS).item()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds, "loss": loss, "refused": refused, "before": before, "after": memory()}))


def memory() -> float:
    """Anonymous memory of this process, MiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024


def training(folder: Path, rows: NDArray[np.float16]) -> list[Row]:
    """The same batches with and without a limit that is a quarter of the store."""
    store, key = new_store(folder / "training", DIM)
    for k in range(TRAINING_SLIDES):
        commit(store, key, f"s{k:03d}", rows)
    size = TRAINING_SLIDES * rows.nbytes
    assert size >= 4 * LIMIT_BYTES
    found: dict[int, list[dict[str, object]]] = {0: [], LIMIT_BYTES: []}
    for _ in range(5):
        for limit, results in found.items():
            command = [sys.executable, "-c", _TRAIN, store.uri, str(limit)]
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300)
            results.append(json.loads(run.stdout))
    free, limited = found[0], found[LIMIT_BYTES]
    assert all(result["refused"] for result in limited), "the limit was not one"
    assert len({result["loss"] for result in free + limited}) == 1, "the same batches gave other numbers"

    def rate(results: list[dict[str, object]]) -> float:
        # the first batches meet slides for the first time, and verify their checksums
        return 1 / statistics.median(s for result in results for s in result["seconds"][BATCHES // 2 :])

    before, after = (statistics.median(result[when] for result in limited) for when in ("before", "after"))
    store_mib, limit_mib = size / 2**20, LIMIT_BYTES / 2**20
    under = f"store of {store_mib:,.0f} MiB under RLIMIT_DATA of {limit_mib:,.0f} MiB"
    return [
        Row(
            f"training from a {under}, over the same without a limit",
            rate(limited),
            "batches/s",
            rate(free),
            rate(limited) / rate(free),
            "higher",
        ),
        Row("anonymous memory it used, over the limit", after, "MiB", limit_mib, after / limit_mib, "lower", bar=1),
        Row(
            "the same without what was there once torch was imported",
            after - before,
            "MiB",
            limit_mib,
            (after - before) / limit_mib,
            "lower",
        ),
    ]


def measure() -> list[Row]:
    rows = features(PATCHES, DIM)
    found: list[Row] = []
    parts = (lambda folder: [writing(folder, rows)], lambda folder: reading(folder, rows), many_slides)
    for part in (*parts, lambda folder: training(folder, rows)):
        with tempfile.TemporaryDirectory() as folder:
            found += part(Path(folder))
    return found


if __name__ == "__main__":
    main("bench_store: the feature store on a local disk", measure)
