"""The four embedders of the paper: one AlexNet trunk, trained for four source tasks.

The paper's embedding is torchvision `alexnet().features`, flattened: at 96 px 256 x 2 x 2 = 1,024
numbers. A trunk here is its tensors and its spec, so that it travels between machines as data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchvision.models import AlexNet_Weights, alexnet

from her2cache.backbones.download import download
from her2cache.backbones.files import matched, read_state, refuse_other_card
from her2cache.backbones.network import Tensors, TorchEmbedder, arrays, load_tensors, quietly
from her2cache.embedder import RANDOM, Batching, EmbedderSpec, random_name, tensors_sha256
from her2cache.errors import EmbedderError, WeightsMismatchError
from her2cache.weights import WeightsCard

Rgb = tuple[float, float, float]

IMAGENET = "alexnet-imagenet"
IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)
"""Statistics of ImageNet's images in 0 to 1, as torchvision's weights expect them
(torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms)."""

MIN_PX = 63
"""AlexNet's trunk has no output below this side."""

_DOWNLOADED = "torchvision AlexNet_Weights.IMAGENET1K_V1"
_SOURCE_TASKS = {"alexnet-pcam": "pcam", "alexnet-ihc": "ihc"}


@dataclass(frozen=True)
class Trunk:
    """A frozen AlexNet trunk as data: it pickles, and rebuilds anywhere as a `TorchEmbedder`.

    Attributes:
        spec: what it is.
        tensors: its state dict, keys as in `alexnet().features`.
        source, card: see `embedder.Recipe`.
    """

    spec: EmbedderSpec
    tensors: Tensors
    source: str | None
    card: WeightsCard | None = None

    def build(self, batching: Batching) -> TorchEmbedder:
        """See `embedder.Recipe.build`."""
        network = _empty_trunk()
        load_tensors(network, self.tensors)
        return TorchEmbedder(network, self.spec, batching)


@dataclass(frozen=True)
class _Loaded:
    """Tensors of a trunk, how its input is normalised, and where both come from."""

    tensors: Tensors
    mean: Rgb
    std: Rgb
    source: str | None = None
    card: WeightsCard | None = None


def load_trunk(name: str, weights: str, patch_px: int, *, offline: bool = False) -> Trunk:
    """A trunk by its name.

    Args:
        name: one of `NAMES`, or `alexnet-random-s3`, which is `alexnet-random` of seed 3.
        weights: a file; of `alexnet-random` a seed; "" where none was given.
        patch_px: side of the patches it will be given; decides the length of its features.
        offline: never try a download.

    Raises:
        EmbedderError: the weights cannot be had.
        WeightsMismatchError: the file is not such a trunk.
    """
    if seeded := re.fullmatch(rf"{RANDOM}-s(\d+)", name):
        name, weights = RANDOM, seeded[1]
    if patch_px < MIN_PX:
        raise EmbedderError(f"{name} takes patches of at least {MIN_PX} px, not {patch_px}; raise --patch-px")
    loaded = _KINDS[name](weights, offline)
    spec = EmbedderSpec(
        name=random_name(int(weights or 0)) if name == RANDOM else name,
        dim=trunk_dim(patch_px),
        input_px=patch_px,
        mean=loaded.mean,
        std=loaded.std,
        weights_sha256=tensors_sha256(loaded.tensors),
    )
    return Trunk(spec, loaded.tensors, loaded.source, loaded.card)


def is_trunk(name: str, weights: str) -> bool:
    """Whether a request is for one of these embedders."""
    return name in NAMES or (not weights and re.fullmatch(rf"{RANDOM}-s\d+", name) is not None)


def how_to_get(name: str) -> str:
    """What to do for an embedder's weights."""
    if name in _SOURCE_TASKS:
        data = {"pcam": "PCAM_DATA", "ihc": "COHORT"}[_SOURCE_TASKS[name]]
        return (
            f"train them with `her2cache pretrain {_SOURCE_TASKS[name]} {data} --out W.safetensors`, and give"
            f" {name}=W.safetensors"
        )
    return f"give a file with {name}=FILE (state dict of torchvision's alexnet, or of its .features)"


