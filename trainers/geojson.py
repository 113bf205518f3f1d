"""Maps of patches as GeoJSON that QuPath 0.5 to 0.7 imports: a tile object a patch, with measurements.

QuPath reads a FeatureCollection whose features have a UUID as id and properties `objectType`, `measurements` (name to
number) and `classification` (a name and its colour). Tiles are light; as annotations the same patches would be slow.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainers.files import whole

_NAMESPACE = uuid.UUID("5f0c2a6e-8f0e-4a53-9d0c-3c4f3b7a1e21")
_DIGITS = 6


def write_geojson(
    path: Path,
    *,
    coords: NDArray[np.int32],
    patch_level0_px: float,
    measurements: Mapping[str, NDArray[np.float64]],
    classes: Sequence[str],
    predicted: NDArray[np.int64],
    colours: Sequence[str],
    key: str,
    origin: tuple[int, int] = (0, 0),
) -> None:
    """Writes one tile a patch.

    Args:
        path: the file to write; its folder is made.
        coords: level-0 (x, y) of the patches, (n, 2).
        patch_level0_px: side of a patch, level-0 px.
        measurements: name -> value of each patch, (n,); a NaN is left out.
        classes: names that QuPath shows.
        predicted: class of each patch, (n,).
        colours: of the classes, as "#RRGGBB".
        key: of slide and model: the same key and position give the same UUID, so that a file imported again can
            be told from another.
        origin: level-0 (x, y) where QuPath's image begins. QuPath crops MRXS slides to `openslide.bounds-x`, `-y`.
    """
    namespace = uuid.uuid5(_NAMESPACE, key)
    columns = [(name, values.tolist()) for name, values in measurements.items()]
    kinds = [{"name": name, "color": _rgb(colour)} for name, colour in zip(classes, colours, strict=True)]
    features = [
        {
            "type": "Feature",
            "id": str(uuid.uuid5(namespace, f"{x},{y}")),
            "geometry": {
                "type": "Polygon",
                "coordinates": [_ring(x - origin[0], y - origin[1], patch_level0_px)],
            },
            "properties": {
                "objectType": "tile",
                "classification": kinds[predicted[k]],
                "measurements": {name: round(values[k], _DIGITS) for name, values in columns if np.isfinite(values[k])},
            },
        }
        for k, (x, y) in enumerate(coords.tolist())
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        text = json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":"), allow_nan=False)
        partial.write_text(text, encoding="utf-8")


def _ring(x: int, y: int, side: float) -> list[list[float]]:
    right, bottom = (int(v) if v == int(v) else v for v in (x + side, y + side))
    return [[x, y], [right, y], [right, bottom], [x, bottom], [x, y]]


def _rgb(colour: str) -> list[int]:
    return list(bytes.fromhex(colour.removeprefix("#")))
