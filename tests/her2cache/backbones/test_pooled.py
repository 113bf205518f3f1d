"""torchvision's networks as embedders: what goes into their last layer, on what their own transform makes of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models

from her2cache.backbones.network import NetworkRecipe, fitting
from her2cache.backbones.pooled import best_weights, dim_of, doubt, names, own_resize
from her2cache.backbones.registry import load_recipe
from her2cache.embedder import Batching, EmbedderSpec
from her2cache.errors import EmbedderError, WeightsMismatchError
from her2cache.weights import WeightsCard
from tests.embedders import card, noisy

INSIDE = ("googlenet", "inception_v3")


pytestmark = pytest.mark.usefixtures("torch_threads")


def network_of(name: str) -> nn.Module:
    extra = {"init_weights": False} if name in INSIDE else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.get_model(name, weights=None, **extra).eval()


def saved(network: nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of resnet18."""
    return saved(network_of("resnet18"), tmp_path_factory.mktemp("resnet") / "w.pth")


def by_hook(network: nn.Module, name: str, patches: np.ndarray) -> np.ndarray:
    """Reference: torchvision's own transform on PIL images, and a hook on the whole network's last linear layer."""
    transform = best_weights(name).transforms()
    x = torch.stack([transform(Image.fromarray(patch)) for patch in patches])
    if name in INSIDE:
        network.transform_input = True  # as torchvision sets it for its weights
    seen: list[Tensor] = []
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    layer = linear[-1] if linear else network.get_submodule("classifier.1")
    layer.register_forward_hook(lambda _layer, inputs, _out: seen.append(inputs[0]))
    with torch.no_grad():
        network(x)
    return (seen[0] if linear else seen[0].mean((2, 3))).numpy()


QUICK = ("squeezenet1_1", "mobilenet_v3_small")
SLOW = (
    "mnasnet0_5",
    "resnet18",
    "googlenet",
    "inception_v3",
    "densenet121",
    "regnet_x_400mf",
    "vit_b_32",
    "swin_t",
    "maxvit_t",
)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_equal_to_the_network_with_its_own_transform(name: str, tmp_path: Path) -> None:
    network, patches = network_of(name), noisy(3)
    recipe = load_recipe(f"torchvision:{name}={saved(network, tmp_path / 'w.pth')}", 96)
    found = recipe.build(Batching(batch=4)).embed(patches)
    expected = by_hook(network, name, patches)
    assert found.shape == expected.shape == (3, recipe.spec.dim)
    # bicubic on tensors may be a grey level off Pillow's
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("patch_px", [96, 224, pytest.param(300, marks=pytest.mark.slow)])
def test_pixels_are_those_of_the_transform(patch_px: int, resnet: Path) -> None:
    recipe = load_recipe(f"torchvision:resnet18={resnet}", patch_px)
    patches = np.random.default_rng(0).integers(0, 256, (2, patch_px, patch_px, 3), np.uint8)
    seen = recipe.build(Batching(batch=2)).prepare(torch.from_numpy(patches)).numpy()
    assert seen.shape == (2, 3, 224, 224)
    if patch_px == 224:  # as they are
        assert recipe.spec.resize is None
        pixels = patches.transpose(0, 3, 1, 2) / 255
        expected = (pixels - np.reshape(recipe.spec.mean, (3, 1, 1))) / np.reshape(recipe.spec.std, (3, 1, 1))
        assert np.abs(seen - expected).max() < 1e-5
    else:
        transform = best_weights("resnet18").transforms()
        expected = torch.stack([transform(Image.fromarray(patch)) for patch in patches]).numpy()
        assert np.abs(seen - expected).max() < 1.01 / 255 / min(recipe.spec.std)  # one grey level


@pytest.mark.slow
def test_older_names_in_the_files_of_densenet(tmp_path: Path) -> None:
    """torchvision's file says `denselayer1.norm.1.weight` where its network has `denselayer1.norm1.weight`, and was
    written before batch normalisation counted its batches."""
    state = network_of("densenet121").state_dict()
    torch.save(state, tmp_path / "new.pth")
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save(old, tmp_path / "old.pth")
    new, old = (load_recipe(f"torchvision:densenet121={tmp_path / name}.pth", 96) for name in ("new", "old"))
    assert new.spec == old.spec


def test_the_head_does_not_matter(tmp_path: Path) -> None:
    whole = network_of("squeezenet1_1").state_dict()
    body = {name: value for name, value in whole.items() if not name.startswith("classifier.")}
    two = body | {"classifier.1.weight": torch.zeros(2, 512, 1, 1), "classifier.1.bias": torch.zeros(2)}
    specs = set[str]()
    for name, state in (("whole", whole), ("body", body), ("two", two)):
        torch.save(state, tmp_path / name)
        specs.add(load_recipe(f"torchvision:squeezenet1_1={tmp_path / name}", 96).spec.weights_sha256)
    assert len(specs) == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"conv1.weight": None}, "conv1.weight"),
        ({"extra.weight": torch.zeros(2)}, "extra.weight"),
        ({"conv1.weight": torch.zeros(64, 3, 3, 3)}, "conv1.weight"),
        pytest.param({"conv1.weight": "text"}, "conv1.weight", marks=pytest.mark.slow),
    ],
)
def test_a_file_of_another_network(tmp_path: Path, resnet: Path, change: dict[str, Any], named: str) -> None:
    state = torch.load(resnet, weights_only=True) | change
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "w.pth")
    with pytest.raises(WeightsMismatchError, match=rf"w\.pth does not hold a resnet18: .*{named}"):
        load_recipe(f"torchvision:resnet18={tmp_path / 'w.pth'}", 96)


def test_names_and_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(EmbedderError, match="no classification network 'resnet19'"):
        load_recipe("torchvision:resnet19", 96)
    for request in ("torchvision:resnet50", "torchvision:resnet50=IMAGENET1K_V1"):
        with pytest.raises(EmbedderError, match=r"IMAGENET1K_V[12] weights .* downloads are off; give a file"):
            load_recipe(request, 96, offline=True)
    with pytest.raises(EmbedderError, match="does not exist"):
        load_recipe("torchvision:resnet50=none.pth", 96)


def test_a_file_that_may_want_another_input_than_is_assumed() -> None:
    """resnet50 has weights that want 256 px scaled, and others that want 232; resnet18 and its file are clear."""

    def recipe(name: str, source: str | None, px: int = 96, card: WeightsCard | None = None) -> NetworkRecipe:
        resize = fitting(px, own_resize(best_weights(name)))
        spec = EmbedderSpec(f"torchvision:{name}", 3, 224, (0.0,) * 3, (1.0,) * 3, "", resize=resize)
        return NetworkRecipe(spec, {}, source, partial(network_of, name), card)

    assert doubt(recipe("resnet50", "r.pth")) == (
        "torchvision:resnet50: r.pth does not say what input it wants; that of torchvision's IMAGENET1K_V2 is assumed,"
        " and IMAGENET1K_V1 would want another"
    )
    clear = [
        recipe("resnet50", "r.pth", 224),  # patches are not scaled
        recipe("resnet50", "IMAGENET1K_V1"),
        recipe("resnet50", "r.pth", card=card("pcam", architecture="resnet50")),
        recipe("resnet18", "r.pth"),
        recipe("resnet50", None),
    ]
    assert [doubt(one) for one in clear] == [""] * 5


def test_lengths_without_tensors() -> None:
    assert len(names()) >= 80
    assert (dim_of("resnet50"), dim_of("squeezenet1_1"), dim_of("vit_b_16")) == (2048, 512, 768)
    assert dim_of("regnet_y_400mf") is None
