"""CLAM's files (github.com/mahmoodlab/CLAM: create_patches_fp.py, extract_features_fp.py, utils/file_utils.py).

patches/S.h5    coords (level 0) with attributes patch_size, patch_level, downsample, downsampled_level_dim, level_dim,
                name, save_path; patch_size is a side at patch_level
h5_files/S.h5   features float32 (n, dim), coords int32 (n, 2), no attributes
pt_files/S.pt   the features alone, as a tensor

Nothing says the scale of the patches. `write` adds one attribute, patch_level0_px: a side at a level is a whole number,
which ours need not be. It leaves the two sizes of the level out where the slide's is not known; CLAM takes them from
the slide itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2cache.errors import ConfigError
from her2cache.interchange.files import Write, array, dataset, hdf5, listed, number, opened
from her2cache.interchange.patches import Given, SlidePatches, level0_coords, required
from her2cache.units import Coords

_ANISOTROPY = 0.01


def files(source: Path, _embedder: str) -> list[Path]:
    """Feature files of a folder that holds h5_files/ or pt_files/, or is one of them; .h5 comes before .pt."""
    folders = [source / "h5_files", source, source / "pt_files"]
    return next((found for f in folders for kind in ("*.h5", "*.pt") if (found := listed(f, kind))), [])


def read(path: Path, given: Given) -> SlidePatches:
    """Reads h5_files/S.h5, or pt_files/S.pt with the coordinates of patches/S.h5.

    Raises:
        ConfigError: the file is damaged or not CLAM's, or a measure is neither in the files nor given.
    """
    patching = None if given.patches is None else _read_patching(given.patches, path.stem)
    if path.suffix == ".pt":
        if patching is None:
            raise ConfigError(
                f"{path} holds features without coordinates, so nothing is known of where its patches lie; give the"
                " folder of CLAM's coordinates with --patches"
            )
        from her2cache.interchange.tensors import read_tensor

        features, coords = read_tensor(path), patching.coords
    else:
        with opened(path) as file:
            features, coords = array(file, "features", path), level0_coords(array(file, "coords", path), path)
    if patching is not None and not np.array_equal(patching.coords, coords):
        raise ConfigError(
            f"{path}: its patches are not those of {patching.path}: the slide was cut into patches anew since; name the"
            " folder that belongs to these features with --patches"
        )
    remedy = "--patches DIR, the folder of CLAM's coordinates, or"
    side_px = None if patching is None else patching.patch_size
    patch_px = required(given.patch_px or side_px, path, "how large its patches are", f"{remedy} --patch-px")
    side = given.patch_level0_px or (None if patching is None else patching.patch_level0_px)
    side = required(side, path, "how large its patches are at level 0", f"{remedy} --patch-level0-px")
    mpp = required(given.mpp, path, "the scale of its patches", "--mpp (0.5 at 20x, 0.25 at 40x)")
    return SlidePatches(
        features=features,
        coords=coords,
        patch_level0_px=side,
        patch_px=round(patch_px),
        mpp=mpp,
        slide_mpp=given.slide_mpp or mpp * patch_px / side,
        level=0 if patching is None else patching.level,
        downsample=1.0 if patching is None else patching.downsample,
        size=None if patching is None else patching.size,
    )


def write(out: Path, slide_id: str, patches: SlidePatches, _embedder: str) -> dict[Path, Write]:
    """patches/, pt_files/ and h5_files/ of a slide, features as float32."""
    from her2cache.interchange.tensors import write_tensor

    down = patches.downsample
    described: dict[str, Any] = {
        "patch_size": np.int64(max(1, round(patches.patch_level0_px / down))),
        "patch_level": np.int64(patches.level),
        "downsample": np.array([down, down]),
        "name": slide_id,
        "save_path": str(out / "patches"),
        "patch_level0_px": float(patches.patch_level0_px),
    }
    if patches.size is not None:
        level_dim = np.array([max(1, round(side / down)) for side in patches.size], np.int64)
        described |= {"downsampled_level_dim": level_dim, "level_dim": level_dim}
    features = patches.features.astype(np.float32, copy=False)
    return {
        out / "patches" / f"{slide_id}.h5": hdf5({"coords": (patches.coords.astype(np.int64), described)}),
        out / "pt_files" / f"{slide_id}.pt": partial(write_tensor, features),
        out / "h5_files" / f"{slide_id}.h5": hdf5({"features": (features, {}), "coords": (patches.coords, {})}),
    }


@dataclass(frozen=True)
class _Patching:
    """What patches/S.h5 says: coords int32 (n, 2) level-0 px, the side of a patch at its level, and that level."""

    path: Path
    coords: Coords
    patch_size: float
    level: int
    downsample: float
    patch_level0_px: float
    size: tuple[int, int] | None


def _read_patching(folder: Path, name: str) -> _Patching:
    path = next((p for p in (folder / f"{name}.h5", folder / "patches" / f"{name}.h5") if p.is_file()), None)
    if path is None:
        raise ConfigError(f"{folder} has no {name}.h5: the slide was not cut into patches there; correct --patches")
    with opened(path) as file:
        attributes = dict(dataset(file, "coords", path).attrs)
        coords = level0_coords(array(file, "coords", path), path)
    remedy = "another --patches, or give sizes instead"
    side = required(number(attributes, "patch_size", path), path, "the side of its patches", remedy)
    level = required(number(attributes, "patch_level", path, least=-0.5), path, "the level of its patches", remedy)
    down = _downsample(attributes.get("downsample", 1.0 if level == 0 else None), path)
    dims = np.asarray(attributes.get("level_dim", ()))
    size = (int(dims[0]), int(dims[1])) if level == 0 and dims.shape == (2,) and dims.dtype.kind in "iu" else None
    exact = number(attributes, "patch_level0_px", path)
    return _Patching(path, coords, side, int(level), down, exact or side * down, size)


def _downsample(value: Any, path: Path) -> float:
    """Level-0 px per px of a level, which CLAM writes for x and y."""
    both: NDArray[Any] = np.asarray(np.nan if value is None else value)
    sound = both.dtype.kind in "iuf" and both.size in {1, 2} and np.isfinite(both).all() and both.min() > 0
    if sound and both.max() / both.min() - 1 <= _ANISOTROPY:
        return float(both.mean())
    raise ConfigError(
        f"{path}: attribute downsample is {value!r}, not how much smaller a level is: make the file again, or give"
        " --patch-px and --patch-level0-px instead of --patches"
    )
