"""Maps of patches: algorithm 1 as the paper writes it, its mean-field approximation, signed and class maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from her2cache.errors import ConfigError
from trainers import maps as module
from trainers.maps import MapChoice, alone, mean_field_map, partition_bags, patch_maps
from trainers.patch_scores import PatchScores
from trainers.tasks import Task, find_task, mapped_task

FOUR = find_task("four")
RNG = np.random.default_rng(7)
FEATURES = RNG.normal(size=(90, 10))
W1, W2, W, B = RNG.normal(size=6), RNG.normal(size=(6, 10)), RNG.normal(size=(4, 10)), RNG.normal(size=4)
SCORES = PatchScores(
    (np.tanh(FEATURES @ W2.T) @ W1).astype(np.float32),
    (FEATURES @ W.T).astype(np.float32),
    B.astype(np.float32),
)


def algorithm_1(bags: list[list[int]], positive: tuple[int, ...] = (2, 3)) -> dict[int, float]:
    """Algorithm 1 as the paper writes it, the model by equations 1-2, patch by patch."""
    heatmap: dict[int, list[float]] = {}
    for locations in bags:
        bag = FEATURES[locations]
        logits = np.array([W1 @ np.tanh(W2 @ v) for v in bag])
        attention_weights = np.exp(logits) / np.exp(logits).sum()
        z = W @ sum(a * v for a, v in zip(attention_weights, bag, strict=True)) + B
        probabilities = np.exp(z) / np.exp(z).sum()
        bag_probability = sum(probabilities[c] for c in positive)
        patch_probabilities = bag_probability * attention_weights
        for location, value in zip(locations, patch_probabilities, strict=True):
            heatmap.setdefault(location, []).append(float(value))
    return {location: float(np.mean(values)) for location, values in heatmap.items()}


@pytest.mark.parametrize("entries", [2**20, 100])
def test_equal_to_algorithm_1_on_the_same_bags(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ENTRIES", entries)
    bags = partition_bags(90, 40, 20, np.random.default_rng(1))
    values = patch_maps(SCORES, bags).positive(FOUR)
    reference = algorithm_1(bags.tolist())
    assert set(reference) == set(range(90))
    assert values == pytest.approx([20 * reference[k] for k in range(90)], rel=1e-4)


def test_a_patch_that_no_bag_drew_has_no_value() -> None:
    values = patch_maps(SCORES, np.array([[3, 5, 8], [8, 5, 3]])).positive(FOUR)
    assert np.flatnonzero(~np.isnan(values)).tolist() == [3, 5, 8]


def test_uniform_attention_shows_the_probability_of_the_bag() -> None:
    flat = PatchScores(np.zeros(30, np.float32), np.zeros((30, 2), np.float32), np.array([0, 1], np.float32))
    bags = partition_bags(30, 10, 10, np.random.default_rng(0))
    expected = np.e / (1 + np.e)
    assert patch_maps(flat, bags).positive(find_task("paper-binary")) == pytest.approx(np.full(30, expected))


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 150), st.integers(1, 60), st.integers(1, 40), st.integers(0, 999))
def test_every_patch_is_drawn_and_about_equally_often(n: int, bags: int, size: int, seed: int) -> None:
    rows = partition_bags(n, bags, size, np.random.default_rng(seed))
    k = min(size, n)
    assert rows.shape == (max(bags, -(-n // k)), k)
    assert all(len(set(bag)) == k for bag in rows.tolist())
    drawn = np.bincount(rows.ravel(), minlength=n)
    passes = -(-len(rows) // -(-n // k))
    assert drawn.min() >= passes - (len(rows) % -(-n // k) > 0)
    assert drawn.max() <= 2 * passes


def drawn_scores(spread: float, n: int = 600) -> PatchScores:
    rng = np.random.default_rng(11)
    return PatchScores(
        rng.normal(0, spread, n).astype(np.float32),
        rng.normal(size=(n, 4)).astype(np.float32),
        rng.normal(size=4).astype(np.float32),
    )


@pytest.mark.parametrize("label", range(4))
def test_class_maps_are_algorithm_1_of_one_class(label: int) -> None:
    bags = partition_bags(90, 20, 20, np.random.default_rng(2))
    reference = algorithm_1(bags.tolist(), (label,))
    choice = MapChoice.parse(f"class:{FOUR.classes[label]}", FOUR)
    values = choice.values(patch_maps(SCORES, bags), SCORES, 20, FOUR)
    assert values == pytest.approx([20 * reference[k] for k in range(90)], rel=1e-4)


def test_class_maps_sum_to_attention() -> None:
    maps = patch_maps(SCORES, partition_bags(90, 20, 20, np.random.default_rng(2)))
    assert maps.by_class.sum(axis=1) == pytest.approx(maps.attention)
    assert maps.attention.mean() == pytest.approx(1, rel=0.1)  # shown times the bag size


@pytest.mark.parametrize(("spread", "error"), [(0.5, 0.02), (1.0, 0.03), (2.0, 0.15)])
def test_the_mean_field_map_keeps_the_ranks(spread: float, error: float) -> None:
    scores = drawn_scores(spread)
    # of many bags, for the mean over bags has noise of its own
    exact = patch_maps(scores, partition_bags(600, 6000, 100, np.random.default_rng(0))).positive(FOUR)
    approximate = mean_field_map(scores, 100, FOUR)
    assert spearmanr(approximate, scores.attention_logit).statistic == pytest.approx(1)
    assert spearmanr(approximate, exact).statistic > 0.995
    assert np.median(np.abs(approximate / exact - 1)) < error


def test_the_mean_field_map_is_exact_where_a_bag_is_the_whole_slide() -> None:
    bags = partition_bags(90, 1, 200, np.random.default_rng(0))
    exact = patch_maps(SCORES, bags).positive(FOUR)
    assert mean_field_map(SCORES, 200, FOUR) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(
    ("task", "above", "below"),
    [
        (find_task("four"), (2, 3), (0, 1)),
        (find_task("paper-binary"), (1,), (0,)),
        (find_task("her2-low"), (2,), (0, 1)),
        (mapped_task([0, 1, 1, 1]), (1,), (0,)),
    ],
)
def test_the_signed_map_of_any_task(task: Task, above: tuple[int, ...], below: tuple[int, ...]) -> None:
    classes = len(task.classes)
    scores = PatchScores(SCORES.attention_logit, SCORES.contribution[:, :classes], SCORES.bias[:classes])
    bags = partition_bags(90, 30, 20, np.random.default_rng(4))
    attention: dict[int, list[float]] = {}
    for bag in bags.tolist():
        weights = np.exp(scores.attention_logit[bag].astype(np.float64))
        for k, a in zip(bag, weights / weights.sum(), strict=True):
            attention.setdefault(k, []).append(float(a))
    z = scores.contribution.astype(np.float64)
    pull = z[:, list(above)].mean(axis=1) - z[:, list(below)].mean(axis=1)
    expected = [20 * np.mean(attention[k]) * pull[k] for k in range(90)]
    signed = MapChoice.parse("signed", task).values(patch_maps(scores, bags), scores, 20, task)
    assert signed == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert (signed > 0).any()
    assert (signed < 0).any()


def test_a_patch_alone_is_a_bag_of_one() -> None:
    one_by_one = SCORES.bag_probabilities(np.arange(90)[:, None])
    assert alone(SCORES) == pytest.approx(one_by_one, abs=1e-5)


def test_names_of_maps() -> None:
    binary = find_task("paper-binary")
    assert MapChoice.parse("class:2+, 3+", binary) == MapChoice("class", 1)
    assert "2+, 3+" in MapChoice.parse("attention", binary).caption(binary)
    assert "mean-field" in MapChoice.parse("mean-field", FOUR).title(FOUR)
    for wrong in ("class:4+", "2+", "heat", "class:"):
        with pytest.raises(ConfigError, match=r"class:0, class:1\+, class:2\+, class:3\+"):
            MapChoice.parse(wrong, FOUR)
