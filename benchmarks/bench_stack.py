"""R configurations in one stack over R separate runs, and what the paper's grid takes.

A step is the gather of 64 bags x 100 patches x 1,024 from stored float16, forward, backward and Adam; an epoch is 100
steps and 2,500 validation bags. On the processor the grid of one embedder, 20 configurations x 5 folds x 50 epochs, is
extrapolated from the measured step and validation of a stack of 20 on all cores; it is not run. Where there is a GPU
whole epochs are timed there, features of 44 slides x 7,000 patches x 8 views resident, and all 50 epochs of one fold of
the grid are run; the five folds are extrapolated from that one.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import bench_evaluate
from benchmarks.bench_train import BAGS, CLASSES, DIM, SIZE, THREADS, UNITS, stored_features, stored_step
from benchmarks.harness import Row, interleaved, main, times_faster
from her2cache.bags import BagSampler
from trainers.config import BagsSection, ModelSection, TrainingSection
from trainers.evaluation import FixedBags
from trainers.features import FeatureRows
from trainers.feeds import PART_BAGS
from trainers.fit import Fit, fit
from trainers.model import AttentionMIL
from trainers.plan import FitPlan
from trainers.splits import Assignment
from trainers.stack import Configuration, Stack
from trainers.tasks import find_task

RUNS = (1, 5, 20)
FOLDS, EPOCHS, STEPS = 5, 50, 100


def measure() -> list[Row]:
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        features = stored_features(Path(folder))
        times = interleaved({str(r): stored_step(features, r) for r in RUNS}, rounds=21, warm_up=2)
    validation = validation_seconds(max(RUNS))
    rows = [
        times_faster(
            f"a step of {r} stacked configurations over {r} separate steps ({BAGS} x {SIZE} x {DIM})",
            times[str(r)],
            r * times["1"],
        )
        for r in RUNS[1:]
    ]
    grid = FOLDS * EPOCHS * (STEPS * times["20"] + validation)
    alone = FOLDS * EPOCHS * 20 * (STEPS * times["1"] + validation_seconds(1))
    name = "the paper's grid of one embedder (20 x 5 folds x 50 epochs), extrapolated, stacked over separate runs"
    rows.append(Row(name, grid / 3600, "h", alone / 3600, alone / grid, "higher"))
    return [*rows, *(gpu_rows() if torch.cuda.is_available() else [])]


def gpu_rows() -> list[Row]:
    """The same on a GPU, from resident features."""
    device = torch.device("cuda")
    name = torch.cuda.get_device_name(device)
    grid = [Configuration(lr, wd) for lr in (1e-3, 1e-4, 1e-5, 1e-6) for wd in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)]
    features = paper_features()
    plans = {r: paper_plan(tuple(grid[:r])) for r in RUNS}
    fits = {r: Fit(plan, features, device) for r, plan in plans.items()}

    def epoch(r: int) -> Callable[[], None]:
        def run() -> None:
            fits[r].epoch()
            torch.cuda.synchronize()

        return run

    times = interleaved({str(r): epoch(r) for r in RUNS}, rounds=9, warm_up=2)
    rows = [
        times_faster(
            f"{name}: an epoch of {r} stacked configurations over {r} separate epochs",
            times[str(r)],
            r * times["1"],
            bar=10 if r == 20 else None,
        )
        for r in RUNS[1:]
    ]
    fits.clear()
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        fit(plans[20], features, Path(folder), device=device)
        one = time.perf_counter() - start
    alone = FOLDS * EPOCHS * 20 * times["1"]
    what = f"{name}: the paper's grid of one embedder, 5 times a fold of 50 epochs that was run, over separate runs"
    return [*rows, Row(what, FOLDS * one, "s", alone, alone / (FOLDS * one), "higher")]


def paper_features(views: int = 8) -> dict[str, list[NDArray[np.float16]]]:
    """44 slides of 7,000 patches; the views of a slide are one array here, and as many on the device as in life."""
    rng = np.random.default_rng(0)
    features: dict[str, list[NDArray[np.float16]]] = {}
    for slide in range(44):
        drawn = rng.standard_normal((7_000, DIM), np.float32)
        features[f"slide_{slide}"] = [np.maximum(drawn - 0.67, 0).astype(np.float16)] * views
    return features


def paper_plan(configurations: tuple[Configuration, ...]) -> FitPlan:
    """A fold of the paper's experiment: 35 slides to train on, 9 to validate."""
    slides = tuple(Assignment(f"slide_{i}", f"case_{i}", i % CLASSES, i % CLASSES, "train", i // 9) for i in range(44))
    return FitPlan(
        space_key="0" * 16,
        embedder="drawn",
        fold=0,
        training=slides[9:],
        validation=slides[:9],
        configurations=configurations,
        task=find_task("four"),
        bags=BagsSection(),
        settings=TrainingSection(epochs=EPOCHS),
        model=ModelSection(),
        experiment="benchmark",
    )


def validation_seconds(runs: int) -> float:
    """Median seconds of the validation after an epoch."""
    with tempfile.TemporaryDirectory() as folder:
        features = bench_evaluate.stored_features(Path(folder))
        sampler = BagSampler(dict.fromkeys(features, bench_evaluate.PATCHES), SIZE, seed=0)
        fixed = FixedBags(
            sampler.fixed(bench_evaluate.BAGS, "validation"), (np.arange(len(features)) % CLASSES).tolist()
        )
        rows = FeatureRows(features, sampler.slides, PART_BAGS * SIZE)
        stack = Stack(AttentionMIL.seeded(DIM, CLASSES, UNITS, seed=0), [Configuration(1e-4, 1e-5)] * runs)

        def validate() -> list[float]:
            return [fixed.loss_and_accuracy(s)[0] for s in stack.patch_scores(fixed.blocks(rows))]

        return interleaved({"validation": validate}, rounds=5)["validation"]


if __name__ == "__main__":
    main("bench_stack: configurations trained in lockstep", measure)
