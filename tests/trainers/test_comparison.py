"""Comparisons of embedders against a plain computation with scikit-learn, resample by resample."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.cases import Cases
from trainers.comparison import Comparison, compare
from trainers.resampling import resampled

N = 60
Y = np.arange(N) % 4
IDS = tuple(f"c{k:02d}" for k in range(N))


def cases(skill: float, seed: int, seeds: int = 1, noise: int = 9) -> Cases:
    """Embedders of one `noise` err on the same cases."""
    p = []
    for k in range(seeds):
        logits = (
            np.random.default_rng(noise).normal(size=(N, 4)) + np.random.default_rng(seed + k).normal(size=(N, 4)) * 0.5
        )
        logits[np.arange(N), Y] += skill
        p.append(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    return Cases(IDS, Y, np.stack(p))


def auc(y: np.ndarray, p: np.ndarray) -> float:
    """The mean over seeds and classes of the share of pairs in order."""
    pairs = [own[y == c, c][:, None] - own[y != c, c] for own in p for c in range(4)]
    return float(np.mean([np.mean((d > 0) + 0.5 * (d == 0)) for d in pairs]))


def by_name(found: list[Comparison]) -> dict[str, Comparison]:
    return {each.embedder: each for each in found}


def test_reference() -> None:
    """Paired resamples within classes; Holm's thresholds on p values, in plain code."""
    embedders = {"poor": cases(0.3, 1, seeds=2), "good": cases(1.6, 2), "near": cases(1.4, 3), "fair": cases(0.9, 4)}
    found = by_name(compare(embedders))
    draws = resampled(Y, 4)
    rows = [np.repeat(np.arange(N), draw.sum(axis=1).astype(int)) for draw in draws[:: len(draws) // 250]]
    p_values: dict[str, float] = {}
    for name in ("poor", "near", "fair"):
        own, best = embedders[name].p, embedders["good"].p
        difference = np.array([auc(Y[r], best[:, r]) - auc(Y[r], own[:, r]) for r in rows])
        assert found[name].best == "good"
        assert found[name].difference == pytest.approx(auc(Y, best) - auc(Y, own))
        assert found[name].auc == pytest.approx(auc(Y, own))
        tail = (1 - found[name].level) / 2
        low, high = np.quantile(difference, [tail, 1 - tail])
        assert (found[name].low, found[name].high) == (pytest.approx(low, abs=0.04), pytest.approx(high, abs=0.04))
        p_values[name] = min(1.0, 2 * min((difference <= 0).mean(), (difference >= 0).mean()))
    ordered = sorted(p_values, key=lambda name: p_values[name])
    rejected = True
    for rank, name in enumerate(ordered):
        rejected = rejected and p_values[name] <= 0.05 / (3 - rank)
        assert found[name].distinguishable == rejected, name
    assert [found[name].distinguishable for name in ("poor", "fair", "near")] == [True, True, False]
    assert sorted(round(each.level, 4) for each in found.values()) == [0.95, 0.975, round(1 - 0.05 / 3, 4)]


def test_the_p_value_and_the_range_agree() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        found = compare({"a": cases(1.0, 1), "b": cases(rng.uniform(0.2, 1.0), 2), "c": cases(rng.uniform(0.2, 1), 3)})
        for each in found:
            assert each.distinguishable == (each.p_holm <= 0.05)
            assert not each.distinguishable or each.low > 0
        assert [each.p_holm for each in found] == sorted(each.p_holm for each in found)


def test_pairing_sees_what_overlapping_intervals_hide() -> None:
    """Both err on the same cases, so a small difference is a sure one; with errors of their own it is not."""
    (paired,) = compare({"a": cases(1.3, 1), "b": cases(0.8, 1)})
    (loose,) = compare({"a": cases(1.3, 1), "b": cases(0.8, 1, noise=10)})
    assert paired.distinguishable
    assert paired.high - paired.low < 0.6 * (loose.high - loose.low)
    assert "not distinguishable" not in paired.sentence()


def test_without_a_difference_none_is_found() -> None:
    found = compare({str(k): cases(0.8, k, noise=k) for k in range(4)})
    assert not any(each.distinguishable for each in found)
    assert all(each.sentence().endswith("not distinguishable") for each in found)
    (same,) = compare({"a": cases(1.0, 1), "b": cases(1.0, 1)})
    assert (same.difference, same.low, same.high, same.p_holm, same.distinguishable) == (0, 0, 0, 1, False)


def test_only_cases_that_all_have_take_part() -> None:
    whole = cases(1.6, 1)
    part = Cases(IDS[4:], Y[4:], cases(0.5, 2).p[:, 4:])
    (found,) = compare({"whole": whole, "part": part})
    assert found.n_cases == N - 4
    assert found.best_auc == pytest.approx(auc(Y[4:], whole.p[:, 4:]))


def test_nothing_to_compare() -> None:
    assert compare({}) == compare({"one": cases(1.0, 1)}) == []
    alone = Cases(IDS, np.zeros(N, np.int64), cases(1.0, 1).p)
    assert compare({"a": alone, "b": alone}) == []
