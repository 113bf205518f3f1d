"""Scores and heatmaps from stored features: bags by patch scores, and a whole slide against embedding it again.

By patch scores each patch is scored once, and a bag is index arithmetic. The rival gathers the features of each bag
and runs the model on them, bag by bag, as the paper's code did. Both on two threads, both give the same score.

The other rows are what a user waits for: score, heatmap, contact sheet and GeoJSON of a slide that the store holds,
from opening the sweep to the files, against reading and embedding that slide once more, as tools do that store no
features. The rival draws nothing. Both on two threads, in a process that has its libraries loaded; AlexNet, the
lightest embedder there is, at 0.5 um/px. The large slide repeats the pixels of the real one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
import torch

from benchmarks.harness import Row, interleaved, main, times_faster
from cluster.drawing import MapOptions, draw_slide
from cluster.scoring import open_models
from her2cache.backbones.registry import load_recipe
from her2cache.cohort import Slide, write_cohort
from her2cache.embedder import Batching, Embedder, FeatureSpace
from her2cache.ingest import PatchBlock, ReadOptions, SlideSurvey, embed_block, read_slide
from her2cache.slide import open_slide
from her2cache.store.reader import FeatureStore
from her2cache.store.writer import SlideShape
from her2cache.synthetic.cohort import write_synthetic_cohort
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from trainers.model import AttentionMIL, Origin, TrainedModel
from trainers.score import draw_bags, score_slide
from trainers.tasks import find_task

BAGS, SIZE, PATCHES, DIM, UNITS, CLASSES = 1000, 100, 7000, 256, 256, 4
THREADS = 2
ROUNDS = 5
REPEATS = 5
"""The real slide side by side in either direction, for one of some 7,000 patches."""

DATA = Path(os.environ.get("HER2CACHE_DATA", Path(__file__).parents[2] / "shared" / "data"))
READING = ReadOptions(PatchSpec(), preset("HE"))


def bags() -> Row:
    """1,000 bags of a slide of 7,000 patches."""
    rng = np.random.default_rng(0)
    features = np.maximum(rng.standard_normal((PATCHES, DIM), np.float32) - 0.67, 0).astype(np.float16)
    module = AttentionMIL.seeded(DIM, CLASSES, UNITS, seed=0).eval()
    model = TrainedModel(module, Origin("run", "key", "net", "digest", 0, 0, find_task("four")))

    def by_scores() -> float:
        return score_slide([model.patch_scores(features)], PATCHES, bags=BAGS, size=SIZE).expected_score

    @torch.inference_mode()
    def bag_by_bag() -> float:
        expected = 0.0
        for rows in draw_bags(PATCHES, BAGS, SIZE, np.random.default_rng(0)):
            for bag in rows:
                logits = module(torch.from_numpy(features[bag].astype(np.float32))[None])  # (1, classes)
                expected += float(torch.softmax(logits, dim=1)[0] @ torch.arange(CLASSES, dtype=torch.float32))
        return expected / BAGS

    scores = by_scores(), bag_by_bag()
    assert abs(scores[0] - scores[1]) < 1e-4, scores
    times = interleaved({"scores": by_scores, "bags": bag_by_bag}, rounds=7)
    what = f"{BAGS:,} bags of {SIZE} on a slide of {PATCHES:,} patches x {DIM}"
    return times_faster(
        f"{what}: by patch scores over bag-by-bag forward passes", times["scores"], times["bags"], bar=10
    )


def embedded_slides(slides: list[Slide], name: str, folder: Path) -> Row:
    """Score and heatmap of one slide that is embedded, against embedding it again."""
    sweep, embed = _project(slides, folder)

    def from_the_store() -> None:
        models = open_models(sweep, best_fold=True)
        options = MapOptions(geojson=folder / "map.geojson", patches=folder / "patches.png")
        draw_slide(models, slides[0], folder / "map.png", options)

    patches = embed()
    times = interleaved({"store": from_the_store, "embed": embed}, rounds=ROUNDS)
    return times_faster(
        f"score and heatmap of an embedded slide, {name}, {patches:,} patches: over embedding it again",
        times["store"],
        times["embed"],
    )


def _project(slides: list[Slide], folder: Path) -> tuple[Path, Callable[[], int]]:
    """A sweep of one untrained model over a store that holds the first slide; and a function that embeds it again."""
    recipe = load_recipe("alexnet-random", READING.patch.patch_px)
    embedder = recipe.build(Batching(threads=THREADS))
    space = FeatureSpace(READING.patch, READING.tissue, recipe.spec)
    store = FeatureStore.create(folder / "store")
    key = store.add_space(space)
    _embed(slides[0], embedder, store, key)
    sweep = folder / "sweep"
    module = AttentionMIL.seeded(recipe.spec.dim, CLASSES, UNITS, seed=0)
    origin = Origin("run", key, recipe.spec.name, "digest", 0, 0, find_task("four"))
    TrainedModel(module, origin).save(sweep / "checkpoints" / "run.safetensors")
    of_run = {"run_id": "run", "space_key": key, "embedder": recipe.spec.name, "embedder_seed": 0}
    row = of_run | {"selected": True, "outer": None, "fold": 0, "val_loss": 1.0}
    pq.write_table(pa.Table.from_pylist([row]), sweep / "results.parquet")
    write_cohort(slides, folder / "cohort.csv")
    where = {"cohort": str(folder / "cohort.csv"), "store": str(folder / "store")}
    (sweep / "environment.json").write_text(json.dumps(where))
    data = f'[data]\ncohort = "cohort.csv"\nstore = "store"\nembedders = ["{recipe.spec.name}"]\n'
    (sweep / "experiment.toml").write_text(data)
    return sweep, lambda: _embed(slides[0], embedder)


def _embed(slide: Slide, embedder: Embedder, store: FeatureStore | None = None, key: str = "") -> int:
    """Reads and embeds a slide as `her2cache embed` does, into a store if there is one; returns its patches."""
    writer, patches = None, 0
    for part in read_slide(slide, READING):
        if isinstance(part, SlideSurvey):
            patches = len(part.coords)
            if store is not None:
                shape = SlideShape(
                    *(slide.slide_id, key, part.coords, 1, embedder.spec.dim, "float16"),
                    *(part.patch_level0_px, part.provenance),
                )
                writer = store.writer(shape)
        elif isinstance(part, PatchBlock):
            block = embed_block(part, [embedder])
            if writer is not None:
                (features,) = block.features
                assert isinstance(features, np.ndarray)
                writer.write(block.start, features, block.ok)
    if writer is not None:
        writer.commit({})
    return patches


def _repeated(path: Path, out: Path) -> Path:
    """A pyramid of the pixels of a slide, side by side."""
    with open_slide(path) as reader:
        pixels, _ = reader.thumbnail(max(reader.size))
        mpp = reader.file_mpp or READING.patch.mpp
    tile = pixels[: len(pixels) // 16 * 16, : pixels.shape[1] // 16 * 16]
    whole = np.tile(tile, (REPEATS, REPEATS, 1))
    with tifffile.TiffWriter(out) as file:
        for level, step in enumerate((1, 4, 16)):
            file.write(
                whole[::step, ::step],
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                subifds=2 if level == 0 else None,
                subfiletype=int(level > 0),
                resolution=(1e4 / mpp / step, 1e4 / mpp / step),
                resolutionunit="CENTIMETER",
            )
    return out


def measure() -> list[Row]:
    torch.set_num_threads(THREADS)
    rows = [bags()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real = DATA / "slides" / "CMU-1-Small-Region.svs"
        for each in ("small", "large"):
            (folder / each).mkdir()
        if not real.is_file():
            table = write_synthetic_cohort(folder / "synthetic", slides=1, workers=1)
            real = table.parent / "slides" / "case-001-HE.tif"
        rows.append(embedded_slides([Slide("s", "c", real, "HE")], real.stem, folder / "small"))
        large = Slide("s", "c", _repeated(real, folder / "large" / "large.tif"), "HE")
        rows.append(embedded_slides([large], f"{real.stem} {REPEATS} x {REPEATS} times", folder / "large"))
    return rows


if __name__ == "__main__":
    main("bench_score: scores and heatmaps from stored features", measure)
