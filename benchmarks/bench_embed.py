"""Patches a second through the actors in steady state, over the bare forward pass.

The floor is the frozen trunk alone, on normalised batches that lie in memory, in processes of its own: one a core
with one thread each, or one with all threads, whichever is faster in this run. Every round is a whole job into a new
store and the floor before and after it; a ratio is the median of the rounds'. Left out are the start of a job and
its end, where an actor has nothing to do.

Large slides are what scanners make: a pyramid, thousands of patches. The small one is a single level of 254
patches, which is decoded as a whole to find its tissue, and a commit for as many patches.

Four embedders share one decode. Their row is the wall time of a whole job, from the first slide handed out to the
last one committed, over the sum of the four bare forward passes. What reading takes is timed alone, one slide after
the other in this process, and given as a share of the job's core seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import tifffile
import torch

from benchmarks.harness import Row, main
from cluster.batching import fixed_batching
from cluster.embed_job import embed_slides
from cluster.job import EmbedOptions, Progress
from cluster.limits import available_cpus
from cluster.resources import ray_session
from her2cache.backbones.alexnet import Trunk, load_trunk
from her2cache.backbones.device import best_device
from her2cache.backbones.network import TorchEmbedder
from her2cache.cohort import Slide
from her2cache.embedder import Batching, Recipe, tensors_sha256
from her2cache.ingest import ReadOptions, read_slide
from her2cache.store.reader import FeatureStore
from her2cache.synthetic.cohort import write_synthetic_cohort
from her2cache.synthetic.writer import write_pyramid
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset

ROUNDS, BARE_BATCHES = 5, 24
LARGE_SLIDES, LARGE_TILES, SMALL_SLIDES, FOUR_SLIDES = 3, 4, 16, 2
STEADY = (0.15, 0.85)  # shares of a job's patches between which it is timed
DATA = Path(os.environ.get("HER2CACHE_DATA", Path(__file__).parents[2] / "shared/data"))
READING = ReadOptions(PatchSpec(), preset("HE"))
BATCHING = fixed_batching(READING.patch.patch_px, "cpu")


class Bare:
    """Processes that do nothing but the forward pass, each on its share of the batches."""

    def __init__(
        self, recipe: Recipe, processes: int, threads: int, batching: Batching = BATCHING, batches: int = BARE_BATCHES
    ) -> None:
        self.name = f"{processes} x {threads} thread" + "s" * (threads > 1)
        self._batching, self._batches = replace(batching, threads=threads), batches
        spawn = multiprocessing.get_context("spawn")
        self._ends = list[Connection]()
        for _ in range(processes):
            ours, theirs = spawn.Pipe()
            spawn.Process(target=_serve, args=(theirs, recipe, self._batching), daemon=True).start()
            self._ends.append(ours)
        for end in self._ends:
            end.recv()  # it has warmed up

    def rate(self) -> float:
        """Patches a second of all processes together."""
        share = max(1, self._batches // len(self._ends))
        started = time.perf_counter()
        for end in self._ends:
            end.send(share)
        for end in self._ends:
            end.recv()
        return share * len(self._ends) * self._batching.batch / (time.perf_counter() - started)

    def close(self) -> None:
        for end in self._ends:
            end.send(0)


def _serve(end: Connection, recipe: Recipe, batching: Batching) -> None:
    embedder, side = recipe.build(batching), recipe.spec.input_px
    assert isinstance(embedder, TorchEmbedder)
    pixels = np.random.default_rng(0).integers(0, 256, (batching.batch, side, side, 3), np.uint8)
    batch = embedder.prepare(torch.from_numpy(pixels).to(batching.device))
    batches = 1
    half = torch.autocast(batching.device, torch.float16, enabled=batching.precision == "float16")
    with torch.inference_mode(), half:
        while batches:
            for _ in range(batches):
                embedder._network(batch)
            if batching.device == "cuda":
                torch.cuda.synchronize()
            end.send(batches)
            batches = end.recv()


@dataclass(frozen=True)
class Job:
    """Slides that are embedded in every round."""

    name: str
    slides: Sequence[Slide]
    trunks: Sequence[Recipe]
    bar: float | None = None
    reading: ReadOptions = READING

    def run(self, store: Path) -> Result:
        """Embeds them all into a new store."""
        marks = list[tuple[float, int]]()

        def watch(progress: Progress) -> None:
            marks.append((time.perf_counter(), progress.written_patches))

        report = embed_slides(self.slides, self.trunks, FeatureStore.create(store), self.reading, EmbedOptions(), watch)
        assert all(outcome.status == "done" for outcome in report.outcomes), report.outcomes
        assert report.passes == [report.patches] * len(self.trunks)
        return Result(report.seconds, report.patches, _steady_rate(marks, report.patches))

    def read(self) -> float:
        """Seconds of one process to read all slides, patches and all, and do nothing with them."""
        options = replace(self.reading, block=4 * BATCHING.batch)
        started = time.perf_counter()
        for slide in self.slides:
            for _ in read_slide(slide, options):
                pass
        return time.perf_counter() - started


@dataclass(frozen=True)
class Result:
    """Seconds of a whole job, its patches, and patches a second between the two shares of `STEADY`."""

    seconds: float
    patches: int
    rate: float


def _steady_rate(marks: Sequence[tuple[float, int]], patches: int) -> float:
    """Patches a second between the shares of `STEADY`.

    Embedders that began together deliver together, so only whole turns of all of them are timed: the one delivery more
    or less is much where a job has few.

    Args:
        marks: seconds, and patches written by then; in order.
        patches: of the job.
    """
    embedders = available_cpus() if best_device() == "cpu" else 1
    deliveries = [mark for last, mark in pairwise([(0.0, 0), *marks]) if mark[1] > last[1]]
    low, high = (share * patches for share in STEADY)
    steady = [mark for mark in deliveries if low <= mark[1] <= high]
    turns = (len(steady) - 1) // embedders
    (start, before), (end, after) = steady[0], steady[turns * embedders]
    return (after - before) / (end - start)


def jobs(folder: Path, trunk: Trunk) -> list[Job]:
    """Large slides from copies of a rendered one side by side; the real slide under many ids, if it is there."""
    write_synthetic_cohort(folder / "cohort", slides=1, width_px=1536, mpp=READING.patch.mpp)
    (rendered,) = (folder / "cohort/slides").glob("*-HE.tif")
    large = folder / "large.tif"
    write_pyramid(large, np.tile(tifffile.imread(rendered), (LARGE_TILES, LARGE_TILES, 1)), READING.patch.mpp)
    slides = [Slide(f"l{k}", f"l{k}", large, "HE") for k in range(LARGE_SLIDES)]
    found = [Job("large slides", slides, [trunk], 0.80)]
    small = DATA / "slides/CMU-1-Small-Region.svs"
    if small.exists():
        found.append(Job("small slides", [Slide(f"s{k}", f"s{k}", small, "HE") for k in range(SMALL_SLIDES)], [trunk]))
    return [*found, Job("four embedders", slides[:FOUR_SLIDES], [trunk, *(_other(trunk, k) for k in range(3))])]


def _other(trunk: Trunk, k: int) -> Trunk:
    """Another trunk of as much work: its layers scaled a little."""
    tensors = {name: value * np.float32(1 + (k + 1) / 64) for name, value in trunk.tensors.items()}
    spec = replace(trunk.spec, name=f"{trunk.spec.name}-{k}", weights_sha256=tensors_sha256(tensors))
    return Trunk(spec, tensors, None)


def measure() -> list[Row]:
    cores = available_cpus()
    weights = DATA / "weights/alexnet_features_imagenet.pth"
    file = str(weights) if weights.exists() else ""
    trunk = load_trunk("alexnet-imagenet" if file else "alexnet-random", file, READING.patch.patch_px)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(ray_session())
        bare = [Bare(trunk, cores, 1), Bare(trunk, 1, cores)]
        for processes in bare:
            stack.callback(processes.close)
        floors = [[processes.rate() for processes in bare]]
        found = jobs(folder, trunk)
        through: dict[str, list[tuple[Result, list[float]]]] = {job.name: [] for job in found}
        reading = list[float]()
        for turn in range(ROUNDS):
            for job in found:
                result = job.run(folder / f"{job.name}-{turn}")
                floors.append([processes.rate() for processes in bare])
                around = [(a + b) / 2 for a, b in zip(floors[-2], floors[-1], strict=True)]
                through[job.name].append((result, around))
            reading.append(found[-1].read())
    medians = [statistics.median(rates) for rates in zip(*floors, strict=True)]
    best = medians.index(max(medians))
    floor_name = f"the bare forward pass ({bare[best].name})"
    rows = [_steady(job, through[job.name], best, floor_name) for job in found[:-1]]
    four, results = found[-1], [(result, floor[best]) for result, floor in through[found[-1].name]]
    seconds = statistics.median(result.seconds for result, _ in results)
    sums = [len(four.trunks) * result.patches / floor for result, floor in results]
    ratio = statistics.median(result.seconds / bare for (result, _), bare in zip(results, sums, strict=True))
    name = f"4 embedders, 1 view, one decode: a whole job over the sum of 4 times {floor_name}"
    rows.append(Row(name, seconds, "s", statistics.median(sums), ratio, "lower", 1.15))
    share = statistics.median(r / (cores * result.seconds) for r, (result, _) in zip(reading, results, strict=True))
    name = "the same slides only read: share of the job's core seconds"
    rows.append(Row(name, statistics.median(reading), "s", cores * seconds, share, "lower"))
    return rows


def _steady(job: Job, through: list[tuple[Result, list[float]]], best: int, floor_name: str) -> Row:
    """Patches a second of a job in steady state over the bare forward pass around it."""
    rates, floors = [result.rate for result, _ in through], [floor[best] for _, floor in through]
    ratio = statistics.median(rate / floor for rate, floor in zip(rates, floors, strict=True))
    name = f"through the actors, {job.name}, over {floor_name}"
    return Row(name, statistics.median(rates), "patches/s", statistics.median(floors), ratio, "higher", job.bar)


if __name__ == "__main__":
    main("bench_embed: patches a second in steady state", measure)
