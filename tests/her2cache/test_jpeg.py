"""Damaged JPEG data is told from whole data."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from her2cache.jpeg import damage
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
