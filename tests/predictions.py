"""A sweep directory of made-up predictions, without any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from trainers.metrics import evaluate
from trainers.results import write_csv

FOLDS, BAGS, CASES = 3, 200, 8


def write_sweep(folder: Path, skills: dict[str, float], classes: int = 4, held: int = 4) -> Path:
    """A sweep of made-up predictions: two configurations an embedder, the better one at a rate of 1e-3."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    results: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for embedder, skill in skills.items():
        for rate in (1e-3, 1e-4):
            for fold in range(FOLDS):
                run_id = f"{embedder}-{rate:g}-{fold}"
                case = rng.integers(CASES, size=BAGS)
                label = case % held
                logits = rng.normal(size=(BAGS, classes))
                logits[np.arange(BAGS), label] += skill
                p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
                slide_p = np.array([p[case == k].mean(axis=0) for k in range(CASES)])
                bag = evaluate(label, p, classes)
                slide = evaluate(np.arange(CASES) % held, slide_p, classes)
                results.append(
                    {
                        "run_id": run_id,
                        "space_key": "k" * 64,
                        "embedder": embedder,
                        "embedder_seed": 0,
                        "outer": None,
                        "fold": fold,
                        "seed": 0,
                        "learning_rate": rate,
                        "weight_decay": 1e-5,
                        "epoch": 3,
                        "val_loss": 1.4 - 0.1 * skill + 0.01 * fold - (rate == 1e-3) * 0.05,
                        "selected": rate == 1e-3,
                        "task": "four" if classes == 4 else "paper-binary",
                        "n_bags": BAGS,
                        "n_slides": CASES,
                        "n_cases": CASES,
                        **{f"bag_{key}": value for key, value in bag.items()},
                        **{f"slide_{key}": value for key, value in slide.items()},
                    }
                )
                predictions += [
                    {
                        "run_id": run_id,
                        "embedder": embedder,
                        "embedder_seed": 0,
                        "outer": None,
                        "fold": fold,
                        "selected": rate == 1e-3,
                        "slide_id": f"s{case[i]}",
                        "case_id": f"c{case[i]}",
                        "bag": i,
                        "label": int(label[i]),
                        **{f"p_{c}": float(p[i, c]) for c in range(classes)},
                    }
                    for i in range(BAGS)
                ]
    pq.write_table(pa.Table.from_pylist(results), folder / "results.parquet")
    pq.write_table(pa.Table.from_pylist(predictions), folder / "predictions.parquet")
    epochs = [
        {"train_loss": r["val_loss"] - 0.1, "epoch": k, "val_loss": r["val_loss"] + (k - 1) ** 2, "best": k == 1}
        for r in results
        for k in range(3)
    ]
    keys = ("run_id", "embedder", "outer", "selected")
    runs = [
        {key: r[key] for key in keys} | {"reason": ""} | e for r, e in zip(np.repeat(results, 3), epochs, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(runs), folder / "runs.parquet")
    keys = ("outer", "embedder", "learning_rate", "weight_decay", "val_loss", "selected")
    write_csv(folder / "selection.csv", [{key: r[key] for key in keys} for r in results if r["fold"] == 1])
    return folder


def write_scores(folder: Path, embedder: str) -> None:
    """Made-up files of those that `her2cache report` adds where slides are at hand; one picture is missing."""
    p = {f"{name}_{c}": 0.25 for name in ("p", "votes") for c in range(4)}
    row = {"embedder": embedder, "predicted": 2, "predicted_score": "2+", "mc_se": 0.000123, "model_sd": "", **p}
    scores = [
        {**row, "slide_id": f"s{k}", "case_id": f"c{k}", "her2_score": k % 4, "expected_score": k / 8,
         "bag_p2.5": 0.1, "bag_p97.5": 1.9, "bags": 1000, "n_patches": 10 + k}
        for k in range(CASES)
    ]  # fmt: skip
    write_csv(folder / "scores.csv", scores)
    write_csv(folder / "case_scores.csv", [{**each, "n_slides": 1} for each in scores])
    of_bags = {"embedder": embedder, "auc": 0.6, "auc_p2.5": 0.5, "auc_p97.5": 0.7, "repeats": 100}
    write_csv(folder / "auc_by_bags.csv", [{**of_bags, "bags": n} for n in (1, 10)])
    maps = folder / "heatmaps"
    maps.mkdir()
    keys = ("slide_id", "case_id", "her2_score", "predicted_score", "expected_score", "embedder", "n_patches", "bags")
    index = [
        {**{key: each[key] for key in keys}, "run_id": "r", "has_ihc": True, "truth_auc": 0.5 + k / 100}
        for k, each in enumerate(scores)
    ]
    write_csv(maps / "index.csv", index)
    for k in range(CASES - 1):  # the last picture is lost
        Image.new("RGB", (60, 40), (k, 0, 0)).save(maps / f"s{k}.png")
