"""timm's networks as embedders: their own size and normalisation, pooled features; nothing unpickled."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from her2cache.backbones.hub import _weights_only
from her2cache.backbones.registry import load_recipe
from her2cache.embedder import Batching, Resize
from her2cache.errors import EmbedderError, WeightsMismatchError
from tests.embedders import noisy

NAME = "resnet10t.c3_in1k"


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(NAME, pretrained=False).eval()


@pytest.fixture(scope="module")
def file(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("timm") / "w.pth"
    torch.save(network.state_dict(), path)
    return path


def test_equal_to_timm_with_its_own_transform(network: Any, file: Path) -> None:
    recipe = load_recipe(f"timm:{NAME}={file}", 96)
    config = timm.data.resolve_model_data_config(network)
    assert recipe.spec.input_px == config["input_size"][-1]
    assert recipe.spec.resize == Resize(201, 176, "bicubic")  # floor(176 / 0.875)
    assert (recipe.spec.mean, recipe.spec.std) == (config["mean"], config["std"])
    transform: Any = timm.data.create_transform(**config)
    patches = noisy(3)
    with torch.no_grad():
        x = torch.stack([transform(Image.fromarray(patch)) for patch in patches])
        expected = network.forward_head(network.forward_features(x), pre_logits=True).numpy()
    found = recipe.build(Batching(batch=4)).embed(patches)
    assert found.shape == expected.shape == (3, recipe.spec.dim)
    assert np.abs(found - expected).max() < 1e-2 * np.abs(expected).max()  # tensors and Pillow: one grey level


def test_a_patch_of_its_own_size_is_left_as_it_is(file: Path) -> None:
    assert load_recipe(f"timm:{NAME}={file}", 176).spec.resize is None


def test_a_file_of_another_network(file: Path) -> None:
    with pytest.raises(WeightsMismatchError, match="does not hold a resnet18"):
        load_recipe(f"timm:resnet18={file}", 96)


def test_names_and_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EmbedderError, match="has no network 'resnet19'"):
        load_recipe("timm:resnet19", 96)
    for request in (f"timm:{NAME}", "timm:hf-hub:nobody/nothing"):
        with pytest.raises(EmbedderError, match="not on this machine, and downloads are off; give a file"):
            load_recipe(request, 96, offline=True)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(EmbedderError, match=r"pip install 'her2cache\[timm\]'"):
        load_recipe("timm:resnet18", 96)


def test_whatever_timm_asks_of_torch_nothing_is_unpickled(tmp_path: Path) -> None:
    witness, path = tmp_path / "ran", tmp_path / "pytorch_model.bin"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (witness,)

    torch.save({"a": Attack()}, path)
    with _weights_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=False)
    assert not witness.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    torch.load(path, weights_only=False)
    assert witness.exists()  # it would have
