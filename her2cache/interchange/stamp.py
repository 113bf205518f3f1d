"""STAMP's files (github.com/KatherLab/STAMP: src/stamp/preprocessing/__init__.py, modeling/data.py).

S.h5    coords float32 (n, 2) in um, feats float16 (n, dim); attributes of the file: stamp_version, extractor,
        unit="um", tile_size_um, tile_size_px, code_hash, feat_type="tile"

Versions: since 2.1 as above; 2.0 has tile_size with unit="um" instead of tile_size_um, and may lack tile_size_px (then
--patch-px gives it); before 2.0 there is no unit, and such files are refused. STAMP itself refuses files of a version
later than its own, so `write` names the first version of this layout. It adds one attribute, patch_mpp: a patch is as
large as the slide's level makes it, so sides in um differ a little from slide to slide where the scale that was asked
for, which decides the space, does not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2cache.errors import ConfigError
from her2cache.interchange.files import Write, array, hdf5, listed, number, opened, text
from her2cache.interchange.patches import Features, Given, SlidePatches, level0_coords, required, tidy
from her2cache.units import Coords

_VERSION = "2.1.0"


def files(source: Path, _embedder: str) -> list[Path]:
    """Feature files of a folder and of those in it, for STAMP keeps the folders of its slides."""
    return listed(source, "**/*.h5")


def read(path: Path, given: Given) -> SlidePatches:
    """Reads S.h5. Its coordinates are rounded to level-0 px.

    Raises:
        ConfigError: the file is damaged or not STAMP's, or a measure is neither in the file nor given.
    """
    with opened(path) as file:
        described: dict[str, Any] = dict(file.attrs)
        kind = text(described, "feat_type") or "tile"
        if kind != "tile":
            raise ConfigError(f"{path} holds one vector a {kind}, not one a patch: name the folder of patch features")
        features, coords_um = array(file, "feats", path), array(file, "coords", path)
    side_um = number(described, "tile_size_um", path)
    if side_um is None and text(described, "unit") == "um":
        side_um = number(described, "tile_size", path)
    if side_um is None:
        raise ConfigError(
            f"{path} does not say the unit of its coordinates: STAMP before 2.0 wrote it; make it again with STAMP 2"
        )
    slide_mpp = required(
        given.slide_mpp,
        path,
        "the scale of its slide, and its coordinates are in um",
        "--cohort TABLE: its column mpp, or its slide files",
    )
    patch_px = required(
        given.patch_px or number(described, "tile_size_px", path), path, "the side of its patches in px", "--patch-px"
    )
    if coords_um.dtype.kind == "f":
        coords_um = np.rint(coords_um.astype(np.float64) / slide_mpp)  # (n, 2)
    return SlidePatches(
        features=features,
        coords=level0_coords(coords_um, path),
        patch_level0_px=given.patch_level0_px or side_um / slide_mpp,
        patch_px=round(patch_px),
        mpp=given.mpp or number(described, "patch_mpp", path) or tidy(side_um / patch_px),
        slide_mpp=slide_mpp,
        made_by=text(described, "extractor"),
    )


def write(out: Path, slide_id: str, patches: SlidePatches, embedder: str) -> dict[Path, Write]:
    """S.h5 of a slide, features as float16.

    Raises:
        ConfigError: a feature is too large for float16.
    """
    side_um = tidy(patches.patch_level0_px * patches.slide_mpp)
    described = {
        "stamp_version": _VERSION,
        "extractor": embedder,
        "unit": "um",
        "tile_size_um": side_um,
        "tile_size_px": np.int64(patches.patch_px),
        "code_hash": hashlib.sha256(f"her2cache {embedder}".encode()).hexdigest()[:8],
        "feat_type": "tile",
        "patch_mpp": patches.mpp,
    }
    coords = _micrometres(patches.coords, patches.slide_mpp, side_um)
    return {out / f"{slide_id}.h5": hdf5({"coords": (coords, {}), "feats": (_half(patches, slide_id), {})}, described)}


def _micrometres(coords: Coords, slide_mpp: float, side_um: float) -> NDArray[np.float32]:
    """Coordinates in um that round to those given.

    STAMP's own are whole multiples of the patch's side, which level-0 px only come near. So where every coordinate is
    such a multiple once it is rounded to px, multiples they are.

    Args:
        coords: level-0 (x, y), int32 (n, 2).
        slide_mpp: um/px.
        side_um: of a patch, um.

    Returns:
        float32 (n, 2), um.
    """
    plain = coords * slide_mpp  # (n, 2)
    multiples = (np.rint(plain / side_um) * side_um).astype(np.float32)
    same = np.array_equal(np.rint(multiples.astype(np.float64) / slide_mpp), coords)
    return multiples if same else plain.astype(np.float32)


def _half(patches: SlidePatches, slide_id: str) -> Features:
    with np.errstate(over="ignore"):
        half = patches.features.astype(np.float16, copy=False)
    if not np.isfinite(half).all():
        raise ConfigError(
            f"slide {slide_id!r}: its features reach {np.abs(patches.features).max():.3g}, and STAMP's files are"
            " float16, which cannot hold that; export it for CLAM or TRIDENT"
        )
    return half
