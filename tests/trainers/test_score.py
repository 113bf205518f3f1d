"""Monte-Carlo scores equal the direct forward pass bag by bag, and their three errors mean what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from her2cache.errors import BagError
from trainers import score as module
from trainers.patch_scores import PatchScores
from trainers.score import CHUNK_BAGS, combine_slides, draw_bags, score_slide


class DirectModel:
    """Paper eq. 1-2 as written: attention over a bag's features, pooled, one linear layer."""

    def __init__(self, seed: int, dim: int = 12, classes: int = 4) -> None:
        rng = np.random.default_rng(seed)
        self.w1 = rng.normal(size=8)
        self.W2 = rng.normal(size=(8, dim))
        self.W = rng.normal(size=(classes, dim))
        self.b = rng.normal(size=classes)

    def __call__(self, bag: NDArray[np.float64]) -> NDArray[np.float64]:
        s = self.w1 @ np.tanh(self.W2 @ bag.T)  # (size,)
        a = np.exp(s) / np.exp(s).sum()  # (size,)
        pooled = sum(a_k * v_k for a_k, v_k in zip(a, bag, strict=True))  # (dim,)
        z = self.W @ pooled + self.b  # (classes,)
        return np.exp(z) / np.exp(z).sum()

    def patch_scores(self, features: NDArray[np.float64]) -> PatchScores:
        s = np.tanh(features @ self.W2.T) @ self.w1
        return PatchScores(s.astype(np.float32), (features @ self.W.T).astype(np.float32), self.b.astype(np.float32))


@pytest.mark.parametrize(("n_patches", "size", "count"), [(250, 20, 1), (250, 20, 3), (20, 20, 2), (7, 20, 2)])
def test_equal_to_the_direct_forward_pass_of_every_bag(n_patches: int, size: int, count: int) -> None:
    features = np.random.default_rng(5).normal(size=(n_patches, 12))
    models = [DirectModel(seed) for seed in range(count)]
    got = score_slide([m.patch_scores(features) for m in models], n_patches, bags=60, size=size, seed=3)

    rows = np.concatenate(list(draw_bags(n_patches, 60, size, np.random.default_rng(3))))
    p = np.array([[model(features[bag]) for bag in rows] for model in models])  # (models, bags, classes)
    by_bag = p.mean(axis=0)  # (bags, classes)
    expected = by_bag @ np.arange(4)  # (bags,)

    assert got.probabilities == pytest.approx(by_bag.mean(axis=0), abs=1e-5)
    assert got.predicted == by_bag.mean(axis=0).argmax()
    assert got.expected_score == pytest.approx(expected.mean(), abs=1e-5)
    assert got.votes == pytest.approx([np.mean(by_bag.argmax(axis=1) == c) for c in range(4)])
    assert got.mc_se == pytest.approx(expected.std(ddof=1) / np.sqrt(60), abs=1e-5)
    assert got.mc_se_probabilities == pytest.approx(by_bag.std(axis=0, ddof=1) / np.sqrt(60), abs=1e-5)
    assert (got.bag_p2_5, got.bag_p97_5) == pytest.approx(np.percentile(expected, [2.5, 97.5]), abs=1e-5)
    over_models = (p.mean(axis=1) @ np.arange(4)).std(ddof=1) if count > 1 else None
    assert got.model_sd == (None if over_models is None else pytest.approx(over_models, abs=1e-5))
    assert got.with_replacement is (n_patches < size)


def test_mc_se_is_the_spread_of_repeated_scores() -> None:
    features = np.random.default_rng(1).normal(size=(400, 12))
    scores = [DirectModel(2).patch_scores(features)]
    repeated = [score_slide(scores, 400, bags=50, size=10, seed=seed) for seed in range(200)]
    spread = np.std([r.expected_score for r in repeated], ddof=1)
    # SD of 200 draws is known to about 5 %
    assert np.mean([r.mc_se for r in repeated]) == pytest.approx(spread, rel=0.2)
    more = score_slide(scores, 400, bags=5000, size=10)
    assert more.mc_se == pytest.approx(spread / 10, rel=0.2)
    # heterogeneity does not fall with the number of bags
    assert more.bag_p97_5 - more.bag_p2_5 == pytest.approx(
        np.mean([r.bag_p97_5 - r.bag_p2_5 for r in repeated]), rel=0.2
    )


