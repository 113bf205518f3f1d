"""Memory of an embed job on a slide of 60,000 x 60,000 px, against one with a sixteenth of its area.

Both slides have the same tissue, islands of a rendered section spread over all of the glass, so both jobs embed about
the same number of patches. What a process pays for is its anonymous memory (RssAnon): files that are mapped, and Ray's
shared memory, are the page cache's. It is sampled through /proc while the command `her2cache embed` runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness import Row, main
from her2cache.synthetic.anatomy import AnatomyModel
from her2cache.synthetic.noise import Window
from her2cache.synthetic.section import Section, halo_px
from her2cache.synthetic.specimen import draw_case
from her2cache.synthetic.writer import write_regions
from her2cache.units import RgbImage
from tests.processes import descendants, title

SMALL_PX, LARGE_PX = 15_000, 60_000
ISLANDS = 6  # along a side
ISLAND_PX = 1152  # 12 patches
MPP = 0.5
KINDS = {"reader": "ray::Reader", "embedder": "ray::Embed", "writer": "ray::Writer"}
_EVERY_S = 0.02


def island() -> RgbImage:
    """Tissue from the middle of a rendered section, (ISLAND_PX, ISLAND_PX, 3)."""
    case = draw_case(0, 1)
    window = Window(1000.0, 1000.0, ISLAND_PX, ISLAND_PX, MPP).grown(halo_px(MPP))
    return Section(case, "HE").render(AnatomyModel(case, 2600.0, 2600.0).window(window))


def write_islands(path: Path, side_px: int) -> Path:
    """Writes a square slide of glass with ISLANDS x ISLANDS islands of tissue spread evenly over it."""
    tissue = island()
    pitch = side_px // ISLANDS
    starts = [k * pitch + (pitch - ISLAND_PX) // 2 for k in range(ISLANDS)]

    def render(x: int, y: int, width: int, height: int) -> RgbImage:
        pixels = np.full((height, width, 3), 243, np.uint8)
        for top in starts:
            for left in starts:
                x0, x1 = max(x, left), min(x + width, left + ISLAND_PX)
                y0, y1 = max(y, top), min(y + height, top + ISLAND_PX)
                if x0 < x1 and y0 < y1:
                    pixels[y0 - y : y1 - y, x0 - x : x1 - x] = tissue[y0 - top : y1 - top, x0 - left : x1 - left]
        return pixels

    write_regions(path, (side_px, side_px), render, MPP)
    return path


class PeakWatch:
    """Peaks of the anonymous memory of a process and of those below it, by kind, sampled in a thread.

    Attributes:
        peak_mb: MB of the largest process of each kind: "driver" for the process itself, and `KINDS`.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.peak_mb: dict[str, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        kinds: dict[int, str] = {self._pid: "driver"}
        looked = 0.0
        while not self._done.wait(_EVERY_S):
            if time.monotonic() > looked + 0.5:
                titles = {pid: title(pid) for pid in descendants(self._pid)}
                kinds |= {p: kind for p, t in titles.items() for kind, start in KINDS.items() if t.startswith(start)}
                looked = time.monotonic()
            for pid, kind in kinds.items():
                self.peak_mb[kind] = max(self.peak_mb.get(kind, 0.0), anonymous_mb(pid))


def anonymous_mb(pid: int | str) -> float:
    """Anonymous memory of a process now, MB; 0 when it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    return 0.0


@dataclass(frozen=True)
class Job:
    """What a job answered, and the peak of each kind of process, MB."""

    patches: int
    segments_decoded: int
    seconds: float
    peak_mb: dict[str, float]


def embed(slide: Path, store: Path) -> Job:
    """Runs `her2cache embed` with alexnet-random on a slide, and watches it."""
    command = [sys.executable, "-c", "from cluster.cli.main import main; main()", "embed", str(slide), "--store"]
    command += [str(store), "--embedder", "alexnet-random", "--stain", "HE", "--json"]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        with PeakWatch(process.pid) as watch:
            out, _ = process.communicate()
        errors.seek(0)
        assert process.returncode == 0, out + errors.read()
    answer = json.loads(out)
    return Job(answer["patches"], answer["segments_decoded"], time.monotonic() - started, watch.peak_mb)


def measure() -> list[Row]:
    jobs: list[Job] = []
    with tempfile.TemporaryDirectory() as folder:
        for side in (SMALL_PX, LARGE_PX):
            slide = write_islands(Path(folder) / f"islands-{side}.tif", side)
            jobs.append(embed(slide, Path(folder) / f"store-{side}"))
    small, large = jobs
    return [
        Row(
            f"{kind}: peak anonymous memory, {LARGE_PX:,} px over {SMALL_PX:,} px, {large.patches:,} patches",
            large.peak_mb[kind],
            "MB",
            small.peak_mb[kind],
            large.peak_mb[kind] / small.peak_mb[kind],
            "lower",
        )
        for kind in ("driver", *KINDS)
    ]


if __name__ == "__main__":
    main("bench_memory: processes of an embed job on a huge slide", measure)
