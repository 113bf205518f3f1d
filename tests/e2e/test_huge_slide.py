"""A slide of 60,000 x 60,000 px: memory is bounded in every process, and no segment is decoded twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench_memory import ISLAND_PX, ISLANDS, LARGE_PX, SMALL_PX, Job, PeakWatch, embed, write_islands
from her2cache.cohort import Slide
from her2cache.ingest import ReadOptions, ReadSummary, read_slide
from her2cache.store.reader import FeatureStore
from her2cache.synthetic import writer
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset

pytestmark = pytest.mark.slow

SEGMENT_PX = 256
OVERVIEW_PX = 8 / 0.5  # level-0 px along a pixel of the level that tissue is looked for in
READER_MB, GROWTH_MB = 200, 40


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_islands(tmp_path_factory.mktemp("small") / "slide.tif", SMALL_PX)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_islands(tmp_path_factory.mktemp("large") / "slide.tif", LARGE_PX)


def segments_of_overview(side_px: int) -> int:
    return int(-(-side_px // OVERVIEW_PX // SEGMENT_PX)) ** 2


def segments_under(corners: np.ndarray) -> int:
    """Segments of level 0 under patches of 96 px, counted one by one."""
    return len(
        {(a // SEGMENT_PX, b // SEGMENT_PX) for x, y in corners.tolist() for a in (x, x + 95) for b in (y, y + 95)}
    )


def test_a_job_on_a_slide_of_sixteen_times_the_area(small: Path, large: Path, tmp_path: Path) -> None:
    jobs: dict[int, Job] = {}
    for side, slide in ((SMALL_PX, small), (LARGE_PX, large)):
        jobs[side] = job = embed(slide, tmp_path / f"store-{side}")
        store = FeatureStore.open(tmp_path / f"store-{side}")
        corners = store.coords("slide", store.spaces()[0].key)
        assert len(corners) == job.patches == pytest.approx(ISLANDS**2 * (ISLAND_PX / 96) ** 2, rel=0.1)
        assert job.segments_decoded == segments_under(corners) + segments_of_overview(side)
    print({side: job.peak_mb for side, job in jobs.items()})  # noqa: T201 - shown when it fails
    for kind in ("driver", "reader", "embedder", "writer"):
        assert jobs[LARGE_PX].peak_mb[kind] < jobs[SMALL_PX].peak_mb[kind] + GROWTH_MB, kind
    assert jobs[LARGE_PX].peak_mb["reader"] < READER_MB  # a row of segments, and the picture tissue is found in


def read(path: str) -> None:
    """Reads a slide as a reader does; prints the segments that it decoded, a level each."""
    items = read_slide(
        Slide("slide", "slide", Path(path), "HE", None, None, None),
        ReadOptions(PatchSpec(), preset("HE"), block=256),
    )
    for item in items:
        if isinstance(item, ReadSummary):
            sys.stdout.write(json.dumps(item.segments_decoded))


def read_watched(slide: Path, folder: Path) -> tuple[list[int], float]:
    """Reads a slide in a process of its own: segments decoded, a level each, and the peak of its memory, MB."""
    code = "import sys; from tests.e2e.test_huge_slide import read; read(sys.argv[1])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(slide)],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with PeakWatch(process.pid) as watch:
        out, _ = process.communicate()
    return json.loads(out), watch.peak_mb["driver"]


def test_a_reader_on_the_whole_slide(large: Path, tmp_path: Path) -> None:
    decoded, peak_mb = read_watched(large, tmp_path)
    assert decoded[2] == segments_of_overview(LARGE_PX)
    assert sum(decoded) == decoded[0] + decoded[2]
    assert peak_mb < READER_MB


def test_a_slide_without_a_pyramid_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the overview decoded, 675 MB, waits on disk for the patches."""
    monkeypatch.setattr(writer, "_SMALLEST_PX", SMALL_PX)
    slide = write_islands(tmp_path / "slide.tif", SMALL_PX)
    decoded, peak_mb = read_watched(slide, tmp_path)
    assert decoded == [(-(-SMALL_PX // SEGMENT_PX)) ** 2]
    assert peak_mb < 250
    assert [path.name for path in tmp_path.iterdir()] == ["slide.tif"]
