"""The viewer over real HTTP: what it serves, to whom, and what it does not."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from her2cache.deepzoom import TILE_PX, read_tile
from her2cache.errors import ConfigError
from her2cache.slide import open_slide
from tests.slides import texture, write_slide
from tests.viewers import PATCH, TwoSlides
from trainers.viewer.raster import lay_out
from trainers.viewer.scene import Scene, SlideEntry
from trainers.viewer.server import Viewer
from trainers.viewer.tiles import TileKey, Tiles


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("viewer")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with Viewer(TwoSlides(folder), workers=2).running() as address:
        yield address


def get(url: str, path: str, token: str | None = None) -> bytes:
    parts = urlsplit(url)
    token = parse_qs(parts.query)["token"][0] if token is None else token
    with urlopen(f"http://{parts.netloc}{path}?token={token}", timeout=30) as answer:
        return answer.read()


def status(url: str, path: str, token: str | None = None) -> int:
    with pytest.raises(HTTPError) as caught:
        get(url, path, token)
    caught.value.close()
    return caught.value.code


def picture(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_the_first_page_is_a_slide(url: str) -> None:
    with urlopen(url, timeout=30) as answer:
        assert urlsplit(answer.url).path == "/slide/0"
        policy, html = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert "<h1>first</h1>" in html
    assert "second &lt;b&gt;" in html  # names are data
    assert "second <b>" not in html
    assert "http://" not in html.replace("http://www.w3.org", "")  # nothing from elsewhere


def test_tiles_are_the_slide(url: str, folder: Path) -> None:
    with open_slide(folder / "first.tif") as slide:
        expected = read_tile(slide, 1, 0, 0)
    found = picture(get(url, "/tile/0/he/1/0/0.jpg"))
    assert found.shape == (TILE_PX, TILE_PX, 3)
    assert np.abs(found.astype(int) - expected).mean() < 8  # JPEG
    other = picture(get(url, "/tile/0/ihc/1/0/0.jpg"))
    assert np.abs(other.astype(int) - expected).mean() > 8


def test_a_patch_is_the_slides(url: str, folder: Path) -> None:
    with open_slide(folder / "first.tif") as slide:
        level0 = read_tile(slide, 2, 0, 0)[PATCH : 2 * PATCH, PATCH : 2 * PATCH]
    found = picture(get(url, "/patch/0/13.jpg"))  # second column of the second row of twelve
    shrunk = np.asarray(Image.fromarray(found).resize((PATCH, PATCH), Image.Resampling.BOX))
    assert np.abs(shrunk.astype(int) - level0).mean() < 8


@pytest.mark.parametrize(
    "path",
    [
        "/slide/3",
        "/slide/99999",
        "/slide/../../etc/passwd",
        "/slide/first",
        "/static/../server.py",
        "/static/page.html.j2",
        "/static/nothing.js",
        "/tile/3/he/0/0/0.jpg",
        "/tile/1/ihc/0/0/0.jpg",  # it has no sister
        "/tile/0/other/0/0/0.jpg",
        "/tile/0/he/9/0/0.jpg",
        "/tile/0/he/999/0/0.jpg",
        "/tile/0/he/1/2/0.jpg",
        "/tile/0/he/1/999999999/0.jpg",
        "/tile/0/he/1/-1/0.jpg",
        "/tile/%2e%2e/he/0/0/0.jpg",
        "/patch/0/96.jpg",
        "/patch/0/999999999.jpg",
        "/cohort.csv",
    ],
)
def test_nothing_else_is_served(url: str, path: str) -> None:
    assert status(url, path) == 404


@pytest.mark.parametrize("path", ["/", "/slide/0", "/static/viewer.js", "/tile/0/he/0/0/0.jpg", "/patch/0/0.jpg", "/x"])
def test_every_request_needs_the_token(url: str, path: str) -> None:
    assert status(url, path, "") == 403
    assert status(url, path, "guess") == 403


def test_a_slide_that_cannot_be_read_has_a_page_that_says_so(url: str) -> None:
    html = get(url, "/slide/2").decode()
    assert "cannot be shown: lost.tif does not exist on this machine" in html
    assert 'href="/slide/0' in html


def test_fifty_clients_at_once(url: str) -> None:
    paths = [f"/tile/{k % 2}/he/2/{k % 3}/{k % 2}.jpg" for k in range(46)] + ["/slide/0", "/slide/1"] * 2
    with ThreadPoolExecutor(50) as clients:
        sizes = list(clients.map(lambda path: len(get(url, path)), paths * 4))
    assert min(sizes) > 1000


def test_more_slides_than_are_kept(folder: Path) -> None:
    """A slide's values may go, its tiles need them no more."""
    two = TwoSlides(folder)

    class Twelve:
        title, opened = "twelve", 0

        def entries(self) -> Sequence[SlideEntry]:
            return [replace(two.entries()[0], slide_id=f"s{k}") for k in range(12)]

        def open(self, slide_id: str) -> Scene:
            self.opened += 1
            if self.opened == 1:
                raise OSError("the disk had a bad moment")
            return two.open("first")

    twelve = Twelve()
    with Viewer(twelve, workers=2).running() as own:
        assert status(own, "/tile/0/he/0/0/0.jpg") == 500
        for _ in range(2):  # what failed once may work now
            for k in range(12):
                assert len(get(own, f"/tile/{k}/he/0/0/0.jpg")) > 1000
                assert len(get(own, f"/patch/{k}/3.jpg")) > 1000
    assert twelve.opened == 13


def test_a_port_that_is_taken(url: str, folder: Path) -> None:
    taken = urlsplit(url).port
    assert taken is not None
    with pytest.raises(ConfigError, match="another program has the port"):
        Viewer(TwoSlides(folder), port=taken)


def test_it_binds_loopback_unless_told() -> None:
    assert Viewer.__init__.__defaults__ is not None
    assert Viewer.__init__.__defaults__[0] == "127.0.0.1"


def test_tiles_are_kept_within_their_room(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tif", texture(1000, 1000))
    one = Tiles({"s": path}, workers=1)
    size = len(one.get(TileKey("s", 1, 0, 0)).result())
    one.close()
    tiles = Tiles({"s": path}, workers=1, cache_bytes=int(2.5 * size))
    keys = [TileKey("s", 1, 0, 0), TileKey("s", 1, 1, 0), TileKey("s", 1, 0, 1)]
    first = [tiles.get(key).result() for key in keys]
    path.unlink()  # what is kept needs no file
    tiles._readers.close()
    assert tiles.get(keys[2]).result() == first[2]
    assert tiles.get(keys[1]).result() == first[1]
    with pytest.raises(Exception, match="does not exist"):
        tiles.get(keys[0]).result()
    tiles.close()


def test_patches_are_cells() -> None:
    """Rounded to whole pixels, and overlapping."""
    coords = np.array([[10, 20], [58, 20], [107, 68], [10, 165]], np.int32)
    raster = lay_out(coords, 96.4, 48.2)
    assert (raster.columns, raster.rows) == (3, 4)
    assert raster.cells.tolist() == [0, 1, 5, 9]
    assert (raster.left, raster.top) == (pytest.approx(34.1), pytest.approx(44.1))
