"""torchvision's classification networks without their last layer: `torchvision:NAME`.

Their features are what goes into the last linear layer; SqueezeNet, which has none, gives its pooled map.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from her2cache.backbones.download import download
from her2cache.backbones.files import read_state, refuse_other_card
from her2cache.backbones.network import NetworkRecipe, arrays, fitting, quietly
from her2cache.embedder import EmbedderSpec, Recipe, Resize, tensors_sha256
from her2cache.errors import EmbedderError, WeightsMismatchError

PREFIX = "torchvision:"

_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
"""Heads that GoogLeNet and Inception have in training only."""

_DENSE = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")
"""Names in the files of DenseNet, which torchvision renames before it loads them (torchvision.models.densenet)."""

_NORMALISED_INSIDE = ("googlenet", "inception_v3")
"""torchvision ports their weights from a network with another normalisation, which they then change to themselves."""


def names() -> list[str]:
    """Of torchvision's classification networks."""
    return sorted(models.list_models(module=models))


def load_pooled(architecture: str, weights: str, patch_px: int, *, offline: bool = False) -> NetworkRecipe:
    """A network of torchvision as an embedder.

    Args:
        architecture: its name in torchvision.
        weights: a file, or the name of some of torchvision's weights (IMAGENET1K_V1); "" for the best of these. A file
            is taken to want the input that the best weights want, unless it says otherwise of itself.
        patch_px: side of the patches it will be given.
        offline: never try a download.

    Raises:
        EmbedderError: there is no such network, or its weights cannot be had.
        WeightsMismatchError: the file is not of this network.
    """
    name = f"{PREFIX}{architecture}"
    if architecture not in names():
        raise EmbedderError(
            f"torchvision has no classification network {architecture!r}; `her2cache embedders --all` lists those"
            " that it has"
        )
    kinds = models.get_model_weights(architecture)
    # "" or the name of torchvision's own weights; anything else is a file
    published = kinds[weights] if weights in kinds.__members__ else best_weights(architecture)
    state: dict[str, Any]
    if not weights or weights in kinds.__members__:
        remedy = f"give a file with {name}=FILE (state dict of torchvision's {architecture})"
        state, card = download(published, f"the {published.name} weights of {name}", remedy, offline=offline), None
        source = published.name
    else:
        state, card = read_state(Path(weights))
        refuse_other_card(card, weights, architecture)
        source = str(Path(weights).resolve())
    transform: Any = published.transforms()
    resize = own_resize(published)
    network = quietly(partial(_whole, architecture, resize.crop))
    _load_body(network, state, f"{weights or name} does not hold a {architecture}")
    dim = _cut(network)
    tensors = arrays(network.state_dict())
    spec = EmbedderSpec(
        name=name,
        dim=dim,
        input_px=resize.crop,
        mean=card.mean if card else tuple(transform.mean),
        std=card.std if card else tuple(transform.std),
        weights_sha256=tensors_sha256(tensors),
        resize=fitting(patch_px, resize),
    )
    return NetworkRecipe(spec, tensors, source, partial(headless, architecture, resize.crop), card)


def best_weights(architecture: str) -> WeightsEnum:
    """The weights that torchvision thinks best of."""
    return models.get_model_weights(architecture).DEFAULT  # pyright: ignore[reportAttributeAccessIssue]


def doubt(recipe: Recipe) -> str:
    """What was assumed of a file's input where torchvision's own weights of that network differ; "" where it is clear.

    Args:
        recipe: of any embedder.
    """
    spec, source = recipe.spec, recipe.source
    if not spec.name.startswith(PREFIX) or source is None or recipe.card is not None:
        return ""
    kinds = models.get_model_weights(spec.name.removeprefix(PREFIX))
    if source in kinds.__members__:
        return ""
    best, own = best_weights(spec.name.removeprefix(PREFIX)), {kind: _own_input(kind, spec.resize) for kind in kinds}
    others = [kind.name for kind in kinds if own[kind] != own[best]]
    if not others:
        return ""
    return (
        f"{spec.name}: {source} does not say what input it wants; that of torchvision's {best.name} is assumed, and"
        f" {' and '.join(others)} would want another"
    )


def _own_input(weights: WeightsEnum, resize: Resize | None) -> tuple[object, ...]:
    """What the input of some weights is decided by; patches that are not scaled have to have the side they want."""
    transform: Any = weights.transforms()
    own = own_resize(weights)
    return (*transform.mean, *transform.std, own.crop if resize is None else own)


def own_resize(weights: WeightsEnum) -> Resize:
    """How torchvision brings images to the network of some weights."""
    transform: Any = weights.transforms()
    (side,), (crop,) = transform.resize_size, transform.crop_size
    return Resize(side, crop, transform.interpolation.value, bool(transform.antialias))


def headless(architecture: str, input_px: int) -> nn.Module:
    """A network of torchvision without its head, its weights those of chance."""
    network = _whole(architecture, input_px)
    _cut(network)
    return network


def dim_of(architecture: str) -> int | None:
    """Length of its features, without making its tensors; None where torchvision cannot do that (RegNet)."""
    try:
        with torch.device("meta"):
            return _cut(_whole(architecture, own_resize(best_weights(architecture)).crop))
    except NotImplementedError:
        return None


def _whole(architecture: str, input_px: int) -> nn.Module:
    if architecture in _NORMALISED_INSIDE:
        network = models.get_model(architecture, weights=None, transform_input=True, init_weights=False)
        for name in ("AuxLogits", "aux1", "aux2"):
            if hasattr(network, name):
                setattr(network, name, None)
        return network
    size = {"image_size": input_px} if architecture.startswith("vit_") else {}
    return models.get_model(architecture, weights=None, **size)


def _head(network: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """The last linear layer, and its name; of SqueezeNet, which has none, the convolution that stands for it."""
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    if layers:
        return layers[-1]
    return next(
        (f"classifier.{name}", layer)
        for name, layer in network.get_submodule("classifier").named_modules()
        if isinstance(layer, nn.Conv2d)
    )


def _cut(network: nn.Module) -> int:
    """Takes the head off a network, which then gives what went into it, or the pooled map; returns its length."""
    name, layer = _head(network)
    if isinstance(layer, nn.Conv2d):
        network.classifier = nn.AdaptiveAvgPool2d(1)
        return layer.in_channels
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return layer.in_features


def _load_body(network: nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Loads all but the head, as torchvision does: its networks rename what older files call otherwise.

    Raises:
        WeightsMismatchError: a tensor is missing, extra, or of another shape.
    """
    expected = network.state_dict()
    head = f"{_head(network)[0]}."
    body = OrderedDict(
        (_DENSE.sub(r"\1\2", name), value) for name, value in state.items() if not name.startswith((head, *_AUXILIARY))
    )
    current = all(name in body for name in expected if not name.startswith(head))
    metadata = expected._metadata if current else getattr(state, "_metadata", None)  # pyright: ignore
    if metadata is not None:
        body._metadata = metadata  # pyright: ignore
    try:
        loaded = network.load_state_dict(body, strict=False)
        wrong = [name for name in (*loaded.missing_keys, *loaded.unexpected_keys) if not name.startswith(head)]
        reason = f"{len(wrong)} tensors are missing or extra ({', '.join(wrong[:3])})" if wrong else ""
    except (RuntimeError, ValueError, AttributeError, TypeError) as error:  # another shape, no tensor, no version
        reason = str(error).strip().splitlines()[-1].strip()
    if reason:
        raise WeightsMismatchError(f"{what}: {reason}; give a state dict of torchvision's network of that name")
