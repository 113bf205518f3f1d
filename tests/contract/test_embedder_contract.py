"""What every embedder keeps to, whoever wrote it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from her2cache.backbones.network import TorchEmbedder
from her2cache.backbones.registry import load_recipe
from her2cache.embedder import Batching, Embedder, FeatureSpace, Recipe, canonical_json
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from tests.embedders import KINDS, THIRD_PARTY, noisy, requests

BATCHING = Batching(batch=2)
PX = 96

every_kind = pytest.mark.parametrize("kind", KINDS)


def every_kind_but_slowly(*heavy: str) -> pytest.MarkDecorator:
    """Networks that see more than 96 px take a second a test; of each kind there are quick ones, too."""
    return pytest.mark.parametrize(
        "kind", [pytest.param(k, marks=pytest.mark.slow) if k in heavy else k for k in KINDS]
    )


_ELSEWHERE = """
import pickle, sys
from pathlib import Path
from tests.embedders import noisy
from her2cache.embedder import Batching
for recipe in pickle.loads(Path(sys.argv[1]).read_bytes()):
    print(recipe.build(Batching(batch=2)).embed(noisy(5)).tobytes().hex())
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """kind -> request; the third party's package can be imported, as if it were installed."""
    threads = torch.get_num_threads()
    sys.path.append(str(THIRD_PARTY))
    yield dict(zip(KINDS, requests(tmp_path_factory.mktemp("weights")), strict=True))
    sys.path.remove(str(THIRD_PARTY))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recipes(asked: dict[str, str]) -> dict[str, Recipe]:
    return {kind: load_recipe(request, PX, offline=True) for kind, request in asked.items()}


@pytest.fixture(scope="module")
def embedders(recipes: dict[str, Recipe]) -> dict[str, Embedder]:
    return {kind: recipe.build(BATCHING) for kind, recipe in recipes.items()}


class TestEmbedder:
    @pytest.fixture
    def recipe(self, recipes: dict[str, Recipe], kind: str) -> Recipe:
        return recipes[kind]

    @pytest.fixture
    def embedder(self, embedders: dict[str, Embedder], kind: str) -> Embedder:
        return embedders[kind]

    @every_kind
    def test_shape_and_dtype(self, embedder: Embedder) -> None:
        for n in (0, 1, 4, 5):
            features = embedder.embed(noisy(n))
            assert features.shape == (n, embedder.spec.dim)
            assert features.dtype == np.float32
            assert np.isfinite(features).all()
        assert len(np.unique(features, axis=0)) == 5

    @every_kind_but_slowly("torchvision", "timm")
    def test_the_same_bytes_again_and_where_it_was_sent(self, recipe: Recipe, embedder: Embedder) -> None:
        patches = noisy(4)
        first = embedder.embed(patches).tobytes()
        assert embedder.embed(patches).tobytes() == first
        assert pickle.loads(pickle.dumps(recipe)).build(BATCHING).embed(patches).tobytes() == first

    @every_kind_but_slowly("torchvision")
    def test_the_same_bytes_whatever_the_number_of_patches(self, embedder: Embedder) -> None:
        patches = noisy(6)
        whole = embedder.embed(patches)
        for rows in ([3], [5], [2, 0], [5, 4, 3, 2, 1, 0]):
            assert embedder.embed(patches[rows]).tobytes() == whole[rows].tobytes()

    @every_kind_but_slowly("torchvision", "timm")
    def test_noise_has_the_side_that_the_network_sees(self, embedder: Embedder) -> None:
        patches, side = noisy(5), embedder.spec.input_px
        noise = np.random.default_rng(1).normal(0, 0.1, (5, 3, side, side)).astype(np.float32)
        plain = embedder.embed(patches)
        assert embedder.embed(patches, np.zeros_like(noise)).tobytes() == plain.tobytes()
        assert not np.array_equal(embedder.embed(patches, noise), plain)

    @every_kind_but_slowly("torchvision")
    def test_it_changes_nothing_and_learns_nothing(self, embedder: Embedder) -> None:
        patches = noisy(5)
        patches.flags.writeable = False  # as Ray gives them
        before = patches.copy()
        torch.manual_seed(0)
        np.random.seed(0)
        states = _states(embedder)
        embedder.embed(patches)
        assert _states(embedder) == states
        assert np.array_equal(patches, before)
        assert torch.is_grad_enabled()
        if isinstance(embedder, TorchEmbedder):
            network = embedder._network
            assert not network.training
            assert not any(p.requires_grad or p.grad is not None for p in network.parameters())

    @every_kind
    def test_the_spec_says_how_patches_come_to_it(self, recipe: Recipe) -> None:
        spec = recipe.spec
        assert (spec.resize is None) == (spec.input_px == PX)
        assert spec.resize is None or spec.resize.crop == spec.input_px
        space = FeatureSpace(PatchSpec(), preset("HE"), spec)
        assert ("resize" in space.document()["embedder"]) == (spec.resize is not None)
        document = json.loads(json.dumps(space.document()))
        assert canonical_json(document) == canonical_json(space.document())

    @every_kind
    def test_what_a_store_keeps_is_enough_to_load_it_again(self, recipe: Recipe) -> None:
        request = recipe.spec.name if recipe.source is None else f"{recipe.spec.name}={recipe.source}"
        assert load_recipe(request, PX, offline=True).spec == recipe.spec


def _states(embedder: Any) -> list[bytes]:
    """Of the generators of this process, and of the network."""
    found = [torch.get_rng_state().numpy().tobytes(), pickle.dumps(np.random.get_state())]
    if isinstance(embedder, TorchEmbedder):
        found += [value.numpy().tobytes() for value in embedder._network.state_dict().values()]
    return found


@pytest.mark.slow
def test_recipes_travel_to_another_process(recipes: dict[str, Recipe], tmp_path: Path) -> None:
    (tmp_path / "recipes").write_bytes(pickle.dumps(list(recipes.values())))
    root = Path(__file__).parents[2]
    there = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, str(tmp_path / "recipes")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}:{THIRD_PARTY}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert there == [recipe.build(BATCHING).embed(noisy(5)).tobytes().hex() for recipe in recipes.values()]
