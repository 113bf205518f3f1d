"""The bars of real PatchCamelyon patches: a held-out AUC from ImageNet's trunk, and from a random one."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from her2cache.weights import read_card
from trainers.pretraining.loop import PretrainSettings, pretrain
from trainers.pretraining.pcam import open_pcam

RESULTS = Path(__file__).parents[3] / "benchmarks/results"
BARS = {"imagenet": 0.88, "random": 0.80}
SEEDS = (0, 1, 2)


@pytest.mark.soak
def test_held_out_auc_of_three_seeds(data: Path, tmp_path: Path) -> None:
    task = open_pcam(data / "pcam/pcam_labelled_1207.npz")
    trunk = torch.load(data / "weights/alexnet_features_imagenet.pth", weights_only=True)
    inits = {"random": None, "imagenet": {name: t.numpy() for name, t in trunk.items()}}
    start, runs = time.monotonic(), list[dict[str, Any]]()
    for init, tensors in inits.items():
        for seed in SEEDS:
            out = tmp_path / f"{init}-{seed}.safetensors"
            epochs = list(pretrain(task, PretrainSettings(seed=seed), out, init=tensors, threads=2))
            card = read_card(out)
            assert card is not None
            runs.append(
                {"init": init, "seed": seed, "epochs": len(epochs), "best_epoch": card.settings["best_epoch"]}
                | {name: round(value, 4) for name, value in card.metrics.items()}
            )
    means = {init: statistics.mean(run["auc_roc"] for run in runs if run["init"] == init) for init in inits}
    report = {
        "patches": {"train": task.train.size, "valid": task.valid.size, "test": task.test.size},
        "split": "by sha256 of the patch bytes; no slide ids, so none by patient",
        "settings": asdict(PretrainSettings()),
        "mean_auc_roc": {init: round(mean, 4) for init, mean in means.items()},
        "bars": BARS,
        "runs": runs,
        "seconds": round(time.monotonic() - start),
    }
    (RESULTS / "pretrain_pcam.json").write_text(json.dumps(report, indent=2) + "\n")
    assert all(means[init] >= bar for init, bar in BARS.items()), means
