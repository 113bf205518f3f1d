"""kill -9 of driver, reader, embedder and writer at random points, resume, and the store of an uninterrupted job."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from her2cache.store.audit import collect_garbage, verify
from her2cache.store.reader import FeatureStore
from tests.processes import descendants, eventually, kill, marked, title
from tests.slides import texture, write_slide

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
MARK = "HER2CACHE_TEST_JOB"
"""Variable in the environment of a job and of every process below it."""

SLIDES, VICTIMS = 6, ("driver", "ray::Reader", "ray::Embed", "ray::Writer")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("kills")
    return [
        write_slide(folder / f"s{k}.tif", texture(96 * 20, 96 * (6 + 2 * k), seed=k), segment_px=(256, 256))
        for k in range(SLIDES)
    ]


def start(slides: list[Path], store: Path) -> subprocess.Popen[bytes]:
    """`her2cache embed` as a user starts it, with every process below it."""
    command = [sys.executable, "-c", "from cluster.cli.main import main; main()", "embed", *map(str, slides)]
    options = ["--store", str(store), "--embedder", "alexnet-random", "--max-attempts", "6"]
    with log_of(store).open("ab") as log:
        return subprocess.Popen([*command, *options], stdout=log, stderr=log, env={**os.environ, MARK: str(store)})


def log_of(store: Path) -> Path:
    return store.with_suffix(".log")


def ours(store: Path) -> list[int]:
    """Actors of a job that are still there; Ray's own agents notice only after a minute that they are alone."""
    return [pid for pid in marked(MARK, str(store)) if title(pid).startswith(VICTIMS[1:])]


def finish(slides: list[Path], store: Path) -> None:
    """Runs a job to its end, which must be a good one."""
    assert start(slides, store).wait(timeout=900) == 0, log_of(store).read_text()


def digests(store: Path) -> dict[str, str]:
    opened = FeatureStore.open(store)
    (space,) = opened.spaces()
    return {slide: opened.record(slide, space.key).digest for slide in opened.slides(space.key)}


def strike(job: subprocess.Popen[bytes], victim: str, rng: random.Random) -> bool:
    """Waits until the job's actors are there, then a moment, and kills; whether there was anything to kill."""
    at_work = lambda: any(title(pid).startswith("ray::Writer") for pid in descendants(job.pid))  # noqa: E731
    eventually(lambda: job.poll() is not None or at_work(), 120)
    time.sleep(rng.uniform(0, 6))
    if job.poll() is not None:
        return False
    if victim == "driver":
        job.kill()
        return True
    found = [pid for pid in descendants(job.pid) if title(pid).startswith(victim)]
    for pid in found[:1]:
        kill(pid)
    return bool(found)


def rounds(n: int, slides: list[Path], folder: Path) -> dict[str, int]:
    """Each round: a new store, a job struck once, the same command again, and the uninterrupted store's digests."""
    finish(slides, folder / "whole")
    expected = digests(folder / "whole")
    assert len(expected) == SLIDES
    rng, struck = random.Random(n), Counter[str]()
    for k in range(n):
        store = folder / f"round{k}"
        job = start(slides, store)
        victim = VICTIMS[k % len(VICTIMS)]
        struck[victim] += strike(job, victim, rng)
        job.wait(timeout=900)
        assert eventually(lambda: not ours(store), 60), f"round {k}: processes outlive their job"  # noqa: B023
        if (store / "store.json").exists():
            opened = FeatureStore.open(store)
            bad = [c for c in verify(opened.records) if c.problem]
            assert not bad, f"round {k}: a killed job left a store that lies: {bad}"
        finish(slides, store)
        opened = FeatureStore.open(store)
        assert digests(store) == expected, f"round {k}"
        collect_garbage(opened.records, older_than_s=0)
        attempts = [path for path in (store / "attempts").glob("*/*/*") if path.is_dir()]
        assert len(attempts) == SLIDES, f"round {k}: orphans are left after gc"
        assert not [c for c in verify(opened.records) if c.problem], f"round {k}"
    assert struck.total() >= n // 2, "most jobs ended before they were struck: this test shows nothing"
    return dict(struck)


@pytest.mark.slow
def test_four_rounds(slides: list[Path], tmp_path: Path) -> None:
    rounds(4, slides, tmp_path)


@pytest.mark.soak
def test_thirty_rounds(slides: list[Path], tmp_path: Path) -> None:
    started = time.monotonic()
    struck = rounds(30, slides, tmp_path)
    report = {"rounds": 30, "struck": struck, "slides": SLIDES, "seconds": round(time.monotonic() - started)}
    (RESULTS / "soak_kills.json").write_text(json.dumps(report, indent=2) + "\n")