def trunk_dim(patch_px: int) -> int:
    """Length of the trunk's flattened output: the strides and pools of `alexnet().features`, one after the other."""
    side = (patch_px + 2 * 2 - 11) // 4 + 1  # convolution 11, stride 4, padding 2
    for _ in range(2):  # pool 3, stride 2; the convolution behind it keeps the side
        side = (side - 3) // 2 + 1
    return 256 * ((side - 3) // 2 + 1) ** 2


def _load_random(weights: str, offline: bool) -> _Loaded:
    """torchvision's initialisation from a seed; the generator of the process is left as it was."""
    del offline
    if weights and not re.fullmatch(r"\d{1,9}", weights):
        raise EmbedderError(
            f"{RANDOM} takes no weights file, but a seed ({RANDOM}=3): it is torchvision's initialisation"
        )

    def seeded() -> torch.nn.Module:
        torch.default_generator.manual_seed(int(weights or 0))  # torch.manual_seed would seed the GPUs too
        return alexnet(weights=None).features

    return _Loaded(arrays(quietly(seeded).state_dict()), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def _load_imagenet(weights: str, offline: bool) -> _Loaded:
    if not weights or weights == _DOWNLOADED:  # as a store says where its features came from
        what = "the ImageNet weights of alexnet"
        state = download(AlexNet_Weights.IMAGENET1K_V1, what, how_to_get(IMAGENET), offline=offline)
        return _Loaded(_trunk_tensors(state, _DOWNLOADED), IMAGENET_MEAN, IMAGENET_STD, _DOWNLOADED)
    path = Path(weights)
    state, card = read_state(path)
    if card is not None and card.source_task != "imagenet":
        _refuse_task(path, card, "imagenet")
    return _Loaded(_trunk_tensors(state, str(path)), IMAGENET_MEAN, IMAGENET_STD, str(path.resolve()), card)


def _load_trained(name: str, weights: str, offline: bool) -> _Loaded:
    """A file of `her2cache pretrain`, normalised as it was trained."""
    del offline
    if not weights:
        raise EmbedderError(f"{name} needs weights of your own: {how_to_get(name)}")
    path = Path(weights)
    state, card = read_state(path)
    if card is None:
        raise WeightsMismatchError(
            f"{path} does not say what it was trained for, and how its input was normalised: `her2cache pretrain` did"
            f" not write it, or something rewrote it; {how_to_get(name)}"
        )
    refuse_other_card(card, str(path), "alexnet")
    if card.source_task != _SOURCE_TASKS[name]:
        _refuse_task(path, card, _SOURCE_TASKS[name])
    return _Loaded(_trunk_tensors(state, str(path)), card.mean, card.std, str(path.resolve()), card)


def _refuse_task(path: Path, card: WeightsCard, wanted: str) -> None:
    names = {task: name for name, task in _SOURCE_TASKS.items()}
    remedy = f"; ask for {names[card.source_task]}={path}" if card.source_task in names else ""
    raise WeightsMismatchError(f"{path} was trained for the source task {card.source_task!r}, not {wanted!r}{remedy}")


def _trunk_tensors(state: Mapping[str, Any], source: str) -> Tensors:
    """The trunk's tensors of a state dict of the trunk or of the whole network."""
    return arrays(
        matched(
            {name.removeprefix("features."): value for name, value in state.items()},
            _empty_trunk().state_dict(),
            ["classifier."],
            f"{source} does not hold an AlexNet trunk",
            "give a state dict of torchvision's alexnet, or of its .features",
        )
    )


def _empty_trunk() -> torch.nn.Module:
    """`alexnet().features` without memory for its tensors: quick, and no draw from the process's generator."""
    with torch.device("meta"):
        return alexnet(weights=None).features


_KINDS: dict[str, Callable[[str, bool], _Loaded]] = {
    RANDOM: _load_random,
    IMAGENET: _load_imagenet,
    **{name: partial(_load_trained, name) for name in _SOURCE_TASKS},
}

NAMES = tuple(_KINDS)
"""Names of these embedders."""