def test_drawing_stops_at_the_tolerance() -> None:
    features = np.random.default_rng(1).normal(size=(400, 12))
    scores = [DirectModel(seed).patch_scores(features) for seed in (2, 3)]
    whole = score_slide(scores, 400, bags=4000, size=10)
    # twice the error of 4,000 bags takes a fourth of them
    stopped = score_slide(scores, 400, bags=4000, size=10, tolerance=2 * whole.mc_se)
    assert stopped.mc_se <= 2 * whole.mc_se
    assert 1000 - 2 * CHUNK_BAGS <= stopped.bags <= 1000 + 2 * CHUNK_BAGS
    assert stopped == score_slide(scores, 400, bags=stopped.bags, size=10)  # the first bags, as ever
    before = score_slide(scores, 400, bags=stopped.bags - CHUNK_BAGS, size=10)
    assert before.mc_se > 2 * whole.mc_se
    missed = score_slide(scores, 400, bags=300, size=10, tolerance=1e-9)
    assert missed == score_slide(scores, 400, bags=300, size=10)


def test_a_case_is_its_slides_each_weighing_the_same() -> None:
    rng = np.random.default_rng(1)
    slides = [rng.normal(size=(n, 12)) for n in (60, 300, 90)]
    models = [DirectModel(seed) for seed in (2, 3, 4)]
    scores = [score_slide([m.patch_scores(f) for m in models], len(f), bags=300, size=10) for f in slides]
    case = combine_slides(scores)
    p = np.mean([s.probabilities for s in scores], axis=0)
    assert case.probabilities == pytest.approx(p)
    assert case.predicted == p.argmax()
    assert case.expected_score == pytest.approx(p @ np.arange(4))
    assert case.mc_se == pytest.approx(np.sqrt(sum(s.mc_se**2 for s in scores)) / 3)
    alone = [[score_slide([m.patch_scores(f)], len(f), bags=300, size=10) for f in slides] for m in models]
    means = [np.mean([s.expected_score for s in own]) for own in alone]
    assert case.model_sd == pytest.approx(np.std(means, ddof=1))
    assert combine_slides(alone[0]).model_sd is None
    assert combine_slides(scores[:1]).expected_score == pytest.approx(scores[0].expected_score)


def test_the_error_of_a_case_is_the_spread_of_repeated_scores() -> None:
    rng = np.random.default_rng(1)
    slides = [DirectModel(2).patch_scores(rng.normal(size=(n, 12))) for n in (100, 200)]
    repeated = [
        combine_slides([score_slide([s], len(s.attention_logit), bags=50, size=10, seed=seed) for s in slides])
        for seed in range(200)
    ]
    spread = np.std([r.expected_score for r in repeated], ddof=1)
    assert np.mean([r.mc_se for r in repeated]) == pytest.approx(spread, rel=0.2)


def test_a_slide_of_one_patch_has_no_error() -> None:
    features = np.random.default_rng(1).normal(size=(1, 12))
    got = score_slide([DirectModel(2).patch_scores(features)], 1, bags=10, size=5)
    assert got.mc_se == pytest.approx(0, abs=1e-7)
    assert got.bag_p2_5 == pytest.approx(got.bag_p97_5)
    assert got.with_replacement


def test_a_row_for_tables_and_json() -> None:
    features = np.random.default_rng(1).normal(size=(30, 12))
    row = score_slide([DirectModel(2).patch_scores(features)], 30, bags=10, size=5).as_row()
    assert json.loads(json.dumps(row)) == row
    assert sum(row[f"p_{c}"] or 0 for c in range(4)) == pytest.approx(1)
    assert {"mc_se", "bag_p2.5", "bag_p97.5", "model_sd"} <= set(row)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 40),
    st.integers(1, 30),
    st.integers(0, 999),
    st.sampled_from([64, 2**20]),
)
def test_bags_are_whole_and_without_repeats(n: int, bags: int, size: int, seed: int, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BAGS", chunk)
        rows = np.concatenate(list(draw_bags(n, bags, size, np.random.default_rng(seed))))
    assert rows.shape == (bags, size)
    assert rows.min() >= 0
    assert rows.max() < n
    if n >= size:
        assert all(len(set(bag)) == size for bag in rows.tolist())


def test_bags_are_uniform() -> None:
    rows = np.concatenate(list(draw_bags(20, 20_000, 5, np.random.default_rng(0))))
    share = np.bincount(rows.ravel(), minlength=20) / 20_000
    assert share == pytest.approx(np.full(20, 0.25), abs=5 * np.sqrt(0.25 * 0.75 / 20_000))


def test_what_cannot_be_scored() -> None:
    features = np.random.default_rng(1).normal(size=(30, 12))
    scores = DirectModel(2).patch_scores(features)
    with pytest.raises(BagError, match="no model"):
        score_slide([], 30)
    with pytest.raises(BagError, match="at least 2 bags"):
        score_slide([scores], 30, bags=1)
    with pytest.raises(BagError, match="other patches"):
        score_slide([scores, DirectModel(2).patch_scores(features[:20])], 30)
