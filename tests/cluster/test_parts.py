"""What part slides had in the training of models."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.parts import parts_of
from cluster.scoring import SweepModels, open_models
from her2cache.cohort import Slide
from her2cache.store.writer import SlideShape
from tests.scored import COORDS, DIM, SIDE, scored_sweep
from trainers.results import write_csv


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scored_sweep(tmp_path_factory.mktemp("project"))


@pytest.fixture
def models(sweep: Path) -> SweepModels:
    """Of a sweep whose store holds two slides more: the file of s1 under another id, and another file."""
    models = open_models(sweep)
    store, key = models.store, models.space_keys[0]
    same = store.record("s1", key).slide
    for slide_id, slide in (("again", same), ("other", same | {"sha256": "0" * 64})):
        writer = store.writer(SlideShape(slide_id, key, COORDS, 1, DIM, "float16", float(SIDE), slide))
        writer.write(0, np.zeros((1, len(COORDS), DIM), np.float16), np.ones(len(COORDS), np.bool_))
        writer.commit({})
    return models


def _slides(*slide_ids: str) -> list[Slide]:
    return [Slide(slide_id, slide_id, Path(f"{slide_id}.tif"), "HE", None) for slide_id in slide_ids]


def _split(outer: str = "") -> list[dict[str, str]]:
    sides = {"s0": "test", "s1": "train", "s2": "train", "gone": "train"}
    return [{"outer": outer, "slide_id": s, "case_id": f"case-{s}", "split": side} for s, side in sides.items()]


def test_known_by_id_and_by_file(sweep: Path, models: SweepModels, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sweep, tmp_path / "sweep"))
    slides = _slides("s0", "s1", "again", "other", "nowhere")
    assert set(parts_of(slides, models, folder).values()) == {None}  # no table of splits
    write_csv(folder / "splits.csv", _split())
    assert parts_of(slides, models, folder) == {
        "s0": "test",
        "s1": "trained on",
        "again": "trained on",  # the files of all slides of this sweep have the same bytes
        "other": "new",
        "nowhere": "new",
    }
    more = [replace(slide, case_id=f"case-{k}") for slide, k in zip(_slides("a", "b"), ("s0", "s2"), strict=True)]
    assert parts_of(more, models, folder) == {"a": "test", "b": "trained on"}  # other slides of known cases


def test_a_model_of_an_outer_fold(sweep: Path, models: SweepModels, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sweep, tmp_path / "sweep"))
    inside = [{**row, "split": "train"} for row in _split("0")]
    write_csv(folder / "splits.csv", _split())
    write_csv(folder / "nested_splits.csv", [*inside, *_split("1")])
    for outer, part in ((0, "trained on"), (1, "test")):
        nested = replace(models, runs=[{**run, "outer": outer} for run in models.runs])
        assert parts_of(_slides("s0"), nested, folder) == {"s0": part}
