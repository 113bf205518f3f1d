"""The rows that benchmarks write, as design.md section 9 gives them to outside checks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.harness import Row, interleaved, main, over_floor, times_faster


def test_rows_in_json_and_on_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # else the process is started anew
    monkeypatch.setattr(sys, "argv", ["bench", "--json", str(tmp_path / "new" / "rows.json")])
    main("bench_x", lambda: [over_floor("over floor", 0.3, 0.2, bar=1.35), times_faster("loop", 0.1, 25.0, bar=300)])
    rows = json.loads((tmp_path / "new" / "rows.json").read_text())
    assert [list(row) for row in rows] == [["name", "value", "unit", "floor", "ratio", "better", "bar"]] * 2
    assert rows[0]["ratio"] == pytest.approx(1.5)
    assert (rows[0]["unit"], rows[0]["better"], rows[0]["bar"]) == ("ms", "lower", 1.35)
    assert (rows[1]["ratio"], rows[1]["better"]) == (250, "higher")
    shown = capsys.readouterr().out
    assert "misses" in shown
    assert "≤ 1.35" in shown


@pytest.mark.parametrize(
    ("better", "ratio", "ok"), [("lower", 1.2, True), ("lower", 1.4, False), ("higher", 1.4, True)]
)
def test_a_bar_is_held_in_the_direction_of_better(better: str, ratio: float, ok: bool) -> None:
    assert Row("x", 1, "ms", 1, ratio, better, bar=1.3).ok is ok  # type: ignore[arg-type]


def test_candidates_take_turns() -> None:
    calls: list[str] = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warm_up=1)
    assert calls == ["a", "b"] * 4
    assert times.keys() == {"a", "b"}
