"""Two drivers at once on one store: whoever is second with a slide loses it, and nobody can tell afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from her2cache.store.audit import collect_garbage, verify
from her2cache.store.reader import FeatureStore
from tests.slides import texture, write_slide

SLIDES = 4


def start(slides: list[Path], store: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from cluster.cli.main import main; main()", "embed", *map(str, slides)]
    options = ["--store", str(store), "--embedder", "alexnet-random", "--json"]
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def passes(job: subprocess.Popen[str]) -> int:
    """Patches that a job pushed through the embedder; it must have done every slide or found it there."""
    stdout, stderr = job.communicate(timeout=280)
    assert job.returncode == 0, stdout + stderr
    report = json.loads(stdout)
    assert {item["status"] for item in report["items"]} <= {"done", "skipped"}, report
    return sum(report["passes"].values())


def digests(store: FeatureStore) -> dict[str, str]:
    return {slide: store.record(slide, "alexnet-random").digest for slide in store.slides("alexnet-random")}


@contextmanager
def watched(store: Path) -> Iterator[dict[str, set[str]]]:
    """slide_id -> every attempt at it that was ever seen."""
    seen: dict[str, set[str]] = defaultdict(set)
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            for attempt in store.glob("attempts/*/*/*"):
                seen[attempt.parts[-3]].add(attempt.name)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
def test_two_drivers_embed_each_slide_at_most_twice_and_commit_it_once(tmp_path: Path) -> None:
    slides = [
        write_slide(tmp_path / f"s{k}.tif", texture(96 * 24, 96 * 24, seed=k), segment_px=(256, 256))
        for k in range(SLIDES)
    ]
    whole = passes(start(slides, tmp_path / "alone"))
    expected = digests(FeatureStore.open(tmp_path / "alone"))
    assert len(expected) == SLIDES

    folder = tmp_path / "store"
    with watched(folder) as seen:
        jobs = [start(slides, folder) for _ in range(2)]
        counted = [passes(job) for job in jobs]
    assert whole <= sum(counted) <= 2 * whole
    assert all(count <= whole for count in counted)
    assert all(len(attempts) <= 2 for attempts in seen.values())
    assert any(len(attempts) == 2 for attempts in seen.values()), "they never met: this test shows nothing"

    store = FeatureStore.open(folder)
    assert digests(store) == expected
    assert not [c for c in verify(store.records) if c.problem]
    assert list(store.failures("alexnet-random")) == []
    collect_garbage(store.records, older_than_s=0)
    committed = {store.record(slide, "alexnet-random").attempt for slide in expected}
    assert {path.name for path in folder.glob("attempts/*/*/*")} == committed
    assert list(store.records.staged()) == []
    assert digests(store) == expected
