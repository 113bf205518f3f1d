"""Counts of a running sweep, and the live table that shows them."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from cluster.cli.bars import span
from cluster.cli.live import LiveTable, render
from cluster.progress import SweepProgress
from tests.clock import Clock
from tests.plans import DIMS, plan_of, steps_of
from trainers.stack import Configuration


def test_fits_and_epochs_are_counted_by_embedder() -> None:
    calls: list[int] = []
    progress = SweepProgress(watch=lambda p: calls.append(p.epochs_done))
    plans = [plan_of("a", fold, rates=(1e-3, 1e-4)) for fold in range(3)] + [plan_of("b", fold) for fold in range(2)]
    progress.expect(plans, {"b": 4}, DIMS)
    assert (progress.fits, progress.epochs, progress.epochs_done) == (9, 50, 0)

    progress.started(plans[0])
    progress.started(plans[3])
    progress.stepped(plans[0], steps_of(plans[0], 1, 2, (3.0, 0.6)))
    progress.stepped(plans[0], steps_of(plans[0], 3, 3, (0.3, 9.0)))
    a, b = progress.embedders["a"], progress.embedders["b"]
    assert (a.fits, a.done, a.running, a.waiting, a.failed) == (3, 0, 1, 2, 0)
    assert (b.fits, b.done, b.running, b.waiting, b.failed) == (6, 4, 1, 1, 0)
    assert (a.epochs_done, a.epochs, b.epochs_done) == (3, 30, 0)
    assert (a.val_loss, a.configuration) == (pytest.approx(0.1), Configuration(1e-3, 1e-5))

    progress.ended(plans[0], "")
    progress.ended(plans[3], "no memory")
    assert (a.done, a.running, a.waiting, a.failed) == (1, 0, 2, 0)
    assert (b.done, b.running, b.waiting, b.failed) == (4, 0, 1, 1)
    assert a.epochs_done == 10  # patience ended it, and the rest is not waited for
    assert calls[-1] == 20


def test_a_fit_whose_process_dies_before_it_begins_is_counted_as_failed() -> None:
    progress = SweepProgress()
    plan = plan_of("a", 0)
    progress.expect([plan], {}, DIMS)
    progress.ended(plan, "its process died")
    counts = progress.embedders["a"]
    assert (counts.failed, counts.done, counts.running, counts.waiting) == (1, 0, 0, 0)


def test_a_process_that_takes_over_counts_its_epochs_once(clock: Clock) -> None:
    progress = SweepProgress()
    plan = plan_of(epochs=10)
    progress.expect([plan], {}, DIMS)
    progress.started(plan)
    progress.stepped(plan, steps_of(plan, 1, 1))
    progress.stepped(plan, steps_of(plan, 2, 6))
    progress.started(plan)  # the process died
    progress.stepped(plan, steps_of(plan, 1, 4, before=3))
    counts = progress.embedders["a"]
    assert (counts.running, counts.epochs_done) == (1, 4)
    progress.stepped(plan, steps_of(plan, 5, 10))
    progress.ended(plan, "")
    assert (counts.done, counts.running, counts.epochs_done) == (1, 0, 10)


def test_remaining_time_goes_by_work_done_here(clock: Clock) -> None:
    """Not by epochs that an earlier process had done, nor as if small spaces took as long as large ones."""
    progress = SweepProgress()
    small, large = plan_of("a"), plan_of("b")  # 100 and 300 numbers a patch
    progress.expect([small, large], {}, DIMS)
    assert (progress.rate, progress.remaining) == (None, None)
    progress.started(small)
    clock.now += 8
    progress.stepped(small, steps_of(small, 1, 7, before=6))  # it went on from epoch 6: one epoch in 8 s
    assert progress.rate == pytest.approx(1 / 8)
    assert progress.remaining == pytest.approx(3 * 8 + 10 * 3 * 8)
    clock.now += 8
    progress.stepped(small, steps_of(small, 8, 10))
    progress.ended(small, "")
    assert progress.remaining == pytest.approx(10 * 3 * 4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (40, "40 s"), (95, "2 min"), (59 * 60, "59 min"), (3 * 3600 + 300, "3 h 05 min"),
     (3600 * 52, "2 days 4 h"), (3600 * 24, "1 day 0 h")],
)  # fmt: skip
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def shown(progress: SweepProgress, width: int = 110) -> list[str]:
    console = Console(file=StringIO(), width=width, force_terminal=False)
    console.print(render(progress))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_the_table(clock: Clock) -> None:
    progress = SweepProgress()
    plans = [plan_of("a", fold) for fold in range(2)] + [plan_of("b")]
    progress.expect(plans, {}, DIMS)
    assert "starting the processes" in shown(progress)[-1]
    progress.started(plans[0])
    assert "first epochs" in shown(progress)[-1]
    clock.now += 4
    progress.stepped(plans[0], steps_of(plans[0], 1, 2, (0.8,)))
    head, a, b, foot = shown(progress)
    assert head.split()[:6] == ["embedder", "epochs", "fits", "run", "wait", "fail"]
    assert a.split()[0] == "a"
    assert a.split()[-7:] == ["0/2", "1", "1", "-", "0.400", "0.001,", "1e-05"]
    assert b.split()[-4:] == ["0/1", "-", "1", "-"]
    assert foot == "30.0 epochs/min, about 2 min left"
    for plan in plans:
        progress.started(plan)
        progress.ended(plan, "")
    assert "all fits have ended" in shown(progress)[-1]


def test_it_is_quiet_where_there_is_no_terminal() -> None:
    console = Console(file=StringIO(), force_terminal=False)
    with LiveTable(console) as live:
        live(SweepProgress())
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_it_lives_on_a_terminal_and_leaves_nothing_behind() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=110)
    progress = SweepProgress()
    progress.expect([plan_of("a")], {}, DIMS)
    with LiveTable(console) as live:
        live(progress)
        live._live.refresh()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "wait" in text
    assert text.endswith("\x1b[2K")  # the last thing is to erase its lines
