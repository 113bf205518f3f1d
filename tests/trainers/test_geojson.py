"""GeoJSON for QuPath, held against what its importer asks of a file."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shapely.geometry import shape

from trainers.geojson import write_geojson

COORDS = np.array([[0, 0], [193, 0], [96, 96]], np.int32)
VALUES = {"attention": np.array([0.5, np.nan, 2.0]), "p(2+)": np.array([0.25, 0.5, 1 / 3])}


def written(path: Path, **changes: Any) -> list[dict[str, Any]]:
    given: dict[str, Any] = {
        "coords": COORDS,
        "patch_level0_px": 96.5,
        "measurements": VALUES,
        "classes": ["HER2 0", "HER2 2+"],
        "predicted": np.array([0, 1, 1]),
        "colours": ["#0072B2", "#E69F00"],
        "key": "slide/run",
    }
    write_geojson(path, **given | changes)

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    document = json.loads(path.read_text(), parse_constant=refuse)
    assert document["type"] == "FeatureCollection"
    return document["features"]


def test_what_qupath_asks_of_a_tile(tmp_path: Path) -> None:
    features = written(tmp_path / "new" / "map.geojson")
    assert len(features) == 3
    for feature, corner in zip(features, COORDS.tolist(), strict=True):
        assert feature["type"] == "Feature"
        uuid.UUID(feature["id"])
        ring = feature["geometry"]["coordinates"][0]
        assert ring[0] == ring[-1]
        assert shape(feature["geometry"]).bounds == (*corner, corner[0] + 96.5, corner[1] + 96.5)
        properties = feature["properties"]
        assert properties["objectType"] == "tile"
        assert set(properties["classification"]) == {"name", "color"}  # without a colour QuPath throws
        assert all(type(c) is int and 0 <= c <= 255 for c in properties["classification"]["color"])
        assert all(type(v) is float for v in properties["measurements"].values())
    assert [f["properties"]["classification"]["name"] for f in features] == ["HER2 0", "HER2 2+", "HER2 2+"]
    assert features[0]["properties"]["classification"]["color"] == [0, 114, 178]
    assert features[1]["properties"]["measurements"] == {"p(2+)": 0.5}
    assert features[2]["properties"]["measurements"] == {"attention": 2.0, "p(2+)": pytest.approx(1 / 3, abs=1e-6)}


def test_ids_stay_with_slide_model_and_place(tmp_path: Path) -> None:
    first = [f["id"] for f in written(tmp_path / "a.json")]
    assert len(set(first)) == 3
    assert [f["id"] for f in written(tmp_path / "b.json", measurements={})] == first
    backwards = written(tmp_path / "c.json", coords=COORDS[::-1], measurements={})
    assert [f["id"] for f in backwards] == first[::-1]
    assert not set(first) & {f["id"] for f in written(tmp_path / "d.json", key="slide/other run")}


def test_mrxs_begins_at_its_bounds(tmp_path: Path) -> None:
    cropped = written(tmp_path / "a.json", coords=COORDS + np.array([1000, 2000], np.int32), origin=(1000, 2000))
    assert [f["geometry"] for f in cropped] == [f["geometry"] for f in written(tmp_path / "b.json")]
