"""A sweep directory with checkpoints, as far as scoring and drawing need one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile

from her2cache.cohort import Slide, write_cohort
from her2cache.embedder import EmbedderSpec, FeatureSpace
from her2cache.slide import file_identity
from her2cache.store.reader import FeatureStore
from her2cache.store.writer import SlideShape
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from trainers.metrics import evaluate
from trainers.model import AttentionMIL, Origin, TrainedModel
from trainers.results import write_csv
from trainers.tasks import find_task

DIM, FOLDS, SIDE = 16, 3, 96
TRUTH = np.random.default_rng(8).random((8, 10)).astype(np.float32)
COORDS = np.array([(x, y) for y in range(0, 768, SIDE) for x in range(0, 960, SIDE)], np.int32)  # (80, 2)


def space_of(name: str) -> FeatureSpace:
    embedder = EmbedderSpec(name, DIM, SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), name)
    return FeatureSpace(PatchSpec(), preset("HE"), embedder)


def _write_slide(path: Path) -> None:
    rng = np.random.default_rng(len(path.name))
    pixels = rng.integers(120, 240, (768, 960, 3), np.uint8)
    options = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}  # 0.5 um/px
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", **options)  # pyright: ignore[reportArgumentType]


def scored_sweep(root: Path) -> Path:
    """A sweep of untrained models of two embedders over four embedded slides, all of them its test set.

    Slide s0 has an IHC sister in the cohort, and a truth map.
    """
    rng = np.random.default_rng(0)
    slides = [Slide(f"s{k}", f"c{k}", root / f"s{k}.tif", "HE", k) for k in range(4)]
    for slide in slides:
        _write_slide(slide.path)
    sister = Slide("s0-ihc", "c0", root / "s0-ihc.tif", "IHC", 0)
    _write_slide(sister.path)
    write_cohort([*slides, sister], root / "cohort.csv")
    (root / "truth").mkdir()
    np.savez(root / "truth" / "s0.npz", tumour_fraction=TRUTH, patch_px=np.int32(96), mpp=np.float64(0.5))

    store = FeatureStore.create(root / "store")
    for name in ("one", "two"):
        key = store.add_space(space_of(name))
        for slide in slides:
            provenance = {"path": str(slide.path), **file_identity(slide.path), "mpp": 0.5}
            writer = store.writer(SlideShape(slide.slide_id, key, COORDS, 1, DIM, "float16", float(SIDE), provenance))
            features = rng.normal(size=(1, len(COORDS), DIM)).astype(np.float16)
            writer.write(0, features, np.ones(len(COORDS), np.bool_))
            assert writer.commit({}) == "committed"

    out = root / "sweep"
    results: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for name, loss in (("one", 1.3), ("two", 1.1)):
        for fold in range(FOLDS):
            run_id, key = f"{name}-f{fold}", space_of(name).key
            model = AttentionMIL.seeded(DIM, 4, 8, seed=fold)
            origin = Origin(run_id, key, name, "digest", fold, 0, find_task("four"))
            TrainedModel(model, origin).save(out / "checkpoints" / f"{run_id}.safetensors")
            p = rng.dirichlet(np.ones(4), size=40)
            label = np.arange(40) % 4
            levels = {"bag": evaluate(label, p, 4), "slide": evaluate(np.arange(4), p[:4], 4)}
            setting = {"learning_rate": 1e-3, "weight_decay": 1e-5, "seed": fold, "epoch": 0, "task": "four"}
            of_run = {"embedder_seed": 0, "outer": None, "selected": True}
            results.append(
                {"run_id": run_id, "space_key": key, "embedder": name, "fold": fold, "val_loss": loss + (fold - 1) ** 2}
                | setting
                | of_run
                | {"n_bags": 40, "n_slides": 4, "n_cases": 4}
                | {f"{level}_{metric}": v for level, found in levels.items() for metric, v in found.items()}
            )
            predictions += [
                {"run_id": run_id, "embedder": name, "slide_id": f"s{c}", "case_id": f"c{c}", "label": c}
                | of_run
                | {f"p_{k}": float(p[i, k]) for k in range(4)}
                for i, c in enumerate(label.tolist())
            ]
    pq.write_table(pa.Table.from_pylist(results), out / "results.parquet")
    pq.write_table(pa.Table.from_pylist(predictions), out / "predictions.parquet")
    losses = {"train_loss": 1.0, "best": True, "reason": ""}
    pq.write_table(pa.Table.from_pylist([row | losses for row in results]), out / "runs.parquet")
    write_csv(out / "selection.csv", [row for row in results if row["fold"] == 0])
    (out / "experiment.toml").write_text(
        '[data]\ncohort = "cohort.csv"\nstore = "store"\nembedders = ["one", "two"]\n[bags]\nsize = 20\n'
    )  # a copy: its relative paths start at the folder it came from, which environment.json tells
    where = {"cohort": str(root / "cohort.csv"), "store": str(root / "store")}
    (out / "environment.json").write_text(json.dumps(where))
    return out
