"""torchmil's files (github.com/Franblueee/torchmil: torchmil/datasets/processed_mil_dataset.py, wsi_dataset.py).

features/S.npy      float32 (n, dim)
labels/S.npy        int64 (1,), the HER2 score, 0 to 3
inst_labels/S.npy   int64 (n,), -1: a patch has no label of its own (torchmil's word for unknown)
coords/S.npy        int64 (n, 2), level-0 px

WSIDataset (in its repository; torchmil 1.0.2 comes without) divides coordinates by its patch_size; ProcessedMILDataset
takes them as they are, and compares distances with dist_thr. `patch_size` and `dist_thr` say what to pass.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from her2cache.errors import ConfigError
from her2cache.interchange.files import Write, npy
from her2cache.interchange.patches import SlidePatches
from her2cache.units import Coords

_NEIGHBOUR = 1.5
"""Patches within this distance, in sides, are neighbours: the eight around one. torchmil's default."""


def write(out: Path, slide_id: str, patches: SlidePatches, _embedder: str) -> dict[Path, Write]:
    """The four files of a slide.

    Raises:
        ConfigError: the slide has no label.
    """
    if patches.her2_score is None:
        raise ConfigError(
            f"slide {slide_id!r} has no label: the cohort does not list it, or not its her2_score; fill that in, or"
            " name the slides to export with --slide"
        )
    n, name = len(patches.coords), f"{slide_id}.npy"
    return {
        out / "labels" / name: npy(np.array([patches.her2_score], np.int64)),
        out / "inst_labels" / name: npy(np.full(n, -1, np.int64)),
        out / "coords" / name: npy(patches.coords.astype(np.int64)),
        out / "features" / name: npy(patches.features.astype(np.float32, copy=False)),
    }


def patch_size(coords: Coords, side: float) -> float:
    """The patch_size of WSIDataset by which every patch of a slide comes to its place on the grid.

    WSIDataset cuts off what is left of its divisions. Coordinates that are whole multiples of the side need that side.
    Others come a little below or above their places, by a fraction of a px or by the rounding of a quotient; they need
    the largest divisor by which none comes below.

    Args:
        coords: level-0 (x, y), int32 (n, 2).
        side: of a patch, level-0 px.
    """
    if not (coords % side).any():
        return side
    steps = coords.astype(np.int64) - coords.min(axis=0)  # (n, 2)
    cells = np.rint(steps / side)
    beyond = cells > 0
    return float((steps[beyond] / cells[beyond]).min(initial=side)) * (1 - 1e-9)


def dist_thr(side: float) -> float:
    """The dist_thr of ProcessedMILDataset that makes the eight patches around one its neighbours, level-0 px."""
    return _NEIGHBOUR * side
