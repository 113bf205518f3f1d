"""A store on an S3 server on loopback against one in a directory: embedding, training, requests, staging.

The server is seaweedfs's `weed` on the same machine, so it takes part of the same processors and disk: nothing here
says what a network costs beyond its requests, which are counted apart, by a proxy that times nothing. Embedding is a
whole job on a Ray that is there already; training is a fit from features that are on the node, and one that stages them
first. Staging is compared with the same objects fetched by bare obstore with as many requests at once, written to files
that nobody flushes, sums or locks.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import obstore
import torch

from benchmarks.harness import Row, interleaved, main
from cluster.embed_job import embed_slides
from cluster.job import EmbedOptions
from cluster.resources import ray_session
from her2cache.backbones.registry import load_recipe
from her2cache.cohort import read_cohort
from her2cache.ingest import ReadOptions
from her2cache.store.bucket import AT_ONCE
from her2cache.store.cache import FOLDER_VARIABLE, Cache
from her2cache.store.objects import open_bucket, split_uri
from her2cache.store.reader import FeatureStore
from her2cache.synthetic.cohort import write_synthetic_cohort
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from tests.s3 import Proxy, S3Server
from trainers.config import read_experiment
from trainers.lockstep import Lockstep
from trainers.study import open_study

SLIDES, WIDTH_PX, VIEWS = 12, 1024, 2
ROUNDS = 5
THREADS = 2
READING = ReadOptions(PatchSpec(), preset("HE"))
EMBEDDER = "alexnet-random"

EXPERIMENT = """\
[data]
cohort = "cohort.csv"
store = "{store}"
embedders = ["alexnet-random"]
[splits]
folds = 2
test_slides = 4
[bags]
size = 20
per_epoch = 640
validation = 200
test = 200
[training]
epochs = 2
learning_rate = [1e-4]
weight_decay = [1e-5]
"""


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server, with the environment of this process set to use it."""
    server = S3Server(folder)
    server.start()
    os.environ.update(server.environment)
    try:
        yield server
    finally:
        server.kill()


def embed(cohort: Path, uri: str) -> None:
    """Embeds all slides of a cohort into a store."""
    slides = read_cohort(cohort).with_stain("HE").slides
    recipes = [load_recipe(EMBEDDER, READING.patch.patch_px)]
    report = embed_slides(slides, recipes, FeatureStore.create(uri), READING, EmbedOptions(), views=VIEWS)
    assert all(outcome.status in {"done", "skipped"} for outcome in report.outcomes), report.outcomes


def train(experiment: Path, out: Path) -> None:
    """The first fit of an experiment, as a trial of a sweep runs it."""
    study = open_study(read_experiment(experiment))
    plans = study.plans(1)[:1]
    fits = Lockstep(plans, study.experiment.data.store, out)
    while not fits.done:
        fits.epoch()


def empty_cache(folder: Path) -> None:
    """A cache of its own, with nothing in it."""
    os.environ[FOLDER_VARIABLE] = str(folder / uuid4().hex)


def stage(uri: str, folder: Path) -> int:
    """Stages every view of all slides into an empty cache; the bytes."""
    empty_cache(folder)
    store = FeatureStore.open(uri)
    maps = store.maps(EMBEDDER)
    maps.stage()
    return sum(path.stat().st_size for path in (Cache.of_node().folder / "files").iterdir())


def fetch(uri: str, folder: Path) -> None:
    """The same objects by bare obstore, into files."""
    target = folder / uuid4().hex
    target.mkdir()
    bucket, (_, prefix) = open_bucket(uri), split_uri(uri)
    keys = [entry["path"] for batch in obstore.list(bucket, f"{prefix}/attempts") for entry in batch]

    def one(key: str) -> None:
        with (target / uuid4().hex).open("wb") as file:
            for block in obstore.get(bucket, key).stream():
                file.write(memoryview(block))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, [key for key in keys if "/features/c/" in key]))


