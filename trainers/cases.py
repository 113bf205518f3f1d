"""What the selected models of an embedder say of each test case, with the case as the unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainers.resampling import Interval, bootstrap_auc, by_case, macro_auc, null_range


@dataclass(frozen=True)
class CaseLevel:
    """The macro AUC over cases: a case's probabilities are the mean over bags, then folds' models, then slides.

    Attributes:
        auc: None when the test cases are of one class.
        bootstrap: range under resampling of cases within their class.
        chance: range when labels are dealt by chance.
    """

    auc: float | None
    bootstrap: Interval | None
    chance: Interval | None

    def columns(self) -> dict[str, float | bool | str | None]:
        """Its numbers as columns of a table."""
        b, c = self.bootstrap, self.chance
        return {
            "case_auc": self.auc,
            "case_auc_low": b and b.low,
            "case_auc_high": b and b.high,
            "case_auc_reliable": b and b.reliable,
            "chance_auc_low": c and c.low,
            "chance_auc_high": c and c.high,
            "cases_per_class": b and "/".join(str(n) for n in b.cases),
        }


def case_level(predictions: pa.Table, run_ids: Sequence[str], classes: int) -> CaseLevel:
    """Pools the test bags of some runs by case.

    Args:
        predictions: rows of predictions.parquet.
        run_ids: the selected runs of one embedder, one a fold and seed.
        classes: of the task.
    """
    own = predictions.filter(pc.is_in(predictions["run_id"], pa.array(run_ids)))  # pyright: ignore[reportAttributeAccessIssue]
    probabilities = [(f"p_{c}", "mean") for c in range(classes)]
    # a run's bags first: drawn at random, they are not as many for every slide
    runs = own.group_by(["run_id", "slide_id", "case_id", "label"]).aggregate(probabilities)
    means = [(f"p_{c}_mean", "mean") for c in range(classes)]
    slides = runs.group_by(["slide_id", "case_id", "label"]).aggregate(means)
    p = np.column_stack([slides[f"p_{c}_mean_mean"].to_numpy() for c in range(classes)]).astype(np.float64)
    _, y, rows = by_case(slides["case_id"].to_pylist(), slides["label"].to_pylist(), p)
    return CaseLevel(macro_auc(y, rows), bootstrap_auc(y, rows), null_range(y, rows))
