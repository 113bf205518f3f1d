"""Files of other tools, made by hand after their own code: nothing of ours writes here."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

N, DIM = 12, 6


def grid(n: int = N, side: int = 512) -> NDArray[np.int64]:
    """Level-0 (x, y) of n patches column by column, as CLAM and TRIDENT have them; int64 (n, 2)."""
    return np.stack([np.arange(n) // 4 * side, np.arange(n) % 4 * side], axis=1)


def features(n: int = N, seed: int = 0, dim: int = DIM) -> NDArray[np.float32]:
    """Drawn features that float16 cannot hold, float32 (n, dim)."""
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def clam_slide(
    folder: Path, name: str, *, seed: int = 0, level: int = 1, coords: NDArray[np.int64] | None = None
) -> None:
    """h5_files/, pt_files/ and patches/ of a slide; patches of 256 px at a level that is `2 ** level` times smaller."""
    import torch

    at = grid() if coords is None else coords
    found = features(len(at), seed)
    for part in ("h5_files", "pt_files", "patches"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "h5_files" / f"{name}.h5", "w") as file:
        file.create_dataset("features", data=found, maxshape=(None, found.shape[1]), chunks=(1, found.shape[1]))
        file.create_dataset("coords", data=at.astype(np.int32), maxshape=(None, 2), chunks=(1, 2))
    torch.save(torch.from_numpy(found), folder / "pt_files" / f"{name}.pt")
    down = float(2**level)
    with h5py.File(folder / "patches" / f"{name}.h5", "w") as file:
        made = file.create_dataset("coords", data=at, maxshape=(None, 2), chunks=(1, 2))
        made.attrs["patch_size"] = 256
        made.attrs["patch_level"] = level
        made.attrs["downsample"] = (down, down)
        made.attrs["downsampled_level_dim"] = (int(8192 / down), int(4096 / down))
        made.attrs["level_dim"] = (int(8192 / down), int(4096 / down))
        made.attrs["name"] = name
        made.attrs["save_path"] = "/somewhere/patches"


def trident_slide(folder: Path, name: str, *, seed: int = 0, whole: bool = True, **changed: object) -> Path:
    """features_uni_v1/ and patches/ of a slide below 20x_256px_0px_overlap; the features file.

    Args:
        folder: the job's.
        name: of the slide.
        seed: of its features.
        whole: whether the file of features has the attributes of its coordinates as well.
        changed: attributes that are others than usual.
    """
    attributes: dict[str, object] = {
        "patch_size": 256,
        "patch_size_level0": 512,
        "level0_magnification": 40,
        "target_magnification": 20,
        "overlap": 0,
        "name": name,
        "savetodir": "/somewhere/20x_256px_0px_overlap",
        "level0_width": 8192,
        "level0_height": 4096,
    } | changed
    base = folder / "20x_256px_0px_overlap"
    for part in ("patches", "features_uni_v1"):
        (base / part).mkdir(parents=True, exist_ok=True)
    with h5py.File(base / "patches" / f"{name}_patches.h5", "w") as file:
        file.create_dataset("coords", data=grid(), maxshape=(None, 2), chunks=(1, 2)).attrs.update(attributes)
    path = base / "features_uni_v1" / f"{name}.h5"
    with h5py.File(path, "w") as file:
        made = file.create_dataset("features", data=features(seed=seed), maxshape=(None, DIM), chunks=(1, DIM))
        made.attrs.update({"name": name, "savetodir": "/somewhere", "encoder": "uni_v1"})
        coords = file.create_dataset("coords", data=grid(), maxshape=(None, 2), chunks=(1, 2))
        if whole:
            coords.attrs.update(attributes)
    return path


def stamp_slide(folder: Path, name: str, *, seed: int = 0, side_um: float = 256.0, version: str = "2.3.0") -> Path:
    """S.h5 with patches of `side_um` um and 224 px; before 2.1 `tile_size` says their side."""
    path = folder / f"{name}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.stack([np.arange(N) // 4, np.arange(N) % 4], axis=1)
    with h5py.File(path, "w") as file:
        file["coords"] = (cells * side_um).astype(np.float32)
        file["feats"] = features(seed=seed).astype(np.float16)
        file.attrs["stamp_version"] = version
        file.attrs["extractor"] = "uni2"
        file.attrs["unit"] = "um"
        if version < "2.1":
            file.attrs["tile_size"] = side_um
        else:
            file.attrs["tile_size_um"] = side_um
            file.attrs["tile_size_px"] = 224
            file.attrs["code_hash"] = "0a1b2c3d"
            file.attrs["feat_type"] = "tile"
    return path
