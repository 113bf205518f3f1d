"""What the selected models of an embedder say of each test case, with the case as the unit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trainers.replicates import Replicates, replicate_metrics
from trainers.resampling import Floats, Interval, Labels, by_case, is_reliable, permuted, resampled, truth


@dataclass(frozen=True)
class Cases:
    """One row a case: the mean over bags, then over the folds' models, then over slides.

    Attributes:
        ids: of the cases, sorted.
        y: their classes, (cases,).
        p: their class probabilities, (seeds, cases, classes); one seed but for the untrained embedder. Seeds that were
            trained on the same folds are not averaged: an ensemble of embedders would say more than any of them. Where
            every fold has a seed of its own the folds' models count together, as those of every other embedder.
    """

    ids: tuple[str, ...]
    y: Labels
    p: Floats

    @property
    def per_class(self) -> tuple[int, ...]:
        """Cases of each class."""
        return tuple(np.bincount(self.y, minlength=self.p.shape[2]).tolist())

    def named(self) -> str:
        """Cases of each class, as `2/2/2/2`."""
        return "/".join(map(str, self.per_class))


def pool_cases(predictions: pa.Table, classes: int) -> Cases:
    """Pools test bags by case.

    Args:
        predictions: rows of predictions.parquet: of the selected runs of one embedder, either on the fixed test set,
            or on all outer folds, of which each has its own cases. A case that a seed was not tested on is left out:
            `trainers.findings.find` gives every outer fold of every seed, or none.
        classes: of the task.
    """
    means = predictions.select(["embedder_seed", "run_id", "slide_id", "case_id", "label"])
    if _own_seeds(predictions):
        means = means.set_column(0, "embedder_seed", pa.repeat(pa.scalar(0, pa.int32()), len(means)))
    for c in range(classes):
        means = means.append_column(f"p_{c}", predictions[f"p_{c}"].cast(pa.float64()))
    # a run's bags first: drawn at random, they are not as many for every slide
    for keys in (means.column_names[:5], ["embedder_seed", "slide_id", "case_id", "label"]):
        grouped = means.group_by(keys, use_threads=False)  # in a fixed order, so that sums have the same bits
        means = grouped.aggregate([(f"p_{c}", "mean") for c in range(classes)])
        means = means.rename_columns([name.removesuffix("_mean") for name in means.column_names])
    seed = means["embedder_seed"].to_numpy()  # (seeds x slides,)
    p = np.column_stack([means[f"p_{c}"].to_numpy() for c in range(classes)])  # (seeds x slides, classes)
    case_ids, labels = np.array(means["case_id"].to_pylist()), means["label"].to_numpy()
    of_seeds = [
        by_case(case_ids[seed == k].tolist(), labels[seed == k].tolist(), p[seed == k]) for k in np.unique(seed)
    ]
    common = sorted(set.intersection(*(set(ids) for ids, _, _ in of_seeds)))
    rows = [np.searchsorted(ids, common) for ids, _, _ in of_seeds]
    y = of_seeds[0][1][rows[0]]
    return Cases(tuple(common), y, np.stack([own[kept] for (_, _, own), kept in zip(of_seeds, rows, strict=True)]))


def _own_seeds(predictions: pa.Table) -> bool:
    """Whether there are several seeds, and a fold has one of them only."""
    if len(predictions["embedder_seed"].unique()) == 1:
        return False
    seeds = predictions.group_by(["outer", "fold"]).aggregate([("embedder_seed", "count_distinct")])
    return max(seeds["embedder_seed_count_distinct"].to_pylist()) == 1


@dataclass(frozen=True)
class CaseLevel:
    """Every metric over cases, by the keys of `trainers.metrics.evaluate`.

    Attributes:
        cases: what it rests on.
        values: of the metrics; the mean over seeds.
        bootstrap: their ranges under resampling of cases within their class, the same cases for all seeds.
        chance: their ranges when labels are dealt by chance.
        reliable: whether every class has enough cases for a bootstrap.
    """

    cases: Cases
    values: dict[str, float | None]
    bootstrap: dict[str, Interval | None]
    chance: dict[str, Interval | None]
    reliable: bool

    def columns(self, metric: str, prefix: str = "case_") -> dict[str, float | None]:
        """A metric with its ranges, as columns of a table."""
        b, c = self.bootstrap[metric], self.chance[metric]
        return {
            f"{prefix}{metric}": self.values[metric],
            f"{prefix}{metric}_low": b and b.low,
            f"{prefix}{metric}_high": b and b.high,
            f"chance_{metric}_low": c and c.low,
            f"chance_{metric}_high": c and c.high,
        }


def case_level(cases: Cases) -> CaseLevel:
    """The metrics of some cases with their ranges."""
    classes = cases.p.shape[2]
    found = replicate_metrics(truth(cases.y, classes), cases.p)
    return CaseLevel(
        cases=cases,
        values={name: None if np.isnan(value[0]) else float(value[0]) for name, value in found.items()},
        bootstrap=_ranges(replicate_metrics(resampled(cases.y, classes), cases.p)),
        chance=_ranges(replicate_metrics(permuted(cases.y, classes), cases.p)),
        reliable=is_reliable(cases.y),
    )


def _ranges(drawn: Replicates) -> dict[str, Interval | None]:
    return {name: Interval.of(values) for name, values in drawn.items()}
