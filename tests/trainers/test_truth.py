"""Truth maps: the share of tumour under a patch, and the AUC of a map against it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from her2cache.errors import CohortError
from trainers.truth import TruthMap, truth_auc

FRACTION = np.random.default_rng(3).random((5, 7))


def on_pixels(coords: list[tuple[int, int]], side: int) -> list[float]:
    """The mean over the pixels of a patch, cells being 96 px."""
    pixels = np.repeat(np.repeat(FRACTION, 96, axis=0), 96, axis=1)
    return [float(pixels[y : y + side, x : x + side].mean()) for x, y in coords]


@pytest.mark.parametrize("side", [96, 48, 130, 200])
def test_the_share_under_a_patch_anywhere(side: int) -> None:
    coords = [(0, 0), (96, 96), (17, 203), (7 * 96 - side, 5 * 96 - side), (300, 5)]
    found = TruthMap(FRACTION, 48.0).of_patches(np.array(coords, np.int32), side, 0.5)
    assert found == pytest.approx(on_pixels(coords, side))


def test_scales_other_than_that_of_the_map() -> None:
    found = TruthMap(FRACTION, 48.0).of_patches(np.array([[192, 384]], np.int32), 192.0, 0.25)
    assert found == pytest.approx([FRACTION[2, 1]])


def test_nothing_is_said_beyond_the_map() -> None:
    truth = TruthMap(FRACTION, 48.0)
    assert np.isnan(truth.of_patches(np.array([[7 * 96 - 90, 0], [0, 5 * 96 - 50]], np.int32), 96.0, 0.5)).all()


def test_auc() -> None:
    rng = np.random.default_rng(0)
    tumour, values = rng.random(60), rng.random(60)
    tumour[:5], values[5:9] = np.nan, np.nan
    assert truth_auc(values, tumour) == pytest.approx(roc_auc_score(tumour[9:] >= 0.5, values[9:]))
    assert truth_auc(np.arange(4.0), np.array([0.1, 0.2, 0.7, 0.9])) == 1
    assert truth_auc(np.arange(4.0), np.array([0.6, 0.7, 0.8, 0.9])) is None


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, tumour_fraction=FRACTION.astype(np.float32), patch_px=np.int32(96), mpp=np.float64(0.5))
    truth = TruthMap.read(path)
    assert truth.cell_um == 48
    assert truth.fraction == pytest.approx(FRACTION, abs=1e-6)
    np.savez(tmp_path / "other.npz", x=FRACTION)
    (tmp_path / "broken.npz").write_bytes(b"PK")
    for name in ("other.npz", "broken.npz", "missing.npz"):
        with pytest.raises(CohortError, match="cannot be read as a truth map"):
            TruthMap.read(tmp_path / name)
