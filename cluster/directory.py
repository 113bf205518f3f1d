"""A sweep's directory: who works in it, whose it is, and what environment.json says of it."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.limits import available_cpus
from her2cache.errors import SweepError
from her2cache.store.reader import FeatureStore
from trainers.files import whole
from trainers.splits import write_splits
from trainers.study import Study

_BEGUN = {"experiment.toml", "splits.csv", ".environment.json"}
"""What a sweep that was killed as it began may have left."""

_PACKAGES = ("her2cache", "numpy", "torch", "ray", "scikit-learn", "pyarrow", "zarr")


@dataclass(frozen=True)
class Begun:
    """What a sweep was begun with, and goes on with: other terms give other bits.

    Attributes:
        stack: most runs of a fit.
        on_gpu: whether fits are trained on GPUs, which draw other bags than processors do.
    """

    stack: int
    on_gpu: bool


@contextmanager
def locked(out: Path) -> Generator[None]:
    """Keeps a sweep directory, made where there is none, to this process. The lock goes with the process.

    Raises:
        SweepError: another sweep works in it.
    """
    if out.exists() and not out.is_dir():
        raise SweepError(f"{out} is a file: give another --out")
    out.mkdir(parents=True, exist_ok=True)
    folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SweepError(f"another process sweeps in {out}: wait for it, or give another --out") from error
        yield
    finally:
        os.close(folder)


def claim(out: Path, file: Path, study: Study, *, resume: bool, stack: int | None) -> Begun | None:
    """Begins a sweep directory, or checks that the one there holds the beginning of this very sweep.

    Args:
        out: the directory.
        file: of the experiment.
        study: what is to be swept.
        resume: whether it may hold a part of this sweep.
        stack: what the user asks for.

    Returns:
        What the sweep there was begun with; None when nothing was trained yet.

    Raises:
        SweepError: it holds something else.
    """
    if (out / "environment.json").exists():
        if not resume:
            raise SweepError(f"{out} holds a sweep already: add --resume to go on with it, or give another --out")
        there = _read_environment(out)
        _require_same(out, there, study)
        if "stack" not in there:
            return None
        begun = Begun(there["stack"], bool(there.get("gpus_per_fit")))
        if stack and begun.stack != stack:
            raise SweepError(
                f"{out} was begun with --stack {begun.stack}, and stacks are what is resumed: leave --stack out to go "
                "on, or give another --out"
            )
        return begun
    if not {path.name for path in out.iterdir()} <= _BEGUN:
        raise SweepError(f"{out} is not empty and holds no sweep: give another --out, so that nothing is overwritten")
    shutil.copyfile(file, out / "experiment.toml")
    write_splits(study.splits, out / "splits.csv")
    write_environment(out, study, {})
    return None


def write_environment(out: Path, study: Study, more: dict[str, object]) -> None:
    """Writes environment.json: what a sweep is, as it begins, and how long it took, at its end.

    What is there and not written anew stays: a resumed sweep has its first beginning.
    """
    document = {
        **_read_environment(out),
        **_identity(study),
        "cohort": study.experiment.data.cohort,
        "store": study.experiment.data.store,
        "left_out": study.left_out,
        "python": sys.version.split()[0],
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "machine": {"platform": platform.platform(), "cpus": available_cpus()},
        "threads_per_fit": 1,
        **more,
    }
    with whole(out / "environment.json") as partial:
        partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _read_environment(out: Path) -> dict[str, Any]:
    path = out / "environment.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise SweepError(f"{path} cannot be read ({error}): a copy damaged it; give another --out") from error


def _identity(study: Study) -> dict[str, object]:
    return {
        "experiment": study.experiment.digest(),
        "spaces": {name: space.key for name, space in study.spaces.items()},
        "fraction": study.fraction,
        "features": _features(study),
        "allow_embedder_overlap": study.allow_overlap,
    }


def _features(study: Study) -> str:
    """sha256 of what is stored of every slide in every space: a slide that was embedded anew changes it."""
    store = FeatureStore.open(study.experiment.data.store)
    slides = [s.slide_id for s in study.splits.slides]
    digests = [r.digest for space in study.spaces.values() for r in store.committed(space.key, slides)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _require_same(out: Path, there: dict[str, Any], study: Study) -> None:
    mine = {"fraction": study.fraction, **_identity(study)}
    begun = {"fraction": 1.0, "allow_embedder_overlap": False, **{key: there[key] for key in mine if key in there}}
    if not (_same_splits(out, study) and begun | {"fraction": None} == mine | {"fraction": None}):
        raise SweepError(
            f"{out} holds a sweep of another experiment, cohort or store, whose results must not be mixed with "
            "this one's: give another --out, or the files that it was begun with"
        )
    if begun != mine:
        raise SweepError(
            f"{out} was begun with --fraction {begun['fraction']:g}, and this is {study.fraction:g}: results on "
            "different shares of the patches must not be mixed; give the same --fraction, or another --out"
        )


def _same_splits(out: Path, study: Study) -> bool:
    with TemporaryDirectory() as folder:
        splits = Path(folder) / "splits.csv"
        write_splits(study.splits, splits)
        return splits.read_bytes() == (out / "splits.csv").read_bytes()
