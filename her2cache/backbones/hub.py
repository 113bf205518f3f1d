"""timm's networks, and those that are shared in its form on the Hugging Face hub: `timm:NAME`, `timm:hf-hub:ORG/NAME`.

timm is an extra; it is imported only when it is asked for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from her2cache.backbones.files import matched, read_state, refuse_other_card
from her2cache.backbones.network import INTERPOLATIONS, NetworkRecipe, Tensors, arrays, fitting, quietly
from her2cache.embedder import EmbedderSpec, Resize, canonical_json, tensors_sha256
from her2cache.errors import EmbedderError

if TYPE_CHECKING:
    from her2cache.weights import WeightsCard

PREFIX = "timm:"
_SHARED = "hf-hub:"
_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")


def load_timm(request: str, weights: str, patch_px: int, *, offline: bool = False) -> NetworkRecipe:
    """A network of timm as an embedder: its pooled features, its own size and normalisation.

    Args:
        request: its name in timm, or `hf-hub:ORG/NAME`.
        weights: a file with its state dict; "" for those it comes with.
        patch_px: side of the patches it will be given.
        offline: never try a download.

    Raises:
        EmbedderError: timm is not installed, there is no such network, or its weights cannot be had.
        WeightsMismatchError: the file is not of this network.
    """
    require_timm(request)
    name = f"{PREFIX}{request}"
    if offline and not weights and not is_cached(request):
        raise EmbedderError(
            f"the weights of {name} are not on this machine, and downloads are off; give a file with {name}=FILE"
        )
    architecture, published, arguments = _described(request)
    card: WeightsCard | None = None
    if weights:
        state, card = read_state(Path(weights))
        refuse_other_card(card, weights, architecture)
        network = _made(name, partial(headless, architecture, published, arguments))
        kept = matched(
            state,
            network.state_dict(),
            _head_of(network),
            f"{weights} does not hold a {request}",
            f"give a state dict of timm's {architecture}",
        )
        tensors = arrays(kept)
        network.load_state_dict(kept)
    else:
        with _weights_only():
            network = _made(name, partial(headless, architecture, published, arguments, pretrained=True))
        tensors = arrays(network.state_dict())
    config: dict[str, Any] = network.pretrained_cfg  # pyright: ignore[reportAssignmentType]
    resize, mean, std = _transform(name, network)
    spec = EmbedderSpec(
        name=name,
        dim=_dim_of(name, network, resize.crop),
        input_px=resize.crop,
        mean=card.mean if card else mean,
        std=card.std if card else std,
        weights_sha256=_digest(tensors, arguments),
        resize=fitting(patch_px, resize),
    )
    source = str(Path(weights).resolve()) if weights else None
    return NetworkRecipe(spec, tensors, source, partial(headless, architecture, config, arguments), card)


def headless(
    architecture: str, config: Mapping[str, Any] | str | None, arguments: Mapping[str, Any], *, pretrained: bool = False
) -> nn.Module:
    """A network of timm without its classifier.

    Args:
        architecture: its name.
        config: what timm says of its weights, or their tag; decides the size of its input.
        arguments: beyond its defaults.
        pretrained: whether it has its own weights, which may be downloaded; otherwise they are those of chance.
    """
    import timm

    given = dict(config) if isinstance(config, Mapping) else config
    return timm.create_model(
        architecture, pretrained=pretrained, pretrained_cfg=given, num_classes=0, **dict(arguments)
    )


def require_timm(request: str = "NAME") -> None:
    """Stops where timm is not installed.

    Raises:
        EmbedderError: it is not.
    """
    try:
        import timm  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise EmbedderError(
            f"{PREFIX}{request} needs timm, which is not installed here ({error}): pip install 'her2cache[timm]'"
        ) from error


def is_cached(request: str) -> bool:
    """Whether the weights of a network are on this machine. timm must be there."""
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    if request.startswith(_SHARED):
        place, files = request.removeprefix(_SHARED), _FILES
    else:
        config = get_pretrained_cfg(request)
        if config is None or not config.hf_hub_id:
            return False
        place, files = config.hf_hub_id, (config.hf_hub_filename, *_FILES)
    repository, _, revision = place.partition("@")
    found = (try_to_load_from_cache(repository, file, revision=revision or None) for file in files if file)
    return any(isinstance(file, str) for file in found)


def _digest(tensors: Tensors, arguments: Mapping[str, Any]) -> str:
    """Over the tensors, and over what the hub says of their network beyond timm's defaults, such as how it pools.

    That changes numbers and no tensor; without any, it is the digest of the tensors alone.
    """
    if not arguments:
        return tensors_sha256(tensors)
    said = np.frombuffer(canonical_json(arguments).encode(), np.uint8)
    return tensors_sha256({**tensors, "model_args": said})


def _described(request: str) -> tuple[str, Mapping[str, Any] | str | None, Mapping[str, Any]]:
    """Architecture, description of the weights, and arguments of a network."""
    import timm
    from timm.models import load_model_config_from_hf, split_model_name_tag

    if request.startswith(_SHARED):
        config, architecture, arguments = _shared(request, load_model_config_from_hf)
    else:
        architecture, tag = split_model_name_tag(request)
        config, arguments = tag or None, {}
    if not timm.is_model(architecture):
        raise EmbedderError(
            f"this timm ({timm.__version__}) has no network {architecture!r} ({PREFIX}{request}): correct the name, or"
            " install a newer timm"
        )
    return architecture, config, arguments


def _shared(request: str, load: Any) -> tuple[Mapping[str, Any], str, Mapping[str, Any]]:
    try:
        config, architecture, arguments = load(request.removeprefix(_SHARED))
    except Exception as error:  # whatever a hub, a proxy or a cache comes up with
        raise _unavailable(f"{PREFIX}{request}", error) from error
    return config, architecture, arguments or {}


def _made(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return quietly(make)
    except Exception as error:  # timm's own, those of the hub, and those of torch
        raise _unavailable(name, error) from error


def _unavailable(name: str, error: Exception) -> EmbedderError:
    reason = str(error).strip().partition("\n")[0]
    return EmbedderError(
        f"{name} cannot be had ({type(error).__name__}: {reason}): no network of that name, no connection, or one that"
        f" asks for a licence first (accept it on its page, then `hf auth login`); with a file: {name}=FILE"
    )


@contextmanager
def _weights_only() -> Generator[None]:
    """No unpickling of objects, whatever timm or the hub ask of torch.load; torch reads this at each call."""
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def _head_of(network: nn.Module) -> list[str]:
    """Prefixes of the classifier in a state dict of the whole network."""
    config: dict[str, Any] = network.pretrained_cfg  # pyright: ignore[reportAssignmentType]
    classifier = config.get("classifier") or "head"
    return [f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier)]


def _transform(name: str, network: nn.Module) -> tuple[Resize, Any, Any]:
    """timm's transform for evaluation: scaled to floor(side / crop_pct), its centre cut (timm.data.transforms)."""
    from timm.data.config import resolve_model_data_config

    config = resolve_model_data_config(network)
    channels, height, width = config["input_size"]
    interpolation = config["interpolation"]
    if channels != 3 or height != width or interpolation not in INTERPOLATIONS:
        raise EmbedderError(
            f"{name} wants {width} x {height} px of {channels} channels, scaled by {interpolation!r}; patches here are"
            f" square, RGB, and scaled by one of {', '.join(INTERPOLATIONS)}; choose another network"
        )
    side = math.floor(height / config["crop_pct"])
    return Resize(side, height, interpolation), tuple(config["mean"]), tuple(config["std"])


def _dim_of(name: str, network: nn.Module, side: int) -> int:
    """Length of the features, by trying; what networks say of themselves is not always that."""
    with torch.inference_mode():
        out = network.eval()(torch.zeros(1, 3, side, side))
    if not isinstance(out, torch.Tensor) or out.ndim != 2:
        raise EmbedderError(f"{name} gives no vector a patch, even without its classifier; choose another network")
    return out.shape[1]
