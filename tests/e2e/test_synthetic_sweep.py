"""A sweep over 64 synthetic cases: what ImageNet features tell of the score, and that permuted labels tell nothing."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.demo import embed_cohort
from cluster.resources import ray_session
from cluster.sweep import SweepOptions, run_sweep
from her2cache.backbones.registry import load_recipe
from her2cache.cohort import read_cohort, write_cohort
from her2cache.synthetic.cohort import write_synthetic_cohort

CASES = 64

EXPERIMENT = """\
[data]
cohort = "{cohort}"
store = "store"
embedders = ["alexnet-imagenet"]
[splits]
nested = 4
folds = 3
test_slides = 8
[bags]
per_epoch = 640
validation = 320
test = 320
[model]
attention_units = 64
[training]
epochs = 8
learning_rate = [1e-3, 3e-4]
weight_decay = [1e-1]
"""


@pytest.mark.slow
def test_imagenet_features_tell_of_the_score_and_permuted_labels_do_not(data: Path, tmp_path: Path) -> None:
    """The weight decay is far above the paper's: training cases are few, and it is what the validation loss picks."""
    weights = data / "weights" / "alexnet_features_imagenet.pth"
    if not weights.is_file():
        pytest.skip(f"no ImageNet weights at {weights}")
    table = write_synthetic_cohort(tmp_path / "cohort", slides=CASES, seed=0)
    slides = read_cohort(table).with_stain("HE").slides
    assert len({s.case_id for s in slides}) == CASES
    with ray_session():
        embed_cohort(table, tmp_path / "store", [load_recipe(f"alexnet-imagenet={weights}", 96)], lambda _: None)
        truth = headline(tmp_path, "cohort/cohort.csv")
        dealt = np.random.default_rng(0).permutation([s.her2_score for s in slides]).tolist()
        permuted = [replace(s, her2_score=score) for s, score in zip(slides, dealt, strict=True)]
        write_cohort(permuted, tmp_path / "permuted.csv")
        noise = headline(tmp_path, "permuted.csv")
    print(f"macro AUC over {CASES} cases: ImageNet {truth}; labels permuted {noise}")  # noqa: T201
    assert 0.60 <= truth["auc"] <= 0.90
    assert truth["auc"] > truth["chance_auc_high"]
    assert noise["chance_auc_low"] <= noise["auc"] <= noise["chance_auc_high"]


def headline(folder: Path, cohort: str) -> dict[str, float]:
    """The macro AUC of the nested cross-validation, pooled by case, with its ranges."""
    name = Path(cohort).stem
    experiment = folder / f"{name}.toml"
    experiment.write_text(EXPERIMENT.format(cohort=cohort))
    run_sweep(experiment, folder / f"sweep-{name}", SweepOptions())
    with (folder / f"sweep-{name}" / "nested.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    return {key: float(row[key]) for key in ("auc", "auc_low", "auc_high", "chance_auc_low", "chance_auc_high")}
