"""Levels whose sizes contradict each other, or are absurd, are refused before any memory is taken for them."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from her2cache.errors import SlideOpenError
from her2cache.pages import alike
from her2cache.slide import open_slide
from tests.mutants import APERIO, put, tags_of
from tests.slides import make_sparse, texture, write_slide


def _with(path: Path, page: int, **values: int) -> Path:
    """Overwrites numbers of a page of a TIFF."""
    codes = {"width": 256, "height": 257, "compression": 259, "tile_width": 322, "tile_height": 323, "samples": 277}
    content = bytearray(path.read_bytes())
    for name, value in values.items():
        tag = [tag for tag in tags_of(bytes(content)) if tag.code == codes[name]][page]
        put(content, tag.values, tag.order + {3: "H", 4: "I"}[tag.kind], value)
    path.write_bytes(content)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "s.tiff", texture(512, 384), factors=(1, 2))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"width": 1024}, r"has an index of 48 segments, but 1,024 x 384 px in segments of 64 x 64 are 96"),
        ({"tile_height": 32}, "has an index of 48 segments"),
        ({"width": 2**32 - 1, "height": 2**32 - 1}, "has an index of 48 segments"),
        ({"width": 2**17 * 8, "height": 2**17 * 6, "tile_width": 2**16 - 1, "tile_height": 2**16 - 1}, "an index of"),
        ({"width": 60000 * 8, "height": 60000 * 6, "tile_width": 60000, "tile_height": 60000}, "67 megapixels"),
    ],
)
def test_sizes_that_cannot_be(path: Path, values: dict[str, int], said: str) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(SlideOpenError, match=rf"level 0 .*{said}.*; (copy|convert)"):
        open_slide(_with(path, 0, **values))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("level", [0, 1])
def test_an_empty_level(path: Path, level: int) -> None:
    make_sparse(path, range(48 if level == 0 else 12), page=level)
    with pytest.raises(SlideOpenError, match=rf"level {level} is empty: the file holds none of its segments.*copy it"):
        open_slide(path)


@pytest.mark.parametrize("side", ["width", "height", "tile_width", "tile_height"])
@pytest.mark.parametrize("level", [0, 1])
def test_a_level_of_no_size(path: Path, level: int, side: str) -> None:
    with pytest.raises(SlideOpenError, match=r"a level is empty: its tag \w+ is 0.*copy it again"):
        open_slide(_with(path, level, **{side: 0}))


@pytest.mark.parametrize("compression", [999, 2, 0])
def test_an_unknown_compression(path: Path, compression: int) -> None:
    with pytest.raises(SlideOpenError, match=rf"level 0 is compressed.*\(TIFF compression {compression}\).*; copy it"):
        open_slide(_with(_with(path, 0, compression=compression), 1, compression=compression))


def test_a_level_of_another_shape_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As where a label got among the levels: coordinates would be wrong by its shape."""
    path = tmp_path / "s.svs"
    options = {"photometric": "rgb", "metadata": None, "description": APERIO}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(texture(512, 384), tile=(64, 64), **options)
        tiff.write(texture(64, 48), **options)  # where an SVS has its thumbnail
        tiff.write(texture(256, 128), tile=(64, 64), **options)
        tiff.write(texture(128, 96), tile=(64, 64), **options)
    with open_slide(path) as slide:
        assert (slide.level_sizes, slide.downsamples) == (((512, 384), (128, 96)), (1, 4))
        assert slide.segment_grid(1).columns == 2
    assert "1 of its 3 levels are of another shape than level 0" in caplog.text


@given(st.integers(200, 200_000), st.integers(200, 200_000), st.floats(1, 64), st.integers(0, 1))
def test_reduced_pictures_are_alike(width: int, height: int, factor: float, up: int) -> None:
    """Whatever the factor, and whether sides are rounded up or down."""
    size = int(width / factor) + up, int(height / factor) + up
    assert alike((width, height), (max(size[0], 1), max(size[1], 1)))


def test_others_are_not() -> None:
    assert not alike((100_000, 80_000), (50_000, 39_000))
    assert not alike((100_000, 80_000), (25_100, 20_000))
    assert not alike((512, 384), (256, 128))
    assert np.all([alike((46_000, 32_914), size) for size in ((11_500, 8_228), (2_875, 2_057), (1_437, 1_028))])
