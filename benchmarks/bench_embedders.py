"""Patches a second of some embedders through the whole path, over their bare forward pass and the other limits.

For each embedder a job embeds slides into a new store, as `bench_embed` does, and is timed in steady state; the bare
forward pass is timed before and after it, on normalised batches of the same shape, in processes of its own that are
arranged as the job's embedders: one a core, with one thread. That pass is the forward-bound limit. The decode-bound
limit is what reading the same slides takes, one process alone, times the cores that may read. The lower of the two is
named in the row: nothing can be faster than that.

The ResNet-50 has weights of chance: they cost as much as trained ones. Where there is a GPU everything runs there, in
float16, and the bare pass with it; otherwise on the processor in float32.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tifffile
import torch
from torchvision.models import resnet50

from benchmarks.bench_embed import Bare, Job
from benchmarks.harness import Row, main
from cluster.batching import fixed_batching
from cluster.limits import available_cpus
from cluster.resources import ray_session
from her2cache.backbones.device import best_device, device_name
from her2cache.backbones.registry import load_recipe
from her2cache.cohort import Slide
from her2cache.ingest import ReadOptions
from her2cache.synthetic.cohort import write_synthetic_cohort
from her2cache.synthetic.writer import write_pyramid
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset

ROUNDS = 3


@dataclass(frozen=True)
class Case:
    """An embedder on patches of one size.

    Attributes:
        name: for people.
        request: as on the command line; of the ResNet-50 its file is still to come.
        patch_px: of the patches.
        tiles: of a slide: copies of a rendered one of 1,536 px, down and across.
        slides: in a job; twenty times as many on a GPU.
        batches: of the bare forward pass a round; twenty times as many on a GPU.
    """

    name: str
    request: str
    patch_px: int
    tiles: tuple[int, int]
    slides: int
    batches: int


CASES = (
    Case("AlexNet, 96 px", "alexnet-random", 96, (4, 4), 1, 24),
    Case("AlexNet, 224 px", "alexnet-random", 224, (4, 4), 2, 8),
    Case("ResNet-50, 224 px, weights of chance", "torchvision:resnet50", 224, (4, 3), 1, 2),
)


@dataclass(frozen=True)
class Round:
    """Patches a second: through the whole path, of the bare forward pass around it, and of reading alone."""

    through: float
    forward: float
    reading: float


def measure() -> list[Row]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_synthetic_cohort(folder / "cohort", slides=1, width_px=1536, mpp=0.5)
        (rendered,) = (folder / "cohort/slides").glob("*-HE.tif")
        for tiles in {case.tiles for case in CASES}:
            write_pyramid(_slide(folder, tiles), np.tile(tifffile.imread(rendered), (*tiles, 1)), 0.5)
        torch.save(resnet50(weights=None).state_dict(), folder / "resnet50.pth")
        stack.enter_context(ray_session())
        return [row for case in CASES for row in _rows(case, _rounds(case, folder))]


def _slide(folder: Path, tiles: tuple[int, int]) -> Path:
    down, across = tiles
    return folder / f"{down}x{across}.tif"


def _rounds(case: Case, folder: Path) -> list[Round]:
    device, cores = best_device(), available_cpus()
    request = f"{case.request}={folder / 'resnet50.pth'}" if ":" in case.request else case.request
    recipe = load_recipe(request, case.patch_px)
    batching = fixed_batching(case.patch_px, device)
    reading = ReadOptions(PatchSpec(patch_px=case.patch_px, stride_px=case.patch_px), preset("HE"))
    times = 20 if device == "cuda" else 1
    slides = [Slide(f"s{k}", f"s{k}", _slide(folder, case.tiles), "HE") for k in range(times * case.slides)]
    job = Job(case.name, slides, [recipe], None, reading)
    one = replace(job, slides=slides[:1])
    bare = Bare(recipe, 1 if device == "cuda" else cores, 1, batching, times * case.batches)
    rounds: list[Round] = []
    try:
        before = bare.rate()
        for turn in range(ROUNDS):
            result = job.run(folder / f"{case.name}-{turn}")
            after = bare.rate()
            read = cores * result.patches / len(slides) / one.read()
            rounds.append(Round(result.rate, (before + after) / 2, read))
            before = after
    finally:
        bare.close()
    return rounds


def _rows(case: Case, rounds: list[Round]) -> list[Row]:
    through = statistics.median(r.through for r in rounds)
    forward = statistics.median(r.forward for r in rounds)
    reading = statistics.median(r.reading for r in rounds)
    place = f"{device_name()}, float16" if best_device() == "cuda" else "processor, float32"
    bound = "forward-bound" if forward < reading else "decode-bound"
    path = f"{case.name} ({place}), {bound}: the whole path over the bare forward pass"
    limit = f"{case.name}: the decode-bound limit (reading alone, all cores) over the forward-bound one"
    through_ratio = statistics.median(r.through / r.forward for r in rounds)
    limit_ratio = statistics.median(r.reading / r.forward for r in rounds)
    return [
        Row(path, through, "patches/s", forward, through_ratio, "higher"),
        Row(limit, reading, "patches/s", forward, limit_ratio, "higher"),
    ]


if __name__ == "__main__":
    main("bench_embedders: patches a second through the whole path", measure)
