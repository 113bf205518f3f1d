"""Regions of interest restrict tiling to the polygons of a GeoJSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2cache.cohort import Slide
from her2cache.errors import EmptyPlanError, SlideError
from her2cache.ingest import ReadOptions, SlideSurvey, read_slide, selection_changed, selection_of
from her2cache.regions import Regions, read_regions
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from tests.slides import texture, write_slide

OPTIONS = ReadOptions(PatchSpec(), preset("HE"))


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def polygon(*rings: list[list[float]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry: dict[str, Any] | None) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation"}}


def written(folder: Path, document: Any) -> Path:
    path = folder / "regions.geojson"
    path.write_text(json.dumps(document))
    return path


def inside(regions: Regions, *points: tuple[float, float]) -> list[bool]:
    return regions.contain(np.array(points, np.float64)).tolist()


class TestRead:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda g: g,
            feature,
            lambda g: [feature(g), feature(None)],
            lambda g: {"type": "FeatureCollection", "features": [feature(g)]},
            lambda g: {"type": "GeometryCollection", "geometries": [g, {"type": "Point", "coordinates": [500, 500]}]},
        ],
    )
    def test_every_wrapping(self, tmp_path: Path, wrap: Any) -> None:
        regions = read_regions(written(tmp_path, wrap(polygon(square(10, 20, 100)))))
        assert inside(regions, (11, 21), (109, 119), (9, 50), (50, 19), (500, 500)) == [True, True, False, False, False]

    def test_holes_and_several_parts(self, tmp_path: Path) -> None:
        ring = polygon(square(0, 0, 100), square(40, 40, 20))
        several = {"type": "MultiPolygon", "coordinates": [ring["coordinates"], [square(200, 0, 50)]]}
        regions = read_regions(written(tmp_path, several))
        assert inside(regions, (50, 50), (10, 10), (225, 25), (150, 25)) == [False, True, True, False]
        assert len(regions.outlines()) == 3

    def test_overlapping_regions_count_once(self, tmp_path: Path) -> None:
        regions = read_regions(
            written(tmp_path, [feature(polygon(square(0, 0, 60))), feature(polygon(square(30, 0, 60)))])
        )
        assert regions.area.area == 90 * 60

    def test_a_polygon_that_crosses_itself_is_mended(self, tmp_path: Path) -> None:
        bow = polygon([[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]])
        assert inside(read_regions(written(tmp_path, bow)), (10, 50), (90, 50), (50, 5)) == [True, True, False]

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("not json", "is not GeoJSON"),
            ('{"features": []}', "is not GeoJSON"),
            ('{"type": "Polygon", "coordinates": [[[0, 0], "x"]]}', "is not GeoJSON"),
            ('{"type": "FeatureCollection", "features": []}', "holds no polygon"),
            ('{"type": "Point", "coordinates": [1, 2]}', "holds no polygon"),
        ],
    )
    def test_what_is_no_region(self, tmp_path: Path, text: str, says: str) -> None:
        path = tmp_path / "regions.geojson"
        path.write_text(text)
        with pytest.raises(SlideError, match=says) as error:
            read_regions(path)
        assert str(path) in str(error.value)

    def test_a_missing_file_names_the_column(self, tmp_path: Path) -> None:
        with pytest.raises(SlideError, match="column regions"):
            read_regions(tmp_path / "none.geojson")

    @given(st.lists(st.tuples(st.floats(-50, 150), st.floats(-50, 150)), min_size=1, max_size=30))
    def test_contains_is_that_of_a_circle(self, points: list[tuple[float, float]]) -> None:
        from shapely.geometry import Point

        regions = Regions(Point(50, 50).buffer(40, quad_segs=2000), "")
        distance = np.hypot(*(np.array(points) - 50).T)
        clear = np.abs(distance - 40) > 1e-3  # off the border
        assert (regions.contain(np.array(points))[clear] == (distance < 40)[clear]).all()


@pytest.fixture(scope="module")
def tissue_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """960 x 768 px, tissue all over: 10 x 8 patches."""
    return write_slide(tmp_path_factory.mktemp("slide") / "s.tif", texture(960, 768))


def coords_of(slide: Slide, options: ReadOptions = OPTIONS) -> set[tuple[int, int]]:
    survey = next(read_slide(slide, options))
    assert isinstance(survey, SlideSurvey)
    return {(int(x), int(y)) for x, y in survey.coords}


class TestTiling:
    def test_patches_have_their_centre_in_a_region(self, tissue_slide: Path, tmp_path: Path) -> None:
        path = written(tmp_path, feature(polygon(square(100, 100, 300))))
        expected = {
            (x, y) for x in range(0, 960, 96) for y in range(0, 768, 96) if 100 < x + 48 < 400 and 100 < y + 48 < 400
        }
        assert coords_of(Slide("s", "c", tissue_slide, "HE", regions=path)) == expected

    def test_coordinates_are_level_0_also_where_patches_are_resampled(self, tissue_slide: Path, tmp_path: Path) -> None:
        path = written(tmp_path, feature(polygon(square(0, 0, 400))))
        coarse = ReadOptions(PatchSpec(mpp=1.0), preset("HE"))
        found = coords_of(Slide("s", "c", tissue_slide, "HE", regions=path), coarse)
        assert found == {(x, y) for x in (0, 192) for y in (0, 192)}  # centres at 96, 288; the next at 480

    def test_regions_off_the_slide_are_an_error_that_says_so(self, tissue_slide: Path, tmp_path: Path) -> None:
        path = written(tmp_path, polygon(square(5000, 5000, 300)))
        with pytest.raises(EmptyPlanError, match="regions of interest"):
            coords_of(Slide("s", "c", tissue_slide, "HE", regions=path))


class TestSelection:
    def test_is_recorded_and_compared(self, tissue_slide: Path, tmp_path: Path) -> None:
        plain = Slide("s", "c", tissue_slide, "HE")
        path = written(tmp_path, polygon(square(0, 0, 400)))
        chosen = Slide("s", "c", tissue_slide, "HE", regions=path, thresholds=(("saturation_min", 0.1),))
        survey = next(read_slide(chosen, OPTIONS))
        assert isinstance(survey, SlideSurvey)
        kept = json.loads(json.dumps(survey.provenance))  # as a commit record keeps it
        assert kept["thresholds"] == {"saturation_min": 0.1}
        assert kept["regions"] == {"path": str(path), "sha256": read_regions(path).sha256}
        assert selection_of(plain) == {}
        assert not selection_changed(chosen, kept)
        assert not selection_changed(plain, {"path": "x"})
        assert selection_changed(plain, kept)
        assert selection_changed(chosen, {"path": "x"})
        written(tmp_path, polygon(square(0, 0, 401)))
        assert selection_changed(chosen, kept)

    def test_thresholds_of_one_slide(self, tissue_slide: Path) -> None:
        everything = len(coords_of(Slide("s", "c", tissue_slide, "HE")))
        none = Slide("s", "c", tissue_slide, "HE", thresholds=(("saturation_min", 0.99),))
        assert everything == 80
        with pytest.raises(EmptyPlanError):
            coords_of(none)
        lax = Slide("s", "c", tissue_slide, "HE", thresholds=(("min_tissue", 0.0), ("saturation_min", 0.99)))
        assert len(coords_of(lax)) == 80
