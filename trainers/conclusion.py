"""The end of a sweep: selection by validation losses, then the test, then every table and picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from her2cache.bags import BagSampler
from her2cache.errors import StoreError, SweepError
from her2cache.store.reader import FeatureStore
from trainers.assessment import assess
from trainers.baselines import Baseline, baselines, mean_features
from trainers.features import SlideFeatures
from trainers.files import whole
from trainers.ledger import Run
from trainers.model import TrainedModel
from trainers.overlap import gravest
from trainers.report import write_report
from trainers.resampling import Floats
from trainers.results import write_csv
from trainers.selection import Candidate, select
from trainers.splits import Splits, write_nested_splits
from trainers.study import Study
from trainers.table1 import FILE as TABLE1
from trainers.table1 import write_table1
from trainers.tables import AssessedRun, result_files, write_runs


def conclude_sweep(study: Study, runs: Sequence[Run], out: Path) -> dict[str, Path]:
    """Selects, tests and reports. Features of a test slide are read here for the first time, after the selection.

    Args:
        study: what was swept.
        runs: every run, failed ones included.
        out: sweep directory with the checkpoints.

    Returns:
        What was written: name -> file.

    Raises:
        SweepError: not one run could be trained.
        StoreError: features of a test slide cannot be read; runs.parquet and selection.csv are written by then.
    """
    candidates = select(runs)
    selected = {run.run_id for c in candidates if c.is_selected for run in c.runs}
    write_runs(runs, selected, out / "runs.parquet")
    with whole(out / "selection.csv") as partial:
        write_csv(partial, [c.row() for c in candidates])
    if not selected:
        raise SweepError(f"not one run could be trained: {runs[0].reason}")
    names = ["runs.parquet", "selection.csv", "results.parquet", "predictions.parquet", "baselines.csv"]
    if study.nested:
        with whole(out / "nested_splits.csv") as partial:
            write_nested_splits(study.nested, partial)
        names.append("nested_splits.csv")
    wanted = (
        candidates if study.experiment.testing.configurations == "all" else [c for c in candidates if c.is_selected]
    )
    with result_files(
        study.experiment.classification, out, fraction=study.fraction, left_out=len(study.left_out)
    ) as files:
        for tested in _test(study, wanted, out / "checkpoints"):
            files.add(tested)
    with whole(out / "baselines.csv") as partial:
        write_csv(partial, _baseline_rows(study))
    table1 = write_table1({embedder: study.pooled_space(embedder) for embedder in study.embedders}, out)
    return {name: out / name for name in names} | {TABLE1: table1} | write_report(out)


def _test(study: Study, candidates: Sequence[Candidate], checkpoints: Path) -> Iterator[AssessedRun]:
    """Tests runs, each on the test slides of its round."""
    e, splits_of = study.experiment, {of.outer: of.splits for of in study.rounds}

    @lru_cache(maxsize=2)
    def test_set(outer: int | None, space_key: str) -> tuple[Splits, SlideFeatures, BagSampler]:
        slides = splits_of[outer].test
        features = study.features(space_key, slides)
        counts = {s.slide_id: len(features[s.slide_id][0]) for s in slides}
        sampler = BagSampler(counts, e.bags.size, seed=e.training.seed, allow_replacement=e.bags.allow_replacement)
        return splits_of[outer], features, sampler

    for candidate in candidates:
        for run in candidate.runs:
            splits, features, sampler = test_set(run.outer, run.space_key)
            model = TrainedModel.load(checkpoints / f"{run.run_id}.safetensors", space_key=run.space_key)
            found = assess(model, features, splits.test, sampler, e.bags.test)
            yield AssessedRun(run, candidate.is_selected, found, splits.test)


def fit_baselines(study: Study) -> list[Baseline]:
    """The baselines on the study's own splits. Features of test slides are read here as well.

    A space that cannot be read has none; its fits have said so.
    """
    e, slides = study.experiment, study.splits.slides
    pooled: dict[str, list[Floats]] = {}
    for name, space in study.pooled_spaces().items():
        with suppress(StoreError):
            means = mean_features(study.features(space.key, slides), slides)
            pooled.setdefault(study.embedder_of(name)[0], []).append(means)
    store, first = FeatureStore.open(e.data.store), next(iter(study.spaces.values()))
    colours = [r.made.get("colour") for r in store.committed(first.key, [s.slide_id for s in slides])]
    known = np.array(colours, np.float64) if all(colours) else None  # features made elsewhere come without
    stacked = {embedder: np.stack(seeds) for embedder, seeds in pooled.items()}
    classes = len(e.classification.classes)
    only_fixed = {embedder for embedder in stacked if study.pooled_overlap(embedder, nested=True) == "test"}
    if study.allow_overlap:
        only_fixed = set[str]()
    return baselines(
        stacked, known, study.splits, classes, seed=e.splits.seed, nested=study.nested, only_fixed=only_fixed
    )


def _baseline_rows(study: Study) -> Iterator[dict[str, Any]]:
    for baseline in fit_baselines(study):
        rounds = (False, True) if baseline.nested else (False,)
        found = [study.pooled_overlap(baseline.embedder, nested=n) for n in rounds] if baseline.embedder else []
        yield baseline.row(nested=bool(study.nested)) | {"embedder_overlap": gravest(found)}
