"""What every benchmark shares: interleaved timing, ratios to a floor, a table and JSON rows.

A figure alone says little on a shared machine, so each is reported as a ratio to a floor or a rival that was
timed in the same run, turn by turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One figure of a benchmark.

    Attributes:
        name: what was measured, and against what.
        value: the figure.
        unit: of value and floor.
        floor: the physical floor or the rival, from the same run.
        ratio: the two in the direction of `better`.
        better: whether a higher or a lower ratio is better.
        bar: the ratio it is held to; None when it is only reported.
    """

    name: str
    value: float
    unit: str
    floor: float
    ratio: float
    better: Literal["higher", "lower"]
    bar: float | None = None

    @property
    def ok(self) -> bool:
        if self.bar is None:
            return True
        return self.ratio >= self.bar if self.better == "higher" else self.ratio <= self.bar


def over_floor(name: str, seconds: float, floor: float, *, bar: float | None = None) -> Row:
    """Time over the least time that it could take; lower is better. In milliseconds."""
    return Row(name, seconds * 1e3, "ms", floor * 1e3, seconds / floor, "lower", bar)


def times_faster(name: str, seconds: float, rival: float, *, bar: float | None = None) -> Row:
    """How many times faster than a rival; higher is better. In milliseconds."""
    return Row(name, seconds * 1e3, "ms", rival * 1e3, rival / seconds, "higher", bar)


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int = 7, warm_up: int = 1) -> dict[str, float]:
    """Times functions turn by turn, so that all of them meet the same disturbances.

    Args:
        candidates: name -> what to time.
        rounds: turns, at least 5 for a figure that is held to a bar.
        warm_up: turns that are not counted.

    Returns:
        name -> median seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warm_up + rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def main(title: str, measure: Callable[[], list[Row]]) -> None:
    """Runs a benchmark as a program: a table on stdout, and JSON rows with `--json FILE`.

    OpenMP threads wait passively, which is read only as the process starts: spinning ones lose a factor of
    five as soon as anything else runs on the machine.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "OMP_WAIT_POLICY": "passive"})
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    arguments = parser.parse_args()
    rows = measure()
    Console(width=None if Console().is_terminal else 140).print(_table(title, rows))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("what")
    for column in ("value", "floor or rival", "ratio", "bar", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for r in rows:
        sign = "≥" if r.better == "higher" else "≤"
        bar = "" if r.bar is None else f"{sign} {r.bar:g}"
        verdict = "" if r.bar is None else "[green]ok[/]" if r.ok else "[red]misses[/]"
        table.add_row(r.name, f"{r.value:,.4g} {r.unit}", f"{r.floor:,.4g} {r.unit}", f"{r.ratio:,.3g}", bar, verdict)
    return table
