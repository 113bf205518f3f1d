"""Several embedders on the same patches: copied once, each failing for itself, and the bytes of one that is alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cluster.actors import Embed
from her2cache.backbones.network import NetworkRecipe, TorchEmbedder
from her2cache.backbones.placement import Placed
from her2cache.backbones.registry import load_recipe
from her2cache.backbones.sharing import embed_with_each
from her2cache.embedder import Batching, EmbedderSpec, Resize
from her2cache.errors import EmbedderError
from her2cache.ingest import PatchBlock
from tests.embedders import noisy

SPEC = EmbedderSpec("pooled", 3, 64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "0" * 64)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


pytestmark = pytest.mark.usefixtures("torch_threads")


def pooled(batch: int, **changes: Any) -> TorchEmbedder:
    return TorchEmbedder(nn.AdaptiveAvgPool2d(1), replace(SPEC, **changes), Batching(batch=batch))


@dataclass
class Foreign:
    """An embedder that is not of torch, and what it answers."""

    answer: Any
    spec = replace(SPEC, name="foreign")

    def embed(self, patches: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        del patches, noise
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_patches_and_noise_are_placed_once_for_all_embedders() -> None:
    patches = noisy(20, 64)
    noise = np.random.default_rng(0).normal(size=(20, 3, 64, 64)).astype(np.float32)
    placed = Placed(patches, {64: noise}, "cpu", 8)
    together = [pooled(batch).embed_placed(placed) for batch in (8, 4, 2)]
    assert placed.pixels(12, 4).data_ptr() == placed.pixels(8, 8)[4:].data_ptr()  # a smaller batch copies nothing
    assert [found.tobytes() for found in together] == [pooled(b).embed(patches, noise).tobytes() for b in (8, 4, 2)]
    expected = patches.mean((1, 2)) / 255 + noise.mean((2, 3))
    assert np.abs(together[0] - expected).max() < 1e-5


@pytest.mark.parametrize("n", [0, 1, 3, 4, 7, 8])
def test_together_as_alone(n: int) -> None:
    patches = noisy(n, 64)
    larger = Resize(80, 72, "bicubic")
    embedders = [pooled(8), pooled(2, input_px=72, resize=larger), Foreign(np.ones((n, 3), np.float32)), pooled(4)]
    found = embed_with_each(embedders, patches, {})
    assert all(seconds > 0 for _, seconds in found)
    for embedder, (features, _) in zip(embedders, found, strict=True):
        assert isinstance(features, np.ndarray)
        assert features.tobytes() == embedder.embed(patches).tobytes()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ValueError("text"), r"foreign failed on its patches \(ValueError: text\)"),
        (EmbedderError("what it says"), "what it says"),
        (np.zeros((4, 1), np.float32), r"shape \(4, 1\) for 4 patches, not \(4, 3\)"),
        (np.zeros(3, np.float32), r"shape \(3,\)"),
    ],
)
def test_one_that_fails_does_not_stop_the_others(answer: Any, reason: str) -> None:
    (first, _), (failed, _), (last, _) = embed_with_each([pooled(4), Foreign(answer), pooled(4)], noisy(4, 64), {})
    assert isinstance(failed, EmbedderError)
    with pytest.raises(EmbedderError, match=reason):
        raise failed
    assert isinstance(first, np.ndarray)
    assert isinstance(last, np.ndarray)


def _no_network() -> nn.Module:
    raise RuntimeError("out of memory")


def test_two_blocks_at_a_time_as_one_after_the_other() -> None:
    """As on a GPU, where an actor has two threads."""
    actor = Embed([load_recipe("alexnet-random", 64)], [Batching(batch=4)], views=1)
    blocks = [
        PatchBlock("s", 0, np.zeros((6, 2), np.int32), noisy(6, 64, seed), np.ones(6, np.bool_)) for seed in range(6)
    ]
    alone = [actor.embed(block, [0]) for block in blocks]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda block: actor.embed(block, [0]), blocks))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(np.asarray(one.features[0]), np.asarray(other.features[0]))
    assert actor.counted() == [2 * 6 * 6]


def test_one_that_cannot_be_built_does_not_stop_the_others() -> None:
    good = load_recipe("alexnet-random", 64)
    bad = NetworkRecipe(SPEC, {}, None, _no_network)
    actor = Embed([bad, good, bad], [Batching(batch=4)] * 3, views=2)
    block = PatchBlock("s", 0, np.zeros((4, 2), np.int32), noisy(4, 64), np.ones(4, np.bool_))
    made = actor.embed(block, [0, 1, 2])
    assert [isinstance(features, EmbedderError) for features in made.features] == [True, False, True]
    assert "pooled cannot be built (RuntimeError: out of memory)" in str(made.features[0])
    assert [seconds > 0 for seconds in made.seconds] == [False, True, False]
    actor.embed(block, [2, 1])
    assert actor.counted() == [0, 2 * 2 * 4, 0]


def test_a_centre_is_cut_out_of_what_was_scaled() -> None:
    patches = noisy(2, 64)
    seen = pooled(2, input_px=64, resize=Resize(64, 32)).prepare(torch.from_numpy(patches))
    assert np.array_equal(seen.mul(255).round().permute(0, 2, 3, 1).numpy(), patches[:, 16:48, 16:48])


@gpu
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_gpu_agrees_with_the_processor(precision: str) -> None:
    patches = noisy(70)
    noise = np.random.default_rng(0).normal(0, 0.1, (70, 3, 96, 96)).astype(np.float32)
    recipe = load_recipe("alexnet-random", 96)
    expected = recipe.build(Batching(batch=32)).embed(patches, noise)
    batching = Batching(batch=32, device="cuda", precision=precision)
    first, second = recipe.build(batching), recipe.build(batching)
    found = first.embed(patches, noise)
    assert np.abs(found - expected).max() < (1e-4 if precision == "float32" else 1e-2) * np.abs(expected).max()
    assert second.embed(patches, noise).tobytes() == found.tobytes()
    assert first.embed(patches[:3], noise[:3]).tobytes() == found[:3].tobytes()
    both = embed_with_each([first, second], patches, {96: noise})
    assert [np.asarray(features).tobytes() for features, _ in both] == [found.tobytes()] * 2


@gpu
def test_a_gpu_computes_in_float32_when_told_to() -> None:
    """TF32 keeps ten bits of a factor; a sum of 4,096 of them shows it."""
    weights = torch.full((1, 3, 64, 64), 1 + 2**-12)
    network = nn.Conv2d(3, 1, 64, bias=False)
    network.weight = nn.Parameter(weights)
    embedder = TorchEmbedder(network, replace(SPEC, dim=1), Batching(batch=1, device="cuda"))
    found = embedder.embed(np.full((1, 64, 64, 3), 255, np.uint8))
    assert abs(found[0, 0] / (3 * 64 * 64 * (1 + 2**-12)) - 1) < 1e-5
