"""2,500 fixed bags of 100 patches, from 8 slides of 5,000: by patch scores, against the direct forward pass.

By patch scores is what validation does after every epoch: each patch that a bag holds is scored once, and a bag is
index arithmetic. The rival gathers the instances of each bag from the same stored float16 features and runs the
model on them. Both on two threads, both give the same losses.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.harness import Row, interleaved, main, times_faster
from her2cache.bags import BagSampler
from trainers.evaluation import FixedBags
from trainers.features import FeatureRows
from trainers.feeds import PART_BAGS
from trainers.model import AttentionMIL
from trainers.stack import Configuration, Stack

BAGS, SIZE, DIM, UNITS, CLASSES = 2_500, 100, 1024, 256, 4
SLIDES, PATCHES = 8, 5_000
THREADS = 2


def stored_features(folder: Path) -> dict[str, list[np.memmap]]:
    """Memory-mapped float16 like a trained AlexNet's features: no negatives, many zeros."""
    rng = np.random.default_rng(0)
    maps: dict[str, list[np.memmap]] = {}
    for i in range(SLIDES):
        path, shape = folder / f"{i}.f16", (PATCHES, DIM)
        np.maximum(rng.standard_normal(shape, np.float32) - 0.67, 0).astype(np.float16).tofile(path)
        maps[f"slide_{i}"] = [np.memmap(path, np.float16, "r", shape=shape)]
    return maps


def measure() -> list[Row]:
    torch.set_num_threads(THREADS)
    model = AttentionMIL.seeded(DIM, CLASSES, UNITS, seed=0)
    labels = [i % CLASSES for i in range(SLIDES)]
    with tempfile.TemporaryDirectory() as folder:
        features = stored_features(Path(folder))
        sampler = BagSampler(dict.fromkeys(features, PATCHES), SIZE, seed=0)
        bags = sampler.fixed(BAGS, "validation")
        fixed = FixedBags(bags, labels)
        rows = FeatureRows(features, sampler.slides, PART_BAGS * SIZE)
        stacks = {runs: Stack(model, [Configuration(1e-4, 1e-5)] * runs) for runs in (1, 20)}

        def by_scores(runs: int) -> Callable[[], list[float]]:
            return lambda: [fixed.loss_and_accuracy(s)[0] for s in stacks[runs].patch_scores(fixed.blocks(rows))]

        @torch.inference_mode()
        def directly() -> float:
            loss, classes = 0.0, torch.tensor(labels)
            for start in range(0, BAGS, PART_BAGS):
                part = bags[start : start + PART_BAGS]
                loss += float(cross_entropy(model(rows.bags(part)), classes[part.slide], reduction="sum"))
            return loss / BAGS

        losses = by_scores(1)()[0], directly()
        assert abs(losses[0] - losses[1]) < 1e-4, losses
        times = interleaved({"scores": by_scores(1), "scores 20": by_scores(20), "direct": directly}, rounds=7)
    what = f"{BAGS} bags of {SIZE} from {SLIDES} slides x {PATCHES:,}"
    return [
        times_faster(f"{what}: by patch scores over the direct forward pass", times["scores"], times["direct"], bar=3),
        times_faster(
            f"{what}: of a stack of 20 models, over 20 direct forward passes", times["scores 20"], 20 * times["direct"]
        ),
    ]


if __name__ == "__main__":
    main("bench_evaluate: fixed bags by patch scores", measure)
