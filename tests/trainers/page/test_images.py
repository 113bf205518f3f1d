"""Pictures inside the page: what they show stays, their size is bounded."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from trainers.page.images import drawing, photographs


def unpacked(uri: str) -> Image.Image:
    head, _, data = uri.partition(";base64,")
    assert head.startswith("data:image/")
    picture = Image.open(BytesIO(base64.b64decode(data)))
    assert picture.format == head.removeprefix("data:image/").upper()
    return picture


def noise(path: Path, size: tuple[int, int], seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_photograph_is_shrunk_but_never_grown(tmp_path: Path) -> None:
    paths = [noise(tmp_path / "wide.png", (2000, 200), 0), noise(tmp_path / "small.png", (300, 200), 1)]
    wide, small = (unpacked(uri) for uri in photographs(paths))
    assert (wide.size, small.size) == ((1800, 180), (300, 200))


def test_photographs_keep_to_a_budget_together(tmp_path: Path) -> None:
    paths = [noise(tmp_path / f"{k}.png", (1200, 400), k) for k in range(3)]
    whole = photographs(paths)
    size = sum(map(len, whole))
    tight = photographs(paths, budget=size // 4)
    assert sum(map(len, tight)) <= size // 4 * 4 / 3
    assert len({unpacked(uri).width for uri in tight}) == 1  # all by one step
    none = photographs(paths, budget=len(tight[0]) // 8)
    assert none[-1] == ""
    assert sum(map(len, none)) <= len(tight[0]) // 8 * 4 / 3


def test_what_is_transparent_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 10), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    for uri in (drawing(tmp_path / "clear.png"), *photographs([tmp_path / "clear.png"])):
        assert np.asarray(unpacked(uri).convert("RGB")).min() >= 250
