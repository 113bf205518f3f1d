"""What a sweep left, read back: its tested runs, which of them were selected, and what they say of the test cases."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from her2cache.errors import SweepError

Row = Mapping[str, Any]


def read_results(sweep_dir: Path) -> list[dict[str, Any]]:
    """The tested runs of a sweep, a row each.

    Raises:
        SweepError: no run has been tested, or by an earlier version.
    """
    rows = read_table(sweep_dir, "results.parquet").to_pylist()
    if not rows:
        raise SweepError(
            f"{sweep_dir}/results.parquet is empty: every run of the sweep failed or was stopped; "
            "see the reasons in its runs, then run `her2cache sweep --resume`"
        )
    if "selected" not in rows[0]:
        raise SweepError(
            f"{sweep_dir}/results.parquet has no column selected: an earlier version wrote it; "
            "write it anew with `her2cache sweep --resume`"
        )
    return rows


def selected_runs(results: Iterable[Row]) -> dict[str, list[Row]]:
    """The runs of each embedder's selected configuration that were tested on the fixed test set.

    Returns:
        Embedder -> its runs by fold, then seed of the embedder; embedders by mean validation loss.
    """
    own = [row for row in results if row["selected"] and row["outer"] is None]
    selected = {
        embedder: sorted(runs, key=lambda row: (row["fold"], row["embedder_seed"]))
        for (embedder,), runs in group(own, "embedder")
    }
    return dict(sorted(selected.items(), key=lambda item: mean_val_loss(item[1])))


def mean_val_loss(runs: Sequence[Row]) -> float:
    """Mean validation loss of the runs of a configuration."""
    return math.fsum(row["val_loss"] for row in runs) / len(runs)


def selected_predictions(sweep_dir: Path) -> pa.Table:
    """The rows of predictions.parquet of the selected runs, of every round."""
    return read_table(sweep_dir, "predictions.parquet", filters=[("selected", "=", True)])


def slides_tested(sweep_dir: Path) -> list[str]:
    """Ids of the slides of the fixed test set, sorted.

    Whoever shows what models say of slides shows these: models of an outer fold have seen the others.
    """
    rows = read_table(sweep_dir, "predictions.parquet", columns=["slide_id", "outer"])
    return sorted({row["slide_id"] for row in rows.group_by(["slide_id", "outer"]).aggregate([]).to_pylist()
                   if row["outer"] is None})  # fmt: skip


def read_table(sweep_dir: Path, name: str, **options: Any) -> pa.Table:
    """A Parquet file of a sweep.

    Raises:
        SweepError: it is missing or damaged.
    """
    path = sweep_dir / name
    try:
        return pq.read_table(path, **options)
    except FileNotFoundError as error:
        raise SweepError(
            f"{path} does not exist: this is no sweep directory, or no run of it has been tested yet; "
            "give the --out of `her2cache sweep`, or finish it with --resume"
        ) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise SweepError(f"{path} cannot be read ({error}); write it anew with `her2cache sweep --resume`") from error


def read_csv(sweep_dir: Path, name: str) -> list[dict[str, str]]:
    """The rows of a CSV file of a sweep; none where there is no such file."""
    path = sweep_dir / name
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows under the keys of the first; None becomes an empty cell."""
    rows = iter(rows)
    first = next(rows, {})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(first))
        writer.writeheader()
        writer.writerows(itertools.chain([first] if first else [], rows))


def group(rows: Iterable[Row], *keys: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Rows by the values of some keys, in the order of their first rows."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.items())
