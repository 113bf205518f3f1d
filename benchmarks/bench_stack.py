"""R configurations in one stack over R separate runs, and what the paper's grid takes.

A step is the gather of 64 bags x 100 patches x 1,024 from stored float16, forward, backward and Adam; an epoch is 100
steps and 2,500 validation bags. The grid of one embedder, 20 configurations x 5 folds x 50 epochs, is extrapolated
from the measured step and validation of a stack of 20 on all cores; it is not run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks import bench_evaluate
from benchmarks.bench_train import BAGS, CLASSES, DIM, SIZE, THREADS, UNITS, stored_features, stored_step
from benchmarks.harness import Row, interleaved, main, times_faster
from her2cache.bags import BagSampler
from trainers.evaluation import FixedBags
from trainers.features import FeatureRows
from trainers.fit import PART_BAGS
from trainers.model import AttentionMIL
from trainers.stack import Configuration, Stack

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
    return rows


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
