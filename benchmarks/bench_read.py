"""Reading all patches of a slide: each segment decoded once, against a `read_region` a patch and against bare decoding.

The plan (every patch of the slide, tissue or not) is given and files are open beforehand, for all alike; the overview
is not timed, and nothing that it decoded is kept. The rival reads each patch by tiffslide's `read_region` and resamples
it by the same filter. The floor is the decoding alone of the same segments by tifffile, on one thread; what it decodes
is thrown away.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from tiffslide import TiffSlide

from benchmarks.harness import Row, interleaved, main, times_faster
from her2cache.pyramid import plan_read
from her2cache.slide import SlideReader, open_slide, resolve_mpp
from her2cache.tiling import PatchPlan, PatchSpec, plan_patches, read_blocks, resample, whole_pixels
from her2cache.tissue import TissueMask

DATA = Path(os.environ.get("HER2CACHE_DATA", Path(__file__).parents[1] / "../shared/data"))
SLIDES = ("CMU-1-Small-Region.svs", "synthetic_cmu1.ndpi")
PATCH_PX = (96, 224, 512)
NATIVE_MPP, RESAMPLED_MPP = 0.5, 0.8
BLOCK_BYTES = 2 << 20
ROUNDS = 7
OVER_READ_REGION, OF_BARE_DECODING = 20, 0.8


def plan_of(reader: SlideReader, patch_px: int, target_mpp: float) -> PatchPlan:
    """Every patch of a slide, tissue or not."""
    mpp, _ = resolve_mpp(reader, None)
    spec = PatchSpec(mpp=target_mpp, patch_px=patch_px, stride_px=patch_px, min_tissue=0)
    read = plan_read(mpp, reader.downsamples, spec.mpp)
    everywhere = TissueMask(np.ones((1, 1), np.bool_), max(reader.size))
    return plan_patches(spec, read, reader.level_sizes[read.level], everywhere)


def decode_once(reader: SlideReader, plan: PatchPlan) -> int:
    """Reads every patch as `embed` does; returns their number."""
    size = max(1, BLOCK_BYTES // (plan.patch_px**2 * 3))
    return sum(len(block.patches) for block in read_blocks(reader, plan, size))


def read_regions(slide: TiffSlide, plan: PatchPlan) -> int:
    """Reads every patch by tiffslide's `read_region`; returns their number."""
    level, side = plan.read.level, plan.patch_px
    windows = whole_pixels(plan.boxes)
    corners = np.rint(windows[:, :2] * plan.read.downsample).astype(int)
    read = 0
    for (x0, y0, x1, y1), corner, box in zip(windows.tolist(), corners.tolist(), plan.boxes, strict=True):
        pixels = np.asarray(slide.read_region(tuple(corner), level, (x1 - x0, y1 - y0)))
        if plan.read.factor != 1:
            pixels = resample(pixels, box - [x0, y0, x0, y0], side)
        read += pixels.shape == (side, side, 3)
    return read


def bare_decoding(slide: TiffSlide, level: int, indices: list[int]) -> int:
    """What tifffile's `page.segments(maxworkers=1)` does, for some segments; returns their number."""
    page: Any = slide.ts_tifffile.series[0].levels[level].pages[0]
    offsets, counts = page.dataoffsets, page.databytecounts
    file = page.parent.filehandle
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
    segments = file.read_segments([offsets[i] for i in indices], [counts[i] for i in indices], indices, lock=file.lock)
    return sum(page.decode(data, index, **tables, _fullsize=True)[0] is not None for data, index in segments)


def touched(reader: SlideReader, plan: PatchPlan) -> list[int]:
    """Segments under the patches of a plan."""
    grid = reader.segment_grid(plan.read.level)
    size = np.array([grid.width, grid.height])
    found = set[int]()
    for window in whole_pixels(plan.boxes):
        (x0, y0), (x1, y1) = window[:2] // size, (window[2:] - 1) // size
        found |= {y * grid.columns + x for y in range(y0, y1 + 1) for x in range(x0, x1 + 1)}
    return sorted(found)


def measure(path: Path, patch_px: int, target_mpp: float) -> list[Row]:
    with open_slide(path) as reader, TiffSlide(path) as slide:
        plan = plan_of(reader, patch_px, target_mpp)
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
    native = plan.read.factor == 1
    how = "native" if native else f"{plan.read.level_mpp:.3g} to {target_mpp:g} um/px"
    what = f"{path.suffix[1:].upper()}, {len(plan)} patches of {patch_px} px, {how}"
    return [
        times_faster(
            f"{what}: decode once over a read_region a patch",
            times["once"],
            times["read_region"],
            bar=OVER_READ_REGION if native and patch_px == min(PATCH_PX) else None,
        ),
        times_faster(
            f"{what}: decode once over bare decoding of its {len(indices)} segments",
            times["once"],
            times["bare"],
            bar=OF_BARE_DECODING if native else None,
        ),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--slide", type=Path, nargs="+", default=[DATA / "slides" / name for name in SLIDES])
    warnings.filterwarnings("ignore", "hamamatsu-format")  # of tiffslide; all that is asked for here is parsed
    own, sys.argv[1:] = parser.parse_known_args()
    cases = [(path, px, mpp) for path in own.slide for mpp in (NATIVE_MPP, RESAMPLED_MPP) for px in PATCH_PX]
    main(
        "bench_read: patches of a slide (--slide FILE ... for others)",
        lambda: [row for case in cases for row in measure(*case)],
    )
