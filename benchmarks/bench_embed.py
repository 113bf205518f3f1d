"""Patches a second through the actors in steady state, over the bare forward pass.

The floor is the frozen trunk alone, on normalised batches that lie in memory, in processes of its own: one a core
with one thread each, or one with all threads, whichever is faster in this run. Start-up and the end of a job, when
an actor has nothing to do, are left out.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Row, main
from cluster.embed_job import embed_slides
from cluster.pipeline import EmbedOptions, Progress, fixed_batching
from cluster.resources import available_cpus, ray_session
from her2cache.backbones import AlexNetEmbedder, Trunk, load_trunk
from her2cache.cohort import Slide
from her2cache.embedder import Batching
from her2cache.ingest import ReadOptions
from her2cache.store.reader import FeatureStore
from her2cache.synthetic.cohort import write_synthetic_cohort
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset

ROUNDS, SLIDES, LANES = 5, 16, 2
PATCH_PX, BARE_BATCHES = 96, 24
DATA = Path(os.environ.get("HER2CACHE_DATA", Path(__file__).parents[2] / "shared/data"))


class Bare:
    """Processes that do nothing but the forward pass, each on its share of the batches."""

    def __init__(self, trunk: Trunk, processes: int, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ends = list[Connection]()
        for _ in range(processes):
            ours, theirs = spawn.Pipe()
            spawn.Process(target=_serve, args=(theirs, trunk, threads), daemon=True).start()
            ours.recv()  # it has warmed up
            self._ends.append(ours)

    def rate(self) -> float:
        """Patches a second of all processes together."""
        share = BARE_BATCHES // len(self._ends)
        started = time.perf_counter()
        for end in self._ends:
            end.send(share)
        for end in self._ends:
            end.recv()
        batch = fixed_batching(PATCH_PX, "cpu").batch
        return share * len(self._ends) * batch / (time.perf_counter() - started)

    def close(self) -> None:
        for end in self._ends:
            end.send(0)


def _serve(end: Connection, trunk: Trunk, threads: int) -> None:
    batching = Batching(batch=fixed_batching(PATCH_PX, "cpu").batch, threads=threads)
    embedder = AlexNetEmbedder(trunk, batching)
    pixels = np.random.default_rng(0).integers(0, 256, (batching.batch, PATCH_PX, PATCH_PX, 3), np.uint8)
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32)
    batch = ((batch / 255 - embedder._mean) / embedder._std).contiguous(memory_format=torch.channels_last)
    batches = 3
    with torch.inference_mode():
        while batches:
            for _ in range(batches):
                embedder._model(batch)
            end.send(batches)
            batches = end.recv()


def slides_to_read(folder: Path) -> list[Slide]:
    """The real slide under many ids, or as many synthetic ones where there is no real one."""
    real = DATA / "slides/CMU-1-Small-Region.svs"
    if real.exists():
        return [Slide(f"s{k}", f"c{k}", real, "HE") for k in range(SLIDES)]
    write_synthetic_cohort(folder / "cohort", slides=SLIDES, width_px=1536)
    return [Slide(p.stem, p.stem, p, "HE") for p in sorted((folder / "cohort/slides").glob("*-HE.tif"))]


def actors(slides: list[Slide], trunk: Trunk, folder: Path) -> Callable[[], float]:
    """Embeds all slides into a new store each time; returns patches a second while every lane had a slide."""
    reading = ReadOptions(PatchSpec(patch_px=PATCH_PX, stride_px=PATCH_PX), preset("HE"))
    turn = 0

    def rate() -> float:
        nonlocal turn
        turn += 1
        marks = list[tuple[float, int]]()

        def watch(progress: Progress) -> None:
            if 1 <= progress.finished <= len(slides) - LANES:
                marks.append((time.perf_counter(), progress.written_patches))

        report = embed_slides(
            slides, [trunk], FeatureStore.create(folder / f"store{turn}"), reading, EmbedOptions(), watch
        )
        assert all(outcome.status == "done" for outcome in report.outcomes), report.outcomes
        (start, before), (end, after) = marks[0], marks[-1]
        return (after - before) / (end - start)

    return rate


def measure() -> list[Row]:
    cores = available_cpus()
    weights = DATA / "weights/alexnet_features_imagenet.pth"
    trunk = load_trunk(f"alexnet-imagenet={weights}" if weights.exists() else "alexnet-random", PATCH_PX)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(ray_session())
        through = actors(slides_to_read(folder), trunk, folder)
        bare = {f"{cores} x 1 thread": Bare(trunk, cores, 1), f"1 x {cores} threads": Bare(trunk, 1, cores)}
        for processes in bare.values():
            stack.callback(processes.close)
        rates: dict[str, list[float]] = {"through": [], **{name: [] for name in bare}}
        for _ in range(ROUNDS):
            rates["through"].append(through())
            for name, processes in bare.items():
                rates[name].append(processes.rate())
        print({name: [round(r) for r in values] for name, values in rates.items()}, os.getloadavg())
    median = {name: statistics.median(values) for name, values in rates.items()}
    best = max(bare, key=lambda name: median[name])
    value, floor = median["through"], median[best]
    name = f"patches/s through the actors over the bare forward pass ({best})"
    return [Row(name, value, "patches/s", floor, value / floor, "higher", 0.80)]


if __name__ == "__main__":
    main("bench_embed: patches through the actors in steady state", measure)
