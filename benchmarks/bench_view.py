"""Cold tiles a second that the viewer serves to 8 clients, over decoding and encoding the same tiles for 8 clients.

The clients are threads of a process of their own, each with a connection that it keeps, which together ask for every
tile of the finest native zoom of a slide once; a round has a viewer of its own, so that nothing comes from its cache.
The floor has no HTTP: eight threads beside each other that decode and encode the same tiles from eight open slides.

The time to the first full view is that from the start of the server to the last tile that a window of 1,280 x 800 px
shows of the whole slide.
"""

from __future__ import annotations

import json
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import tifffile

from benchmarks.harness import Row, main, over_floor
from cluster.limits import available_cpus
from her2cache.deepzoom import TILE_PX, native_zoom, read_tile
from her2cache.slide import SlideReader, open_slide
from her2cache.synthetic.cohort import write_synthetic_cohort
from her2cache.synthetic.writer import write_pyramid
from trainers.viewer.scene import Layer, Picture, Scene, SlideEntry
from trainers.viewer.server import Viewer
from trainers.viewer.tiles import encode

CLIENTS = 8
ROUNDS = 5
COPIES = 6
"""Of a rendered slide of 1,536 px, side by side, each way."""

WINDOW = (1280, 800)

Tile = tuple[int, int, int]
"""Zoom, column, row."""


class OneSlide:
    """A slide with a value a patch."""

    title = "bench_view"

    def __init__(self, path: Path) -> None:
        with open_slide(path) as slide:
            self.size = slide.size
        self._picture = Picture(path, self.size, 0.5)

    def entries(self) -> Sequence[SlideEntry]:
        return (SlideEntry("large", "large", "2+", "2+", 2.0, "test"),)

    def open(self, slide_id: str) -> Scene:
        side = self.size[0] // 96
        coords = 96 * np.array([(x, y) for y in range(side) for x in range(side)], np.int32)
        layer = Layer("value", "", np.linspace(0, 2, len(coords)), 0, 2)
        return Scene(self._picture, None, coords, 96, 96, [layer], "")


def ask(url: str, paths: Sequence[str]) -> float:
    """Asks for all paths with `CLIENTS` connections; returns the seconds that it took."""
    todo: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for path in (*paths, *[None] * CLIENTS):
        todo.put(path)
    parts, lost = urlsplit(url), list[str]()

    def client() -> None:
        connection = HTTPConnection(parts.netloc, timeout=60)
        while (path := todo.get()) is not None:
            connection.request("GET", f"{path}?{parts.query}")
            answer = connection.getresponse()
            if not answer.read().startswith(b"\xff\xd8"):
                lost.append(path)
        connection.close()

    seconds = beside_each_other(client)
    if lost:
        raise RuntimeError(f"{len(lost)} of {len(paths)} answers are no JPEG, first {lost[0]}")
    return seconds


def beside_each_other(run: Callable[[], None]) -> float:
    threads = [threading.Thread(target=run) for _ in range(CLIENTS)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def serve_clients() -> None:
    """The process of the clients: a line of JSON with address and paths, the seconds back."""
    for line in sys.stdin:
        print(ask(*json.loads(line)), flush=True)


class Clients:
    """The process of the clients."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", "from benchmarks.bench_view import serve_clients; serve_clients()"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def load(self, slides: OneSlide, paths: Sequence[str]) -> tuple[float, float]:
        """Seconds in which all paths of a new viewer were loaded: from the first request, and from its start."""
        told, answers = self._process.stdin, self._process.stdout
        assert told is not None
        assert answers is not None
        start = time.perf_counter()
        with Viewer(slides, workers=available_cpus()).running() as url:
            told.write(json.dumps([url, paths]) + "\n")
            told.flush()
            return float(answers.readline()), time.perf_counter() - start

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def measure() -> list[Row]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = write_large(folder)
        slides, clients = OneSlide(path), Clients()
        stack.callback(clients.close)
        readers = [stack.enter_context(open_slide(path)) for _ in range(CLIENTS)]
        side, whole = -(-slides.size[0] // TILE_PX), fitting_zoom(slides.size)
        cold = [(native_zoom(slides.size), x, y) for y in range(side) for x in range(side)]
        first = [(whole, x, y) for y in range(2**whole) for x in range(2**whole)]
        rounds = [
            (
                clients.load(slides, paths_of(cold))[0],
                bare(readers, cold),
                clients.load(slides, paths_of(first))[1],
                bare(readers, first),
            )
            for _ in range(1 + ROUNDS)
        ]
    serve, bare_cold, view_s, bare_view = (statistics.median(times) for times in zip(*rounds[1:], strict=True))
    rate, floor = len(cold) / serve, len(cold) / bare_cold
    what = f"{len(cold)} cold tiles of {TILE_PX} px served to {CLIENTS} clients over decoding and encoding alone"
    view = f"first full view of {slides.size[0]:,} px ({len(first)} tiles), from the start of the server"
    return [
        Row(what, rate, "tiles/s", floor, rate / floor, "higher", 0.6),
        over_floor(f"{view}, over decoding and encoding alone", view_s, bare_view),
    ]


def write_large(folder: Path) -> Path:
    write_synthetic_cohort(folder / "cohort", slides=1, width_px=1536, mpp=0.5)
    (rendered,) = (folder / "cohort/slides").glob("*-HE.tif")
    write_pyramid(folder / "large.tif", np.tile(tifffile.imread(rendered), (COPIES, COPIES, 1)), 0.5)
    return folder / "large.tif"


def paths_of(tiles: Sequence[Tile]) -> list[str]:
    return [f"/tile/0/he/{zoom}/{column}/{row}.jpg" for zoom, column, row in tiles]


def bare(readers: Sequence[SlideReader], tiles: Sequence[Tile]) -> float:
    """Decodes and encodes tiles by as many threads as there are clients; returns the seconds that it took."""
    todo: queue.SimpleQueue[Tile | None] = queue.SimpleQueue()
    for tile in (*tiles, *[None] * CLIENTS):
        todo.put(tile)
    free = list(readers)

    def client() -> None:
        reader = free.pop()
        while (tile := todo.get()) is not None:
            encode(read_tile(reader, *tile))

    return beside_each_other(client)


def fitting_zoom(size: tuple[int, int]) -> int:
    """The zoom whose pixels a window shows of the whole slide."""
    shown = max(size[0] / WINDOW[0], size[1] / WINDOW[1])  # level-0 px per px
    return max(0, native_zoom(size) - int(np.log2(shown)))


if __name__ == "__main__":
    main("bench_view: tiles of the viewer", measure)
