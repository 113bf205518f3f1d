"""Reading all 96 px patches of a slide: each segment decoded once, against a `read_region` a patch.

The plan (every patch of the slide at 0.5 um/px) is given and files are open beforehand, for all alike; the overview is
not timed, and nothing that it decoded is kept. The floor is the decoding alone of the same segments by tifffile, on
one thread.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from tiffslide import TiffSlide

from benchmarks.harness import Row, interleaved, main, times_faster
from her2cache.pyramid import plan_read
from her2cache.slide import SlideReader, open_slide, resolve_mpp
from her2cache.tiling import PatchPlan, PatchSpec, plan_patches, read_bands
from her2cache.tissue import TissueMask

DATA = Path(os.environ.get("HER2CACHE_DATA", Path(__file__).parents[1] / "../shared/data"))
ROUNDS = 7


def plan_of(reader: SlideReader) -> PatchPlan:
    """Every patch of a slide, tissue or not."""
    mpp, _ = resolve_mpp(reader, None)
    spec = PatchSpec(min_tissue=0)
    read = plan_read(mpp, reader.downsamples, spec.mpp)
    everywhere = TissueMask(np.ones((1, 1), np.bool_), max(reader.size))
    return plan_patches(spec, read, reader.level_sizes[read.level], everywhere)


def decode_once(reader: SlideReader, plan: PatchPlan) -> int:
    """Reads every patch as `embed` does; returns their number."""
    return sum(len(band.patches) for band in read_bands(reader, plan))


def read_regions(slide: TiffSlide, plan: PatchPlan) -> int:
    """Reads every patch by tiffslide's `read_region`; returns their number."""
    level, side = plan.read.level, plan.patch_px
    return sum(
        len(np.asarray(slide.read_region((int(x), int(y)), level, (side, side)))) == side for x, y in plan.coords
    )


def bare_decoding(slide: TiffSlide, level: int, indices: list[int]) -> int:
    """What tifffile's `page.segments(maxworkers=1)` does, for some segments; returns their number."""
    page = slide.ts_tifffile.series[0].levels[level].pages[0]
    offsets, counts = page.dataoffsets, page.databytecounts
    file = page.parent.filehandle
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
    segments = file.read_segments([offsets[i] for i in indices], [counts[i] for i in indices], indices, lock=file.lock)
    return sum(page.decode(data, index, **tables, _fullsize=True)[0] is not None for data, index in segments)


def touched(reader: SlideReader, plan: PatchPlan) -> list[int]:
    """Segments under the patches of a plan that is read without resampling."""
    grid = reader.segment_grid(plan.read.level)
    size = np.array([grid.width, grid.height])
    found = set[int]()
    for box in plan.boxes.round().astype(int):
        (x0, y0), (x1, y1) = box[:2] // size, (box[2:] - 1) // size
        found |= {y * grid.columns + x for y in range(y0, y1 + 1) for x in range(x0, x1 + 1)}
    return sorted(found)


def measure(path: Path) -> list[Row]:
    with open_slide(path) as reader, TiffSlide(path) as slide:
        plan = plan_of(reader)
        indices = touched(reader, plan)
        before = sum(reader.decoded)
        assert decode_once(reader, plan) == read_regions(slide, plan) == len(plan)
        assert sum(reader.decoded) - before == len(indices) == bare_decoding(slide, plan.read.level, indices)
        times = interleaved(
            {
                "once": lambda: decode_once(reader, plan),
                "read_region": lambda: read_regions(slide, plan),
                "bare": lambda: bare_decoding(slide, plan.read.level, indices),
            },
            rounds=ROUNDS,
        )
    what = f"{path.suffix[1:].upper()}, {len(plan)} patches of 96 px"
    return [
        times_faster(f"{what}: decode once over a read_region a patch", times["once"], times["read_region"], bar=15),
        times_faster(
            f"{what}: decode once over bare decoding of its {len(indices)} segments", times["once"], times["bare"]
        ),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--slide", type=Path, default=DATA / "slides/CMU-1-Small-Region.svs")
    own, sys.argv[1:] = parser.parse_known_args()
    main("bench_read: patches of a slide (--slide FILE for another)", lambda: measure(own.slide))
