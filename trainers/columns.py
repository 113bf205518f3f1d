"""The columns of a sweep's Parquet files: name, type and meaning, said here and nowhere else.

The meaning goes into the files as field metadata, and into the table of the README.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from trainers.tasks import Task


@dataclass(frozen=True)
class Column:
    """A column of a Parquet file.

    Attributes:
        name: of the column.
        type: its Arrow type.
        meaning: in one line.
    """

    name: str
    type: pa.DataType
    meaning: str

    def field(self) -> pa.Field:
        """As a field of a schema, with the meaning in its metadata."""
        return pa.field(self.name, self.type, metadata={"description": self.meaning})


_STRING, _BOOL, _INT, _FLOAT = pa.string(), pa.bool_(), pa.int32(), pa.float64()

RUN = (
    Column("run_id", _STRING, "name of the run, and of its checkpoint"),
    Column("space_key", _STRING, "feature space it was trained in"),
    Column("embedder", _STRING, "embedder of that space; all seeds of alexnet-random share the name"),
    Column("embedder_seed", _INT, "seed of the untrained embedder, else 0"),
    Column("embedder_overlap", _STRING, "cases whose labels its weights have seen: validation, test, or none (empty)"),
    Column("outer", _INT, "outer fold of the nested cross-validation; null is the fixed test set"),
    Column("fold", _INT, "(inner) fold that it was validated on"),
    Column("seed", pa.int64(), "of initial weights and bags"),
    Column("learning_rate", _FLOAT, "of Adam"),
    Column("weight_decay", _FLOAT, "L2 factor"),
)

RUNS = (
    *RUN,
    Column("epoch", _INT, "from 0"),
    Column("train_loss", _FLOAT, "cross-entropy a bag, mean over the epoch's bags as they came"),
    Column("val_loss", _FLOAT, "cross-entropy a bag, mean over the fixed validation bags"),
    Column("val_accuracy", _FLOAT, "share of the validation bags predicted right"),
    Column("seconds", _FLOAT, "wall time of the epoch, divided among the runs of its stack"),
    Column("best", _BOOL, "whether this epoch is the one kept: that of least validation loss"),
    Column("selected", _BOOL, "whether the configuration was selected, see results.parquet"),
    Column("stopped", _STRING, "what ended the run before its last epoch: patience, asha, or nothing"),
    Column("reason", _STRING, "why the run failed, in its last row; empty otherwise"),
)

RESULTS = (
    *RUN,
    Column("epoch", _INT, "epoch that was kept and tested, from 0"),
    Column("val_loss", _FLOAT, "validation loss of that epoch"),
    Column("selected", _BOOL, "whether its configuration has the least mean validation loss of its embedder and round"),
    Column("task", _STRING, "name of the task"),
    Column("n_bags", _INT, "test bags"),
    Column("n_slides", _INT, "test slides"),
    Column("n_cases", _INT, "test cases: the number that counts"),
    Column("fraction", _FLOAT, "share of each slide's patches that was used, in tests as well: below 1 a screening"),
    Column("n_left_out", _INT, "slides of the cohort that took no part; environment.json says which and why"),
)
"""Those before the metrics, which `metric_columns` gives."""

PREDICTIONS = (
    Column("run_id", _STRING, "the run, see results.parquet"),
    Column("embedder", _STRING, "of the run"),
    Column("embedder_seed", _INT, "of the run"),
    Column("embedder_overlap", _STRING, "of the run"),
    Column("outer", _INT, "of the run"),
    Column("fold", _INT, "of the run"),
    Column("selected", _BOOL, "of the run"),
    Column("slide_id", _STRING, "slide that the bag was drawn from"),
    Column("case_id", _STRING, "its case"),
    Column("bag", _INT, "number of the test bag, from 0; the same bag for every run of a round"),
    Column("label", _INT, "true class of the slide"),
)
"""Those before the probabilities, which `probability_columns` gives."""

LEVELS = {"bag": "over bags (paper protocol)", "slide": "over slides, each the mean of its bags"}

_METRICS = {
    "accuracy": "share predicted right",
    "balanced_accuracy": "mean recall of the classes",
    "precision": "macro precision",
    "recall": "macro recall",
    "f1": "macro F1 score",
    "auc": "macro one-vs-rest AUC",
    "quadratic_kappa": "Cohen's kappa with quadratic weights",
    "mae": "mean absolute error of the predicted class, in classes",
    "expected_score_mae": "mean absolute error of the expected class, sum c p_c",
}
_COUNTS = {
    "n_classes": "classes with a true case, over which macro means are taken",
    "n_never_predicted": "of these, classes that are never predicted (precision counts as 0)",
}
_PER_CLASS = {"precision": "precision", "recall": "recall", "f1": "F1 score", "auc": "one-vs-rest AUC"}


def metric_columns(task: Task) -> list[Column]:
    """A column a metric of `trainers.metrics.evaluate` and level; null where the data cannot tell."""
    classes = list(enumerate(task.classes))
    columns: list[Column] = []
    for level, over in LEVELS.items():
        columns += [Column(f"{level}_{name}", _FLOAT, f"{text}, {over}") for name, text in _METRICS.items()]
        columns += [Column(f"{level}_{name}", _INT, f"{text}, {over}") for name, text in _COUNTS.items()]
        columns += [
            Column(f"{level}_auc_ge_{c}", _FLOAT, f"AUC of class {name} or above against those below, {over}")
            for c, name in classes[1:]
        ]
        columns += [
            Column(f"{level}_{metric}_{c}", _FLOAT, f"{text} of class {name}, {over}")
            for metric, text in _PER_CLASS.items()
            for c, name in classes
        ]
    return columns


def probability_columns(task: Task) -> list[Column]:
    """A column a class."""
    return [Column(f"p_{c}", pa.float32(), f"probability of class {name}") for c, name in enumerate(task.classes)]


def schema(columns: Iterable[Column]) -> pa.Schema:
    """The schema of a file with these columns."""
    return pa.schema([column.field() for column in columns])


MAIN: dict[str, Sequence[str]] = {
    "runs.parquet": ("run_id", "embedder", "outer", "fold", "epoch", "train_loss", "val_loss", "best", "reason"),
    "results.parquet": ("selected", "n_cases"),
    "predictions.parquet": ("slide_id", "case_id", "label"),
}
"""The columns that the README shows."""


def readme_table() -> str:
    """The table of the README: the columns of `MAIN`, those that a file adds to the ones before it."""
    columns = {"runs.parquet": RUNS, "results.parquet": RESULTS, "predictions.parquet": PREDICTIONS}
    lines = ["| column | of | what it is |", "|---|---|---|"]
    for file, names in MAIN.items():
        meanings = {column.name: column.meaning for column in columns[file]}
        lines += [f"| `{name}` | `{file}` | {meanings[name]} |" for name in names]
    return "\n".join(lines)
