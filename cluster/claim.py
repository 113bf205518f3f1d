"""A sweep's directory as it begins: whose it is, and whether another sweep may go on in it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.limits import available_cpus
from her2cache.errors import SweepError
from trainers.splits import write_splits
from trainers.study import Study

_BEGUN = {"experiment.toml", "splits.csv", ".environment.json"}
"""What a sweep that was killed as it began may have left."""

_PACKAGES = ("her2cache", "numpy", "torch", "ray", "scikit-learn", "pyarrow", "zarr")


def claim(out: Path, file: Path, study: Study, *, resume: bool, stack: int | None) -> int | None:
    """Makes a sweep directory, or checks that the one there holds the beginning of this very sweep.

    Args:
        out: the directory.
        file: of the experiment.
        study: what is to be swept.
        resume: whether it may hold a part of this sweep.
        stack: what the user asks for.

    Returns:
        The stack size that the sweep there was begun with; None when it has none yet. It is kept, because the stack
        is what is resumed, and gives other bits in another size.

    Raises:
        SweepError: it holds something else.
    """
    if (out / "environment.json").exists():
        if not resume:
            raise SweepError(f"{out} holds a sweep already: add --resume to go on with it, or give another --out")
        there: dict[str, Any] = json.loads((out / "environment.json").read_text(encoding="utf-8"))
        _require_same(out, there, study)
        begun = there.get("stack")
        if begun and stack and begun != stack:
            raise SweepError(
                f"{out} was begun with --stack {begun}, and stacks are what is resumed: leave --stack out to go on, or "
                "give another --out"
            )
        return begun
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= _BEGUN):
        raise SweepError(f"{out} is not empty and holds no sweep: give another --out, so that nothing is overwritten")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, out / "experiment.toml")
    write_splits(study.splits, out / "splits.csv")
    write_environment(out, study, {})
    return None


def write_environment(out: Path, study: Study, more: dict[str, object]) -> None:
    """Writes environment.json: what a sweep is, as it begins, and how long it took, at its end."""
    document = {
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
    partial = out / ".environment.json"
    partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    partial.replace(out / "environment.json")


def _identity(study: Study) -> dict[str, object]:
    return {
        "experiment": study.experiment.digest(),
        "spaces": {name: space.key for name, space in study.spaces.items()},
        "fraction": study.fraction,
    }


def _require_same(out: Path, there: dict[str, Any], study: Study) -> None:
    mine = {"fraction": study.fraction, **_identity(study)}
    begun = {key: there.get(key) for key in mine} | {"fraction": there.get("fraction", 1.0)}
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
