"""How well frozen features read the score off the synthetic cohort, measured on the written files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiffslide
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.models import alexnet

from her2cache.cohort import Slide, read_cohort
from her2cache.synthetic.cohort import write_synthetic_cohort
from her2cache.tissue import PRESETS, Overview, find_tissue

CASES = 52
SEEDS = (0, 1, 2)


def tissue_patches(slide: Slide) -> NDArray[np.uint8]:
    """Patches of 96 px that are at least half tissue, (n_patches, 96, 96, 3)."""
    with tiffslide.TiffSlide(slide.path) as reader:
        pixels = np.asarray(reader.read_region((0, 0), 0, reader.level_dimensions[0]).convert("RGB"))
        image = np.asarray(reader.read_region((0, 0), 1, reader.level_dimensions[1]).convert("RGB"))
    rows, columns = pixels.shape[0] // 96, pixels.shape[1] // 96
    y, x = (axis.ravel() * 96.0 for axis in np.mgrid[:rows, :columns])
    mask = find_tissue(Overview(image, np.zeros(image.shape[:2], np.bool_), 4.0), 0.5, PRESETS["he"])
    share = mask.share(np.column_stack([x, y, x + 96, y + 96]))
    patches = pixels.reshape(rows, 96, columns, 96, 3).swapaxes(1, 2).reshape(-1, 96, 96, 3)
    return patches[share >= 0.5]


def mean_features(trunk: torch.nn.Module, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean over the patches of the flattened trunk output, (1024,)."""
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    total = torch.zeros(1024)
    with torch.inference_mode():
        for batch in torch.from_numpy(patches).split(64):
            pixels = (batch.permute(0, 3, 1, 2).float() / 255 - mean) / std  # (batch, 3, 96, 96)
            total += trunk(pixels.contiguous(memory_format=torch.channels_last)).flatten(1).sum(dim=0)
    return (total / len(patches)).numpy()


def colour_statistics(patches: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean and SD of each channel over the slide, and means over patches of the SD within one, (9,)."""
    pixels = patches.reshape(len(patches), -1, 3).astype(np.float64)
    return np.concatenate([pixels.mean(axis=(0, 1)), pixels.std(axis=(0, 1)), pixels.std(axis=1).mean(axis=0)])


def cross_validated_auc(slides: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """AUC of 0 and 1+ against 2+ and 3+ by logistic regression, over 3 x 5 folds of cases."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=2000))
    scores = []
    for repeat in range(3):
        folds = StratifiedKFold(5, shuffle=True, random_state=repeat)
        scores.append(
            roc_auc_score(positive, cross_val_predict(model, slides, positive, cv=folds, method="decision_function"))
        )
    return float(np.mean(scores))


@pytest.mark.slow
def test_morphology_carries_the_score_and_colour_does_not(data: Path, tmp_path: Path) -> None:
    weights = data / "weights" / "alexnet_features_imagenet.pth"
    if not weights.is_file():
        pytest.skip(f"no ImageNet weights at {weights}")
    trunk = alexnet(weights=None).features.eval()
    trunk.load_state_dict(torch.load(weights, weights_only=True))
    trunk = trunk.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    auc: dict[str, list[float]] = {"imagenet": [], "colour": []}
    eligible: list[int] = []
    for seed in SEEDS:
        table = write_synthetic_cohort(tmp_path / str(seed), slides=CASES, seed=seed)
        slides = read_cohort(table).with_stain("HE").slides
        positive = np.array([(slide.her2_score or 0) >= 2 for slide in slides])
        features, colours = [], []
        for slide in slides:
            patches = tissue_patches(slide)
            eligible.append(len(patches))
            features.append(mean_features(trunk, patches))
            colours.append(colour_statistics(patches))
        auc["imagenet"].append(cross_validated_auc(np.stack(features), positive))
        auc["colour"].append(cross_validated_auc(np.stack(colours), positive))

    means = {name: np.mean(values) for name, values in auc.items()}
    print(f"AUC over {len(SEEDS)} cohorts of {CASES} cases: {auc}; eligible patches {min(eligible)} and more")  # noqa: T201
    assert min(eligible) >= 120
    # the latent itself reaches 0.95; the null range of a mean over 3 cohorts is about 0.5 +- 0.1
    assert 0.70 <= means["imagenet"] <= 0.90
    assert 0.30 <= means["colour"] <= 0.62
