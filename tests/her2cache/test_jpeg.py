"""Damaged JPEG data is told from whole data."""

from __future__ import annotations

import io
import random
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from her2cache.jpeg import Inspector, damage, ran_dry
from tests.slides import GLASS, texture


def _encode(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


STREAM = _encode(texture(240, 240), quality=70)
FLAT = [np.full((240, 240, 3), colour, np.uint8) for colour in (255, 0, GLASS)]


@pytest.mark.parametrize("pixels", [texture(240, 240), *FLAT], ids=["tissue", "white", "black", "glass"])
@pytest.mark.parametrize("quality", [20, 70, 100])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_whole_streams_pass(pixels: np.ndarray, quality: int, options: dict[str, object]) -> None:
    """Flat fields under optimised tables are runs of zeros, and rightly so."""
    assert damage(_encode(pixels, quality=quality, **options)) is None


@pytest.mark.parametrize("tail", [b"", b"\0", b"\0" * 64, b"junk"])
def test_what_follows_the_end_does_not_matter(tail: bytes) -> None:
    assert damage(STREAM + tail) is None
    assert damage(STREAM[:-2] + b"\xff\xff" + STREAM[-2:] + tail) is None  # fill bytes before a marker


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_broken_off(share: float) -> None:
    assert damage(STREAM[: int(len(STREAM) * share)]) == "its JPEG data breaks off"


@pytest.mark.parametrize("place", [0.3, 0.5, 0.9])
@pytest.mark.parametrize(
    ("filling", "reason"),
    [
        (bytes(100), "its JPEG data has a hole"),
        (b"\xff" * 100, "its JPEG data has a marker amid the pixels"),
        (random.Random(0).randbytes(800), "its JPEG data has a marker amid the pixels"),
    ],
)
def test_overwritten_in_the_middle(place: float, filling: bytes, reason: str) -> None:
    start = int(len(STREAM) * place)
    assert damage(STREAM[:start] + filling + STREAM[start + len(filling) :]) == reason


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
@pytest.mark.parametrize(
    ("place", "inside", "ok"),
    [
        ((240, 240), (240, 240), True),
        ((256, 256), (240, 240), True),  # some writers cut off the last segments
        ((256, 256), (241, 240), False),
        ((240, 200), (100, 100), False),
    ],
)
def test_its_size_is_that_of_its_place(
    place: tuple[int, int], inside: tuple[int, int], ok: bool, options: dict[str, object]
) -> None:
    """A decoder makes room for whatever the header says."""
    reason = Inspector().damage(_encode(texture(240, 240), **options), place, inside)
    assert reason == (None if ok else "its JPEG image is 240 x 240 px")


def _decode(data: bytes) -> np.ndarray:
    return imagecodecs.jpeg_decode(data)


@pytest.mark.parametrize("quality", [30, 90])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_data_that_ends_before_the_pixels_do(quality: int, share: float) -> None:
    """With a marker of the end behind it nothing else shows; libjpeg fills up with grey."""
    whole = _encode(texture(240, 240), quality=quality)
    start = whole.index(b"\xff\xda") + 14
    cut = start + int((len(whole) - start) * share)
    cut -= whole[cut - 1] == 0xFF
    part = whole[:cut] + whole[-2:]
    assert damage(part) is None
    assert ran_dry(part, _decode(part), _decode)
    assert not ran_dry(whole, _decode(whole), _decode)


def test_pixels_may_be_grey() -> None:
    for options in ({}, {"optimize": True}, {"subsampling": 0}):
        grey = _encode(np.full((240, 240, 3), 128, np.uint8), **options)
        assert (_decode(grey)[-4:, -4:] == 128).all()
        assert not ran_dry(grey, _decode(grey), _decode)


def test_no_header() -> None:
    assert damage(bytes(200) + STREAM[200:]) == "its JPEG header is broken"


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "synthetic_cmu1.ndpi"])
def test_real_segments(data: Path, name: str) -> None:
    """Shared tables (SVS), and parts between restart markers (NDPI)."""
    with tifffile.TiffFile(data / "slides" / name) as tiff:
        page = tiff.pages[0]
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            tiff.filehandle.seek(offset)
            segment = tiff.filehandle.read(count)
            assert damage(segment, page.jpegtables, page.jpegheader) is None
            assert damage(segment[: count // 2], page.jpegtables, page.jpegheader)
            if count > 120:
                middle = segment[: count // 3] + bytes(count // 3) + segment[count // 3 * 2 :]
                assert damage(middle, page.jpegtables, page.jpegheader)
