"""Tables of scores: their columns, and files of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from her2cache.cohort import Slide
from her2cache.errors import ConfigError
from trainers.bag_counts import BagCount
from trainers.columns import Column, schema
from trainers.files import whole
from trainers.results import Row, write_csv
from trainers.score import CaseScore, SlideScore
from trainers.tasks import Task

TEST, TRAINED_ON, NEW = "test", "trained on", "new"
"""Parts that a slide may have had in the making of models, see the column `part`."""

_STRING, _BOOL, _INT, _FLOAT = pa.string(), pa.bool_(), pa.int32(), pa.float64()

_SCORE = Column("her2_score", _INT, "of the cohort, 0 to 3; null where it is not known")
_OF_CASE = Column("case_id", _STRING, "case of the slide")
_FOUND = (
    Column("predicted_score", _STRING, "name of the most probable class"),
    Column("predicted", _INT, "its number, from 0"),
    Column("expected_score", _FLOAT, "sum_c c p_c"),
)
_MC_SE = Column("mc_se", _FLOAT, "numerical standard error of expected_score; falls with the number of bags")
_MODEL_SD = Column("model_sd", _FLOAT, "SD of expected_score over the models of the folds; null for one model")


def slide_columns(task: Task) -> list[Column]:
    """Of a table with a row a slide."""
    return [
        Column("slide_id", _STRING, "of the cohort, or the file's name"),
        _OF_CASE,
        _SCORE,
        Column(
            "part",
            _STRING,
            f"{TEST}: of the test set of the models; {TRAINED_ON}: they were trained on its case, or chosen by it, so"
            f" its score says nothing of new slides; {NEW}: neither; null where the sweep has no table of splits",
        ),
        *_FOUND,
        _MC_SE,
        Column("bag_p2.5", _FLOAT, "2.5th percentile over bags of a bag's expected score: heterogeneity of the slide"),
        Column("bag_p97.5", _FLOAT, "97.5th percentile of the same"),
        _MODEL_SD,
        *_per_class(task, "p", "expected probability of class"),
        *_per_class(task, "mc_se_p", "numerical standard error of the probability of class"),
        *_per_class(task, "votes", "share of the bags whose most probable class is"),
        Column("bags", _INT, "Monte-Carlo bags drawn"),
        Column("bag_size", _INT, "patches a bag"),
        Column("n_patches", _INT, "patches of the slide"),
        Column("with_replacement", _BOOL, "whether the slide has fewer patches than a bag, so that they repeat"),
    ]


def case_columns(task: Task) -> list[Column]:
    """Of a table with a row a case."""
    return [
        _OF_CASE,
        _SCORE,
        Column("n_slides", _INT, "slides of the case that were scored, each weighing the same"),
        *_FOUND,
        *_per_class(task, "p", "mean over slides of the probability of class"),
        _MC_SE,
        _MODEL_SD,
    ]


def slide_row(slide: Slide, score: SlideScore, task: Task, part: str | None) -> dict[str, Any]:
    """The row of a slide; `predicted_score` is the class's name, as 2+, and `part` as the column says."""
    return {
        "slide_id": slide.slide_id,
        "case_id": slide.case_id,
        "her2_score": slide.her2_score,
        "part": part,
        "predicted_score": task.classes[score.predicted],
        **score.as_row(),
    }


def case_row(case_id: str, her2_score: int | None, score: CaseScore, task: Task) -> dict[str, Any]:
    """The row of a case."""
    return {
        "case_id": case_id,
        "her2_score": her2_score,
        "n_slides": score.n_slides,
        "predicted_score": task.classes[score.predicted],
        "predicted": score.predicted,
        "expected_score": score.expected_score,
        **{f"p_{c}": p for c, p in enumerate(score.probabilities)},
        "mc_se": score.mc_se,
        "model_sd": score.model_sd,
    }


def bag_count_row(embedder: str, found: BagCount) -> dict[str, Any]:
    """The row of a number of bags in auc_by_bags.csv."""
    return {
        "embedder": embedder,
        "bags": found.bags,
        "auc": found.auc,
        "auc_p2.5": found.p2_5,
        "auc_p97.5": found.p97_5,
        "repeats": found.repeats,
    }


def write_scores(path: Path, rows: Sequence[Row], columns: Sequence[Column]) -> None:
    """Writes a table as Parquet, typed and with the meaning of each column, or as CSV.

    Raises:
        ConfigError: the name ends in neither, or the file cannot be written.
    """
    check_table_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial:
            if path.suffix.lower() == ".csv":
                write_csv(partial, rows or [])
            else:
                pq.write_table(pa.Table.from_pylist(_plain(rows), schema(columns)), partial)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror or error}): choose another place") from error


def check_table_name(path: Path) -> None:
    """Refuses a name that says no format.

    Raises:
        ConfigError: it ends in neither .csv nor .parquet.
    """
    if path.suffix.lower() not in {".csv", ".parquet"}:
        raise ConfigError(f"{path} is neither .csv nor .parquet; name the file so that it says which is wanted")


def _per_class(task: Task, name: str, meaning: str) -> list[Column]:
    return [Column(f"{name}_{c}", _FLOAT, f"{meaning} {of}") for c, of in enumerate(task.classes)]


def _plain(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [dict(row) for row in rows]
