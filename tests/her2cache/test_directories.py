"""Directories of TIFFs that no library should follow are told before one does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from her2cache.directories import directories_damage
from her2cache.errors import SlideOpenError
from her2cache.slide import open_slide
from tests.mutants import NEXT, Tag, put, tags_of, write_healthy
from tests.slides import texture, write_ome, write_slide


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_healthy(tmp_path_factory.mktemp("healthy"))


TIFFS = ["svs-jpeg", "svs-jpeg2000", "ndpi", "tiff-deflate", "strips-lzw", "ome-tiff", "scn"]


def _edited(source: Path, folder: Path, code: int, change: str, value: int, which: int = 0) -> Path:
    """A copy of a TIFF with one number of an entry overwritten: its kind, count or place; or the next directory."""
    content = bytearray(source.read_bytes())
    tag = [tag for tag in tags_of(bytes(content)) if tag.code == code][which]
    word = "Q" if tag.big else "I"
    places = {"kind": (2, "H"), "count": (4, word), "place": (12 if tag.big else 8, word), "next": (0, word)}
    offset, form = places[change]
    put(content, tag.place + offset, tag.order + form, value)
    path = folder / source.name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", TIFFS)
def test_whole_files_pass(healthy: dict[str, Path], name: str) -> None:
    assert directories_damage(healthy[name]) is None


def test_real_files_pass(data: Path) -> None:
    assert {directories_damage(path) for path in (data / "slides").iterdir()} == {None}


@pytest.mark.parametrize("name", TIFFS)
def test_a_ring(healthy: dict[str, Path], tmp_path: Path, name: str) -> None:
    """tifffile went round in some of these for ever, taking memory all the while."""
    first = int.from_bytes(
        healthy[name].read_bytes()[8:16] if name == "scn" else healthy[name].read_bytes()[4:8], "little"
    )
    path = _edited(healthy[name], tmp_path, NEXT, "next", first, which=-1)
    assert directories_damage(path) == "its directories go round in a ring"
    began = time.monotonic()
    with pytest.raises(SlideOpenError, match=r"go round in a ring.*copy it again"):
        open_slide(path)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("code", "change", "value", "said"),
    [
        (NEXT, "next", 1 << 30, "truncated: a directory would lie at byte"),
        (NEXT, "next", 2, "truncated: a directory would lie at byte"),
        (257, "kind", 2, "its tag ImageLength is of the kind 2"),
        (322, "kind", 5, "its tag TileWidth is of the kind 5"),
        (324, "kind", 12, "its tag TileOffsets is of the kind 12"),
        (282, "kind", 99, "its tag XResolution is of the kind 99"),
        (322, "count", 2, "its tag TileWidth has 2 values"),
        (325, "count", 0, "its tag TileByteCounts has 0 values"),
        (324, "count", 1 << 30, "its tag TileOffsets would lie behind its end"),
        (325, "place", 1 << 30, "its tag TileByteCounts would lie behind its end"),
        (258, "place", 3, "its tag BitsPerSample would lie behind its end"),
    ],
)
def test_entries_that_make_no_sense(
    healthy: dict[str, Path], tmp_path: Path, code: int, change: str, value: int, said: str
) -> None:
    """A library leaves such an entry out and puts a default in its place: other pixels, and no error."""
    path = _edited(healthy["tiff-deflate"], tmp_path, code, change, value)
    assert said in (directories_damage(path) or "")
    with pytest.raises(SlideOpenError, match=r"damaged or truncated; compare its size"):
        open_slide(path)


@pytest.mark.parametrize("keep", [0, 3, 6, 7, 9, 200])
def test_cut_off(healthy: dict[str, Path], tmp_path: Path, keep: int) -> None:
    path = tmp_path / "s.tiff"
    path.write_bytes(healthy["tiff-lzw"].read_bytes()[:keep])
    assert directories_damage(path)


def test_children(healthy: dict[str, Path], tmp_path: Path) -> None:
    """The levels of an OME-TIFF."""
    content = healthy["ome-tiff"].read_bytes()
    (children,) = [tag for tag in tags_of(content) if tag.code == 330]
    assert _children_edited(content, children, len(content) + 9, tmp_path).startswith("truncated")
    assert _children_edited(content, children, children.place, tmp_path)  # in the middle of a directory
    three = write_ome(tmp_path / "three.ome.tiff", texture(256, 192), factors=(1, 2, 4))
    assert directories_damage(three) is None  # its children are a chain, too


def _children_edited(content: bytes, children: Tag, value: int, folder: Path) -> str:
    changed = bytearray(content)
    put(changed, children.values, "<I", value)
    (folder / "s.ome.tiff").write_bytes(changed)
    return directories_damage(folder / "s.ome.tiff") or ""


def test_too_many_directories(tmp_path: Path) -> None:
    """A chain, not a ring, of directories without end."""
    path = write_slide(tmp_path / "s.tiff", texture(64, 64))
    step = 2 + 12 + 4
    start = path.stat().st_size
    chain = bytearray()
    for k in range(10_001):
        chain += b"\1\0" + b"\xff\xff\1\0\1\0\0\0\0\0\0\0" + (start + (k + 1) * step).to_bytes(4, "little")
    content = bytearray(path.read_bytes()) + chain
    (last,) = [tag for tag in tags_of(bytes(content[:start])) if tag.code == NEXT]
    put(content, last.place, "<I", start)
    path.write_bytes(content)
    assert "more than 10,000 directories" in (directories_damage(path) or "")
