"""timm's networks as embedders: their own size and normalisation, pooled features; nothing unpickled."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from her2cache.backbones.hub import _weights_only, is_cached
from her2cache.backbones.registry import load_recipe
from her2cache.embedder import Batching, Resize, tensors_sha256
from her2cache.errors import EmbedderError, WeightsMismatchError
from tests.embedders import noisy

NAME = "resnet10t.c3_in1k"


pytestmark = pytest.mark.usefixtures("torch_threads")


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


class Hub:
    """A cache of the hub with one repository, `org/net`, and no connection."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "models--org--net"

    def put(self, revision: str, commit: str, **files: object) -> None:
        """Stores files under a commit that a branch is at."""
        (self.folder / "refs").mkdir(parents=True, exist_ok=True)
        (self.folder / "refs" / revision).write_text(commit)
        snapshot = self.folder / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (snapshot / name.replace("_json", ".json").replace("_st", ".safetensors")).write_text(json.dumps(content))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return Hub(tmp_path / "hub")


def test_what_the_hub_says_of_a_network_is_part_of_the_key(hub: Hub, file: Path, network: Any) -> None:
    """How it pools changes its numbers, and neither its tensors nor its name."""
    plain = {"architecture": "resnet10t", "num_classes": 1000, "pretrained_cfg": dict(network.pretrained_cfg)}
    patches, found = noisy(2), {}
    for pool in (None, "avg", "max"):
        config = plain if pool is None else plain | {"model_args": {"global_pool": pool}}
        hub.put("main", "a" * 40, config_json=config)
        recipe = load_recipe(f"timm:hf-hub:org/net={file}", 96)
        found[pool] = recipe.spec.weights_sha256, recipe.build(Batching(batch=2)).embed(patches)
    digests = {pool: digest for pool, (digest, _) in found.items()}
    assert len(set(digests.values())) == 3
    assert digests[None] == tensors_sha256(recipe.tensors) == load_recipe(f"timm:{NAME}={file}", 96).spec.weights_sha256
    assert np.array_equal(found[None][1], found["avg"][1])
    assert not np.array_equal(found["avg"][1], found["max"][1])


def test_weights_of_another_revision_are_not_those_asked_for(hub: Hub) -> None:
    hub.put("main", "a" * 40, config_json={}, model_st={})
    hub.put("v2", "b" * 40, config_json={})
    asked = ("", "@main", "@v2", f"@{'a' * 40}", f"@{'b' * 40}", "@v3")
    here = [is_cached(f"hf-hub:org/net{revision}") for revision in asked]
    assert here == [True, True, False, True, False, False]
    with pytest.raises(EmbedderError, match=r"hf-hub:org/net@v2 are not on this machine, and downloads are off"):
        load_recipe("timm:hf-hub:org/net@v2", 96, offline=True)


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
