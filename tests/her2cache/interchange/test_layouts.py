"""What a tool's file is written from is what is read out of it, for any slide."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from her2cache.interchange import clam, stamp, torchmil, trident
from her2cache.interchange.files import publish
from her2cache.interchange.patches import Given, SlidePatches, raster_order

QUICK = settings(max_examples=15, deadline=None)


@st.composite
def slides(draw: st.DrawFn, dtype: str = "float32") -> SlidePatches:
    n, dim = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    limit = 60_000 if dtype == "float16" else None
    finite = st.floats(-limit if limit else None, limit, allow_nan=False, allow_infinity=False, width=32)
    values = draw(hnp.arrays(np.float32, (n, dim), elements=finite)).astype(dtype)
    patch_px = draw(st.integers(16, 1024))
    level = draw(st.integers(0, 3))
    known = level == 0 and draw(st.booleans())
    return SlidePatches(
        features=values,
        coords=draw(hnp.arrays(np.int32, (n, 2), elements=st.integers(-(2**19), 2**19))),
        patch_level0_px=draw(st.floats(8, 8192)),
        patch_px=patch_px,
        mpp=draw(st.integers(5, 4000)) / 1000,
        slide_mpp=draw(st.floats(0.05, 10)),
        overlap_px=draw(st.integers(0, patch_px - 1)),
        level=level,
        downsample=float(draw(st.sampled_from([1.0, 2.0, 4.0003, 16.02]))) if level else 1.0,
        size=(draw(st.integers(1, 2**20)), draw(st.integers(1, 2**20))) if known else None,
    )


def same(one: SlidePatches, other: SlidePatches) -> bool:
    return (
        np.array_equal(one.features, other.features)
        and np.array_equal(one.coords, other.coords)
        and (one.patch_px, one.patch_level0_px, one.mpp) == (other.patch_px, other.patch_level0_px, other.mpp)
    )


@QUICK
@given(slides())
def test_clam(slide: SlidePatches) -> None:
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        publish(clam.write(out, "s", slide, "net"), replace=False)
        told = Given(patch_px=slide.patch_px, mpp=slide.mpp, slide_mpp=slide.slide_mpp, patches=out / "patches")
        (path,) = clam.files(out, "net")
        found = clam.read(path, told)
        alone = clam.read(out / "pt_files" / "s.pt", told)
    assert same(found, slide)
    assert same(alone, slide)
    assert (found.level, found.size, found.slide_mpp) == (slide.level, slide.size, slide.slide_mpp)
    assert found.downsample == slide.downsample


@QUICK
@given(slides(), st.sampled_from(["uni", "timm:vit_small/16"]))
def test_trident(slide: SlidePatches, embedder: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        publish(trident.write(Path(name), "s", slide, embedder), replace=False)
        (path,) = trident.files(Path(name), embedder)
        found = trident.read(path, Given(slide_mpp=slide.slide_mpp))
    assert same(found, slide)
    assert (found.overlap_px, found.size, found.made_by) == (slide.overlap_px, slide.size, embedder)


@QUICK
@given(slides("float16"))
def test_stamp(slide: SlidePatches) -> None:
    with tempfile.TemporaryDirectory() as name:
        publish(stamp.write(Path(name), "s", slide, "net"), replace=False)
        (path,) = stamp.files(Path(name), "net")
        found = stamp.read(path, Given(slide_mpp=slide.slide_mpp))
    # STAMP has sides in um: that conversion and back may cost the last digits
    assert found.patch_level0_px == pytest.approx(slide.patch_level0_px, rel=1e-11)
    assert same(replace(found, patch_level0_px=slide.patch_level0_px), slide)
    assert found.made_by == "net"


@QUICK
@given(slides(), st.integers(0, 3))
def test_torchmil(slide: SlidePatches, score: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        publish(torchmil.write(Path(name), "s", replace(slide, her2_score=score), "net"), replace=False)
        read = {part.name: np.load(part / "s.npy") for part in Path(name).iterdir()}
    assert sorted(read) == ["coords", "features", "inst_labels", "labels"]
    assert np.array_equal(read["features"], slide.features)
    assert np.array_equal(read["coords"], slide.coords)
    assert read["labels"].tolist() == [score]
    assert read["inst_labels"].tolist() == [-1] * len(slide.coords)


@settings(max_examples=100, deadline=None)
@given(
    st.floats(1.5, 600),
    hnp.arrays(np.int64, st.tuples(st.integers(1, 30), st.just(2)), elements=st.integers(0, 300)),
    st.integers(0, 50),
)
def test_the_patch_size_of_torchmil_brings_every_patch_to_its_cell(side: float, cells: np.ndarray, margin: int) -> None:
    """As its WSIDataset does: divide, subtract the least, cut off."""
    coords = (np.rint(cells * side) + margin * round(side)).astype(np.int32)
    step = torchmil.patch_size(coords, side)
    divided = coords / step
    found = (divided - divided.min(axis=0)).astype(int)
    if not (coords % side).any():
        assert step == side
    reach = (cells - cells.min(axis=0)).max()
    if reach * (side / step - 1) < 0.5:  # beyond that no divisor fits
        assert np.array_equal(found, np.rint((coords - coords.min(axis=0)) / side))


@given(hnp.arrays(np.int32, st.tuples(st.integers(0, 20), st.just(2)), elements=st.integers(-3, 3)))
def test_raster_order(coords: np.ndarray) -> None:
    expected = sorted(range(len(coords)), key=lambda k: (coords[k][1], coords[k][0], k))
    assert raster_order(coords).tolist() == expected
