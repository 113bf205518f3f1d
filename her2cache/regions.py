"""Regions of interest of a slide: the polygons of a GeoJSON file, in level-0 px, as QuPath exports them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from her2cache.errors import SlideError
from her2cache.units import BoolArray


@dataclass(frozen=True)
class Regions:
    """Areas of a slide.

    Attributes:
        area: their union, level-0 px.
        sha256: of the file they came from, hex.
    """

    area: BaseGeometry
    sha256: str

    def contain(self, points: NDArray[np.float64]) -> BoolArray:
        """Whether points (x, y), float64 (n, 2) in level-0 px, lie in a region; bool (n,)."""
        shapely.prepare(self.area)
        return np.asarray(shapely.contains_xy(self.area, points[:, 0], points[:, 1]), np.bool_)

    def outlines(self) -> list[NDArray[np.float64]]:
        """Every ring, holes included: float64 (n, 2) of level-0 (x, y)."""
        rings: list[NDArray[np.float64]] = []
        for part in shapely.get_parts(self.area):
            rings += [np.asarray(ring.coords)[:, :2] for ring in (part.exterior, *part.interiors)]
        return rings


def read_regions(path: Path) -> Regions:
    """Reads the polygons of a GeoJSON file: a geometry, a Feature, a FeatureCollection, or a list of Features.

    Points and lines in it are passed over; polygons that cross themselves are mended.

    Raises:
        SlideError: the file cannot be read, is no GeoJSON, or holds no polygon.
    """
    try:
        data = path.read_bytes()
        polygons = [part for geometry in _geometries(json.loads(data)) for part in _polygons(shape(geometry))]
    except OSError as error:
        raise SlideError(
            f"{path} cannot be read ({error.strerror}): it is named by the column regions of the cohort table; correct"
            " it there"
        ) from error
    except Exception as error:  # shapely and json raise what they like at malformed input
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise SlideError(
            f"{path} is not GeoJSON that her2cache reads ({reason}); export the regions from QuPath as GeoJSON"
        ) from error
    if not polygons:
        raise SlideError(f"{path} holds no polygon, so no region to take patches from; draw one, or clear the cell")
    return Regions(shapely.union_all(polygons), hashlib.sha256(data).hexdigest())


def _geometries(document: Any) -> Iterator[Any]:
    """The geometry objects in a GeoJSON document."""
    if isinstance(document, list):
        for item in document:
            yield from _geometries(item)
        return
    kind = document["type"]
    if kind == "FeatureCollection":
        yield from _geometries(document["features"])
    elif kind == "Feature":
        if document["geometry"] is not None:
            yield document["geometry"]
    else:
        yield document


def _polygons(geometry: BaseGeometry) -> Iterator[BaseGeometry]:
    """The polygons of a geometry, mended where they cross themselves."""
    for part in shapely.get_parts(shapely.make_valid(geometry)):
        if part.geom_type == "Polygon":
            if not part.is_empty:
                yield part
        elif part.geom_type in {"MultiPolygon", "GeometryCollection"}:
            yield from _polygons(part)
