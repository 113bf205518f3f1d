"""TRIDENT's files (github.com/mahmoodlab/TRIDENT: trident/IO.py, trident/wsi_objects/WSI.py).

{mag}x_{px}px_{ov}px_overlap/
    patches/S_patches.h5   coords int64 with attributes patch_size, patch_size_level0, level0_magnification,
                           target_magnification, overlap, name, savetodir, level0_width, level0_height
    features_ENC/S.h5      the same coords, and features float32 with attributes name, savetodir, encoder

A magnification stands for a scale of 10 / magnification um/px. Older files lack level0_width and level0_height, and
`write` leaves them out where the slide's size is not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from her2cache.errors import ConfigError
from her2cache.interchange.files import Write, array, dataset, hdf5, listed, number, opened, text
from her2cache.interchange.patches import Given, SlidePatches, level0_coords, required, tidy

_FEATURES = "features_"
_SCALE = 10.0  # um/px times magnification


def files(source: Path, embedder: str) -> list[Path]:
    """Feature files of a folder features_ENC, of the only such below it, or of the one of the embedder's name.

    Raises:
        ConfigError: there are several.
    """
    if found := listed(source, "*.h5"):
        return found
    folders = sorted(f for pattern in (f"{_FEATURES}*", f"*/{_FEATURES}*") for f in source.glob(pattern) if f.is_dir())
    named = [f for f in folders if f.name == _FEATURES + embedder]
    if len(named or folders) > 1:
        names = ", ".join(str(f.relative_to(source)) for f in named or folders)
        raise ConfigError(f"{source} holds several folders of features ({names}): name one of them as SOURCE")
    return [path for folder in named or folders for path in listed(folder, "*.h5")]


def read(path: Path, given: Given) -> SlidePatches:
    """Reads features_ENC/S.h5; what its coords do not say is looked for in ../patches/S_patches.h5.

    Raises:
        ConfigError: the file is damaged or not TRIDENT's, or a measure is neither in the files nor given.
    """
    with opened(path) as file:
        features, found = array(file, "features", path), dataset(file, "coords", path)
        coords = level0_coords(array(file, "coords", path), path)
        made_by = text(file["features"].attrs, "encoder")
        described: Mapping[str, Any] = {**_sidecar(path), **found.attrs}
    patch_px = required(
        given.patch_px or number(described, "patch_size", path), path, "how large its patches are", "--patch-px"
    )
    magnification = number(described, "target_magnification", path)
    mpp = given.mpp or (None if magnification is None else tidy(_SCALE / magnification))
    mpp = required(mpp, path, "the scale of its patches", "--mpp")
    side = given.patch_level0_px or number(described, "patch_size_level0", path)
    side = required(side, path, "how large its patches are at level 0", "--patch-level0-px")
    overlap = number(described, "overlap", path, least=-0.5)
    width, height = (number(described, f"level0_{name}", path) for name in ("width", "height"))
    folder = path.parent.name
    return SlidePatches(
        features=features,
        coords=coords,
        patch_level0_px=side,
        patch_px=round(patch_px),
        mpp=mpp,
        slide_mpp=given.slide_mpp or mpp * patch_px / side,
        overlap_px=None if overlap is None else round(overlap),
        size=None if width is None or height is None else (round(width), round(height)),
        made_by=made_by or (folder.removeprefix(_FEATURES) if folder.startswith(_FEATURES) else None),
    )


def write(out: Path, slide_id: str, patches: SlidePatches, embedder: str) -> dict[Path, Write]:
    """patches/ and features_ENC/ of a slide, features as float32."""
    magnification, overlap = _SCALE / patches.mpp, patches.overlap_px or 0
    folder = out / f"{magnification:g}x_{patches.patch_px}px_{overlap}px_overlap"
    features_folder = folder / f"{_FEATURES}{re.sub(r'[^A-Za-z0-9._-]', '_', embedder)}"
    described: dict[str, Any] = {
        "patch_size": np.int64(patches.patch_px),
        "patch_size_level0": _whole(patches.patch_level0_px),
        "level0_magnification": _nominal(magnification * patches.patch_level0_px / patches.patch_px),
        "target_magnification": _nominal(magnification),
        "overlap": np.int64(overlap),
        "name": slide_id,
        "savetodir": str(folder),
    }
    if patches.size is not None:
        described |= {"level0_width": np.int64(patches.size[0]), "level0_height": np.int64(patches.size[1])}
    coords = (patches.coords.astype(np.int64), described)
    of_features = {"name": slide_id, "savetodir": str(features_folder), "encoder": embedder}
    features = patches.features.astype(np.float32, copy=False)
    return {
        folder / "patches" / f"{slide_id}_patches.h5": hdf5({"coords": coords}),
        features_folder / f"{slide_id}.h5": hdf5({"features": (features, of_features), "coords": coords}),
    }


def _sidecar(path: Path) -> dict[str, Any]:
    """Attributes of patches/S_patches.h5 beside a folder of features; none where there is no such file."""
    beside = path.parent.parent / "patches" / f"{path.stem}_patches.h5"
    if not beside.is_file():
        return {}
    with opened(beside) as file:
        return dict(dataset(file, "coords", beside).attrs)


def _whole(value: float) -> np.int64 | float:
    """An integer where it is one, as TRIDENT writes it."""
    return np.int64(value) if float(value).is_integer() else float(value)


def _nominal(magnification: float) -> np.int64 | float:
    """An integer where the magnification is one but for rounding."""
    return _whole(tidy(magnification) if tidy(magnification).is_integer() else magnification)
