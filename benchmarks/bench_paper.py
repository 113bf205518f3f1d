"""The paper's whole experiment through the command, on a GPU: 4 embedders x 5 folds x a grid of 20 x 50 epochs.

The store is drawn: 52 slides of 5,000 patches, float16 features of 1,024 numbers, four feature spaces. What is timed is
`her2cache sweep` from start to tables; against it stand as many fits as it trains, one after the other, each as
long as one that was run alone before. On the processor this takes a day, so it asks for a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.bench_stack import paper_plan
from benchmarks.harness import Row, main
from her2cache.cohort import Slide, write_cohort
from her2cache.embedder import EmbedderSpec, FeatureSpace
from her2cache.store.reader import FeatureStore
from her2cache.store.writer import SlideShape
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from trainers.config import TrainingSection
from trainers.features import stored_features
from trainers.fit import fit

SLIDES, PATCHES, DIM, FOLDS = 52, 5_000, 1024, 5
EMBEDDERS = ("random", "pcam", "ihc", "imagenet")
SIGNAL = 0.4  # of a twentieth of the patches, in the direction of their slide's score


def draw_store(folder: Path) -> None:
    """Writes cohort.csv, store and experiment.toml."""
    slides = [
        Slide(f"s{i:02d}", f"case{i:02d}", folder / f"s{i:02d}.svs", "HE", her2_score=i % 4) for i in range(SLIDES)
    ]
    write_cohort(slides, folder / "cohort.csv")
    store = FeatureStore.create(folder / "store")
    coords = np.stack([np.arange(PATCHES) % 100 * 96, np.arange(PATCHES) // 100 * 96], axis=1).astype(np.int32)
    for k, name in enumerate(EMBEDDERS):
        spec = EmbedderSpec(name, DIM, 96, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), f"{k}" * 64)
        space = FeatureSpace(PatchSpec(), preset("HE"), spec, views=1)
        store.add_space(space)
        for i, slide in enumerate(slides):
            v = np.random.default_rng((k, i)).standard_normal((1, PATCHES, DIM), np.float32)
            v[:, ::20, 8 * (i % 4) : 8 * (i % 4) + 8] += SIGNAL * k
            writer = store.writer(SlideShape(slide.slide_id, space.key, coords, 1, DIM, "float16", 96.0, {}))
            writer.write(0, v.astype(np.float16), np.ones(PATCHES, np.bool_))
            writer.commit({})
    names = ", ".join(f'"{name}"' for name in EMBEDDERS)
    text = f'[data]\ncohort = "cohort.csv"\nstore = "store"\nembedders = [{names}]\n'
    (folder / "experiment.toml").write_text(text)


def alone(folder: Path) -> float:
    """Seconds of one fit of the grid on the GPU, nothing else running."""
    store = FeatureStore.open(folder / "store")
    space = store.find_space(EMBEDDERS[-1])
    grid = TrainingSection().grid()
    plan = replace(paper_plan(grid), space_key=space.key)
    ids = store.slides(space.key)
    slides = [replace(s, slide_id=ids[k]) for k, s in enumerate(plan.validation + plan.training)]
    plan = replace(plan, validation=tuple(slides[:9]), training=tuple(slides[9:]))
    start = time.perf_counter()
    fit(plan, stored_features(str(folder / "store"), space.key, ids), folder / "alone", device="cuda")
    return time.perf_counter() - start


def sweep(folder: Path) -> float:
    """Wall time of the command."""
    command = [
        sys.executable,
        "-c",
        "from cluster.cli.main import main; main()",
        "sweep",
        "experiment.toml",
        "--out",
        "sweep",
        "--json",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, check=True)
    seconds = time.perf_counter() - start
    items = json.loads(done.stdout)["items"]
    assert [item["status"] for item in items] == ["done"] * (len(EMBEDDERS) * FOLDS * 20), items[:3]
    return seconds


def measure() -> list[Row]:
    if not torch.cuda.is_available():
        raise SystemExit(
            "bench_paper runs the paper's 400 fits and wants a GPU; bench_stack says what a CPU would take"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_store(folder)
        one = alone(folder)
        wall = sweep(folder)
    fits = len(EMBEDDERS) * FOLDS
    what = f"{torch.cuda.get_device_name()}: the paper's sweep of 400 runs, wall, over its {fits} stacks one by one"
    return [Row(what, wall, "s", fits * one, wall / (fits * one), "lower")]


if __name__ == "__main__":
    main("bench_paper: the paper's whole experiment on a GPU", measure)
