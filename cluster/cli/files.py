"""What the files of a sweep directory hold, in a line each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

SWEEP_FILES = {
    "report.html": "everything below on one page: open this first",
    "experiment.toml": "what was trained",
    "environment.json": "versions, machine, stack size, times",
    "splits.csv": "test set and folds",
    "nested_splits.csv": "outer folds of the nested cross-validation, and their folds",
    "runs.parquet": "losses, a row a run and epoch",
    "selection.csv": "every configuration's mean validation loss, and which was selected",
    "results.parquet": "metrics, a row a tested run",
    "predictions.parquet": "a row a test bag",
    "nested.csv": "the headline: every case tested once, pooled",
    "table1.csv": "the paper's Table 1: how well the embedders' networks do their source tasks",
    "table2.csv": "the paper's Table 2, and beside it slides and cases",
    "metrics.csv": "every metric at every level",
    "comparison.csv": "embedders against the best, paired bootstrap of cases",
    "baselines.csv": "logistic regression on mean features and on colours, permuted labels",
    "roc.csv": "the points of the ROC curves",
    "roc.png": "ROC curves, a panel an embedder",
    "confusion.csv": "counts of the confusion matrices",
    "confusion.png": "confusion matrices",
    "learning_curves.png": "losses by epoch of the selected configurations",
    "grid.png": "mean validation loss over the configurations",
    "scores.csv": "Monte-Carlo scores, a row an embedder and test slide; her2cache report writes it",
    "case_scores.csv": "the same, a row a case",
    "auc_by_bags.csv": "AUC over cases by the number of bags a slide",
    "auc_by_bags.png": "the same, drawn",
}

FOLDERS = {
    "checkpoints": "the best epoch of every run, safetensors",
    "ledger": "what became of every run",
    "heatmaps": "of the test slides, with their top and bottom patches; her2cache report draws them",
    "tensorboard": "losses of every epoch, for `tensorboard --logdir`",
}


def describe(written: Iterable[str], out: Path) -> list[str]:
    """A line for each file and folder of a sweep that was written."""
    names = set(written)
    files = [f"  {name:<22}{what}" for name, what in SWEEP_FILES.items() if name in names]
    return files + [f"  {name + '/':<22}{what}" for name, what in FOLDERS.items() if (out / name).is_dir()]
