from __future__ import annotations

from trainers.ledger import Epoch, Run
from trainers.selection import select
from trainers.stack import Configuration

A, B, C = Configuration(1e-3, 1e-3), Configuration(1e-3, 1e-5), Configuration(1e-4, 1e-3)


def run(configuration: Configuration, fold: int, *losses: float, space: str = "s", reason: str = "") -> Run:
    best = None if reason else losses.index(min(losses))
    epochs = tuple(Epoch(1.0, loss, 0.5, 1.0) for loss in losses)
    return Run(f"{configuration}-{fold}", space, space, fold, 1, configuration, epochs, best, reason)


def chosen(*runs: Run) -> Configuration:
    return select(runs)["s"][0].configuration


def test_the_least_mean_of_the_lowest_losses_wins() -> None:
    runs = [run(A, 0, 0.9, 0.2, 3.0), run(A, 1, 0.8), run(B, 0, 0.4), run(B, 1, 0.7)]
    assert chosen(*runs) == A
    assert [r.fold for r in select(reversed(runs))["s"]] == [0, 1]


def test_ties_go_to_the_larger_decay_then_to_the_smaller_rate() -> None:
    assert chosen(run(B, 0, 0.5), run(A, 0, 0.5)) == A
    assert chosen(run(A, 0, 0.5), run(C, 0, 0.5)) == C
    assert chosen(run(B, 0, 0.5), run(C, 0, 0.5), run(A, 0, 0.5)) == C


def test_a_configuration_that_failed_in_a_fold_loses() -> None:
    whole = [run(B, 0, 2.0), run(B, 1, 2.0)]
    assert chosen(run(A, 0, 0.1), run(A, 1, reason="diverged"), *whole) == B


def test_spaces_choose_for_themselves_and_one_without_runs_is_left_out() -> None:
    first = [run(A, 0, 0.1), run(B, 0, 0.2)]
    second = [run(B, 0, 0.1, space="t"), run(A, 0, 0.3, space="t")]
    found = select([*first, *second, run(A, 0, space="u", reason="diverged")])
    assert {space: runs[0].configuration for space, runs in found.items()} == {"s": A, "t": B}
