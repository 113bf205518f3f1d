"""kill -9 of driver, trial and raylet of a sweep at random points, resume, and the tables of an uninterrupted one."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.planted import planted_experiment, planted_store
from tests.processes import descendants, eventually, kill, marked, title

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
MARK = "HER2CACHE_TEST_SWEEP"
"""Variable in the environment of a sweep and of every process below it."""

VICTIMS = ("driver", "trial", "raylet")
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "dashboard/agent.py", "runtime_env/agent/main.py")
"""Of Ray: they notice only after a minute that they are alone."""

TRIALS = ("ray::ResourceTrainable", "ray::_Trial")
"""As Ray calls a process with a trial, at work and between two."""


def experiment(method: str) -> str:
    return planted_experiment(
        per_epoch=1600,
        fixed=(400, 200),
        units=64,
        epochs=20,
        learning_rate="[1e-2, 1e-4]",
        weight_decay="[1e-3, 1e-5]",
        search=f'method = "{method}"\nsamples = 4\nat_once = 2\n',
    )


# epoch checkpoints every half second, that fits this short go on from them
COMMAND = "import cluster.trials as t; t.SAVE_EVERY = 0.5; from cluster.cli.main import main; main()"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    planted_store(folder, {"good": 6.0, "poor": 0.0})
    return folder


def start(project: Path, out: Path, method: str) -> subprocess.Popen[bytes]:
    """`her2cache sweep` as a user starts it, with every process below it. --resume is for any sweep, also a new one."""
    command = [sys.executable, "-c", COMMAND, "sweep", str(project / f"{method}.toml"), "--out", str(out)]
    command += ["--resume", *(["--stack", "2"] if method == "grid" else [])]
    with log_of(out).open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, MARK: str(out)})


def log_of(out: Path) -> Path:
    return out.with_suffix(".log")


def left_over(out: Path) -> list[str]:
    """Processes of a sweep that are still there, Ray's agents excepted."""
    titles = [title(pid) for pid in marked(MARK, str(out))]
    return [t for t in titles if t and not any(agent in t for agent in AGENTS)]


def tables(out: Path) -> dict[str, bytes]:
    """Everything that must not depend on how a sweep came about; times do."""
    runs = pq.read_table(out / "runs.parquet").drop_columns(["seconds"])
    names = ["results.parquet", "predictions.parquet", *sorted(path.name for path in out.glob("*.csv"))]
    return {name: (out / name).read_bytes() for name in names} | {"runs": str(runs.to_pylist()).encode()}


def ledger(out: Path) -> dict[str, bytes]:
    """Files of the runs that have ended; those that failed with their fit are tried again."""
    files = (out / "ledger").glob("[!.]*.json")
    return {path.name: path.read_bytes() for path in files if not path.name.endswith(".failed.json")}


def finish(project: Path, out: Path, method: str) -> float:
    """Runs a sweep to its end, which must be a good one; returns the seconds that it took."""
    began = time.monotonic()
    assert start(project, out, method).wait(timeout=900) == 0, log_of(out).read_text()
    return time.monotonic() - began


def find(job: subprocess.Popen[bytes], victim: str) -> list[int]:
    if victim == "driver":
        return [job.pid]
    below = {pid: title(pid) for pid in descendants(job.pid)}
    if victim == "raylet":
        return [pid for pid, t in below.items() if t.split(" ")[0].endswith("/raylet")]
    return [pid for pid, t in below.items() if t.startswith(TRIALS)]


def strike(job: subprocess.Popen[bytes], out: Path, victim: str, rng: random.Random, whole: float) -> bool:
    """Kills a driver at any time of its first four fifths, which may vary, the others a moment after training began.

    Returns:
        Whether there was anything to kill.
    """
    if victim == "driver":
        time.sleep(rng.uniform(0, 0.8 * whole))
    else:
        eventually(lambda: job.poll() is not None or (out / "state").exists(), 120)
        time.sleep(rng.uniform(0, 5))
    found = find(job, victim) if job.poll() is None else []
    if found:
        kill(rng.choice(found))
    return bool(found)


def rounds(n: int, project: Path, folder: Path, method: str) -> dict[str, int]:
    """Each round: a new sweep struck once, what was in its ledger, the same command again, and the tables."""
    (project / f"{method}.toml").write_text(experiment(method))
    whole = finish(project, folder / "whole", method)
    expected, runs = tables(folder / "whole"), len(ledger(folder / "whole"))
    assert runs == 2 * 2 * 4
    rng, struck = random.Random(n), Counter[str]()
    for k in range(n):
        out, victim = folder / f"round{k}", VICTIMS[k % len(VICTIMS)]
        job = start(project, out, method)
        struck[victim] += strike(job, out, victim, rng, whole)
        job.wait(timeout=900)
        assert eventually(lambda: not left_over(out), 60), f"round {k}: {left_over(out)} outlive their sweep"  # noqa: B023
        before = ledger(out) if (out / "ledger").exists() else {}
        finish(project, out, method)
        assert tables(out) == expected, f"round {k}: {victim}"
        after = ledger(out)
        assert len(after) == runs
        assert {name: after[name] for name in before} == before, f"round {k}: finished runs were run again"
        assert not (out / "state").exists(), f"round {k}: epoch checkpoints are left"
        assert not (out / ".tune").exists()
        assert eventually(lambda: not left_over(out), 60), f"round {k}: {left_over(out)} outlive their sweep"  # noqa: B023
    assert struck.total() > n // 2, "most sweeps ended before they were struck: this test shows nothing"
    return dict(struck)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grid", "asha", "optuna"])
def test_three_rounds(project: Path, tmp_path: Path, method: str) -> None:
    rounds(3, project, tmp_path, method)


@pytest.mark.soak
@pytest.mark.parametrize("method", ["grid", "asha", "optuna"])
def test_twelve_rounds(project: Path, tmp_path: Path, method: str) -> None:
    started = time.monotonic()
    struck = rounds(12, project, tmp_path, method)
    report = {"rounds": 12, "struck": struck, "runs": 16, "seconds": round(time.monotonic() - started)}
    (RESULTS / f"soak_sweep_kills_{method}.json").write_text(json.dumps(report, indent=2) + "\n")