def measure() -> list[Row]:
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as name, s3_server(Path(name) / "weed") as server:
        folder = Path(name)
        empty_cache(folder)
        bucket = server.make_bucket("bench")
        cohort = write_synthetic_cohort(folder / "cohort", slides=SLIDES, width_px=WIDTH_PX, workers=1)
        with ray_session():
            jobs = {
                "s3": lambda: embed(cohort, f"{bucket}/{uuid4().hex}"),
                "local": lambda: embed(cohort, str(folder / uuid4().hex)),
            }
            times = interleaved(jobs, rounds=ROUNDS)
            stores = {"s3": f"{bucket}/store", "local": str(folder / "store")}
            for uri in stores.values():
                embed(cohort, uri)
            digests = [[r.digest for r in FeatureStore.open(uri).committed(EMBEDDER)] for uri in stores.values()]
            assert digests[0] == digests[1]
        what = f"{SLIDES} slides x {VIEWS} views"
        rows = [
            Row(
                f"embed {what}: on s3 over in a directory",
                times["s3"],
                "s",
                times["local"],
                times["s3"] / times["local"],
                "lower",
                1.25,
            )
        ]
        rows += trainings(cohort, stores, folder)
        size = stage(stores["s3"], folder)
        times = interleaved(
            {"staged": lambda: stage(stores["s3"], folder), "bare": lambda: fetch(stores["s3"], folder)}, rounds=ROUNDS
        )
        ratio = times["staged"] / times["bare"]
        rows.append(
            Row(f"stage {size / 1e6:,.0f} MB over bare obstore", times["staged"], "s", times["bare"], ratio, "lower", 2)
        )
        with Proxy(server) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
            rows += requests(cohort, f"{bucket}/{uuid4().hex}", proxy, folder)
    return rows


def trainings(cohort: Path, stores: dict[str, str], folder: Path) -> list[Row]:
    """A fit from the store on s3, with an empty cache and a full one, over one from the store in a directory."""
    experiments: dict[str, Path] = {}
    for name, uri in stores.items():
        experiments[name] = cohort.parent / f"{name}.toml"
        experiments[name].write_text(EXPERIMENT.format(store=uri))
    train(experiments["s3"], folder / "warm-up")
    full = os.environ[FOLDER_VARIABLE]

    def run(name: str, *, empty: bool = False) -> None:
        os.environ[FOLDER_VARIABLE] = full
        if empty:
            empty_cache(folder)
        train(experiments[name], folder / f"fit-{uuid4().hex}")

    times = interleaved(
        {"full": lambda: run("s3"), "empty": lambda: run("s3", empty=True), "local": lambda: run("local")},
        rounds=ROUNDS,
    )
    found = [
        Row(f"a fit from s3, {kind} cache: over one from a directory", times[kind], "s", times["local"], 0, "lower")
        for kind in ("full", "empty")
    ]
    return [
        Row(r.name, r.value, r.unit, r.floor, r.value / r.floor, r.better, bar)
        for r, bar in zip(found, (1.25, None), strict=True)
    ]


def requests(cohort: Path, uri: str, proxy: Proxy, folder: Path) -> list[Row]:
    """Requests a slide of a job, of one with nothing to do, and of opening its features; over what must be moved."""
    store = FeatureStore.create(uri)
    files = 5 + VIEWS - 1  # metadata of the group and two arrays, coords, views

    def counted(name: str, least: int) -> Row:
        count = len(proxy.asked) / SLIDES
        proxy.asked.clear()
        return Row(f"requests a slide: {name}", count, "requests", least, count / least, "lower")

    proxy.asked.clear()
    with ray_session():
        embed(cohort, uri)
        rows = [counted(f"embed, {files} files and a commit", files + 1)]
    embed(cohort, uri)
    rows.append(counted("embed again, with nothing to do", 1))
    empty_cache(folder)
    for kind, least in (("empty", 1 + VIEWS), ("full", 1)):
        maps = store.maps(EMBEDDER)
        maps.stage()
        assert all(np.isfinite(views[0][:1]).all() for views in maps.values())
        rows.append(counted(f"opening features, {kind} cache", least))
    return rows


if __name__ == "__main__":
    main("bench_s3: a store on an S3 server on loopback", measure)
