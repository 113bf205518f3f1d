from __future__ import annotations

import pytest

from trainers.ledger import Epoch, Run
from trainers.selection import Candidate, select
from trainers.stack import Configuration

A, B, C = Configuration(1e-3, 1e-3), Configuration(1e-3, 1e-5), Configuration(1e-4, 1e-3)


def run(
    configuration: Configuration,
    fold: int,
    *losses: float,
    embedder: str = "e",
    reason: str = "",
    outer: int | None = None,
    seed: int = 0,
) -> Run:
    best = None if reason else losses.index(min(losses))
    epochs = tuple(Epoch(1.0, loss, 0.5, 1.0) for loss in losses)
    name = f"{embedder}{seed}-{configuration}-{outer}-{fold}"
    return Run(name, embedder, embedder, fold, 1, configuration, epochs, best, reason, outer=outer, embedder_seed=seed)


def selected(*runs: Run) -> dict[tuple[int | None, str], Candidate]:
    return {(c.outer, c.embedder): c for c in select(runs) if c.is_selected}


def chosen(*runs: Run) -> Configuration:
    return selected(*runs)[None, "e"].configuration


def test_the_least_mean_of_the_lowest_losses_wins() -> None:
    runs = [run(A, 0, 0.9, 0.2, 3.0), run(A, 1, 0.8), run(B, 0, 0.4), run(B, 1, 0.7)]
    assert chosen(*runs) == A
    found = selected(*reversed(runs))[None, "e"]
    assert [r.fold for r in found.runs] == [0, 1]
    assert found.val_loss == pytest.approx(0.5)
    rows = {(r["learning_rate"], r["weight_decay"]): r for r in (c.row() for c in select(runs))}
    assert [rows[1e-3, decay]["selected"] for decay in (1e-3, 1e-5)] == [True, False]
    assert rows[1e-3, 1e-5]["val_loss"] == pytest.approx(0.55)


def test_ties_go_to_the_larger_decay_then_to_the_smaller_rate() -> None:
    assert chosen(run(B, 0, 0.5), run(A, 0, 0.5)) == A
    assert chosen(run(A, 0, 0.5), run(C, 0, 0.5)) == C
    assert chosen(run(B, 0, 0.5), run(C, 0, 0.5), run(A, 0, 0.5)) == C


def test_a_configuration_that_failed_in_a_fold_loses() -> None:
    whole = [run(B, 0, 2.0), run(B, 1, 2.0)]
    runs = [run(A, 0, 0.1), run(A, 1, reason="diverged"), *whole]
    assert chosen(*runs) == B
    assert [(c.configuration, c.failed, len(c.runs)) for c in select(runs)] == [(A, 1, 1), (B, 0, 2)]


def test_embedders_choose_for_themselves_and_one_without_runs_does_not() -> None:
    first = [run(A, 0, 0.1), run(B, 0, 0.2)]
    second = [run(B, 0, 0.1, embedder="t"), run(A, 0, 0.3, embedder="t")]
    found = selected(*first, *second, run(A, 0, embedder="u", reason="diverged"))
    assert {place: c.configuration for place, c in found.items()} == {(None, "e"): A, (None, "t"): B}
    assert select([run(A, 0, reason="diverged")])[0].val_loss is None


def test_rounds_choose_for_themselves() -> None:
    runs = [run(A, 0, 0.1), run(B, 0, 0.2), run(A, 0, 0.9, outer=0), run(B, 0, 0.3, outer=0), run(A, 0, 0.1, outer=1)]
    found = selected(*runs, run(B, 0, 0.3, outer=1))
    assert {place: c.configuration for place, c in found.items()} == {(None, "e"): A, (0, "e"): B, (1, "e"): A}


def test_seeds_of_an_embedder_choose_together() -> None:
    runs = [run(A, fold, 0.1, seed=0) for fold in (0, 1)] + [run(A, fold, 0.9, seed=1) for fold in (0, 1)]
    runs += [run(B, fold, 0.4, seed=seed) for fold in (1, 0) for seed in (1, 0)]
    found = selected(*runs)[None, "e"]
    assert found.configuration == B
    assert [(r.embedder_seed, r.fold) for r in found.runs] == [(0, 0), (0, 1), (1, 0), (1, 1)]
