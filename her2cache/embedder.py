"""What an embedder is, and what a feature space is: the part that needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from her2cache.tiling import PatchSpec
from her2cache.tissue import TissueSettings
from her2cache.units import PatchBatch
from her2cache.weights import WeightsCard

SCHEMA = 1
"""Version of the store's layout; part of every space key."""

RANDOM = "alexnet-random"
"""The untrained embedder, of seed 0."""


@dataclass(frozen=True)
class Resize:
    """How patches come to the side of an embedder's input: they are scaled, rounded to whole grey levels, and cut.

    Attributes:
        side: that a patch is scaled to, px.
        crop: side of its centre, which the network sees, px.
        interpolation: "nearest", "bilinear" or "bicubic".
        antialias: whether the filter widens as a patch is made smaller.
    """

    side: int
    crop: int
    interpolation: str = "bilinear"
    antialias: bool = True


@dataclass(frozen=True)
class EmbedderSpec:
    """A frozen network, described by what changes its numbers.

    Attributes:
        name: for people, e.g. "alexnet-imagenet".
        dim: length of a feature vector.
        input_px: side of what the network sees, px.
        mean, std: normalisation of RGB in 0 to 1, a number a channel.
        weights_sha256: digest over the sorted tensors of the trunk, whatever file they came from.
        revision: raised by hand when the code changes its numbers.
        resize: how patches of another side come to input_px; None where they have it already.
    """

    name: str
    dim: int
    input_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights_sha256: str
    revision: int = 1
    resize: Resize | None = None


@dataclass(frozen=True)
class Batching:
    """How an embedder is run. One fixed shape, so that a patch's features do not depend on its neighbours.

    Attributes:
        batch: patches a forward pass; the last batch of a slide is padded with zeros.
        threads: torch threads.
        memory_format: of weights and input, a name in torch: "channels_last" or "contiguous_format".
        device: "cpu" or "cuda".
        precision: of the products: "float32", or "float16" (torch's autocast), which is for GPUs.
    """

    batch: int = 64
    threads: int = 1
    memory_format: str = "channels_last"
    device: str = "cpu"
    precision: str = "float32"


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the augmented views; the defaults are the paper's code (torchvision ColorJitter 0.1 each,
    RandomAffine(10, translate 0.1, scale 0.8-1.2, shear 10, fill 245), Gaussian noise with p 0.5).

    Attributes:
        brightness, contrast, saturation: factors are drawn from 1 - reach to 1 + reach.
        hue: largest shift either way, as a share of the colour circle.
        rotation, shear: largest angle either way, degrees.
        translate: largest shift either way, as a share of the patch's side.
        scale: least and largest factor.
        fill: grey level of what the affine map leaves bare.
        noise_sigma: of the Gaussian noise, on the normalised tensor.
        noise_share: share of the views that have noise.
    """

    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1
    hue: float = 0.1
    rotation: float = 10.0
    shear: float = 10.0
    translate: float = 0.1
    scale: tuple[float, float] = (0.8, 1.2)
    fill: int = 245
    noise_sigma: float = 0.1
    noise_share: float = 0.5
    revision: int = 1


def random_name(seed: int) -> str:
    """Name of the untrained embedder of a seed: `alexnet-random-s3` for seed 3."""
    return f"{RANDOM}-s{seed}" if seed else RANDOM


class Embedder(Protocol):
    """A frozen network that turns patches into features."""

    @property
    def spec(self) -> EmbedderSpec: ...

    def embed(self, patches: PatchBatch, noise: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Features of patches.

        Args:
            patches: uint8 (n, patch_px, patch_px, 3), read-only between processes. One whose network sees another
                side than patch_px brings them to it itself.
            noise: added to the normalised tensor, float32 (n, 3, input_px, input_px).

        Returns:
            float32 (n, dim).
        """
        ...


class Recipe(Protocol):
    """An embedder as data: it pickles to whatever process has the device, and is built there."""

    @property
    def spec(self) -> EmbedderSpec:
        """What it is."""
        ...

    @property
    def source(self) -> str | None:
        """What to give as WEIGHTS to load it again; None where its name alone is enough."""
        ...

    @property
    def card(self) -> WeightsCard | None:
        """What the weights file says of itself; None where there is no file, or it says nothing."""
        ...

    def build(self, batching: Batching) -> Embedder:
        """The embedder, ready to run as it is told.

        Raises:
            EmbedderError: it cannot be had here.
        """
        ...


@dataclass(frozen=True)
class FeatureSpace:
    """Everything that decides the numbers stored for a slide: patches, embedder, views, dtype."""

    patch: PatchSpec
    tissue: TissueSettings
    embedder: EmbedderSpec
    views: int = 1
    augmentation: Augmentation = Augmentation()
    dtype: str = "float16"

    def document(self) -> dict[str, Any]:
        """The JSON document that the key is the digest of."""
        document: dict[str, Any] = asdict(self) | {"schema": SCHEMA}
        if self.views == 1:
            del document["augmentation"]  # view 0 is the patch itself
        if self.embedder.resize is None:
            del document["embedder"]["resize"]  # the spaces of before it was thought of keep their keys
        return document

    @property
    def key(self) -> str:
        """The space key: sha256 of the canonical JSON, hex."""
        return hashlib.sha256(canonical_json(self.document()).encode()).hexdigest()


def canonical_json(document: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no spaces: equal documents give equal text, whether they say 1 or 1.0."""
    return json.dumps(_whole(document), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _whole(value: Any) -> Any:
    """The value with its whole floats as integers."""
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def tensors_sha256(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Digest over named arrays, sorted by name: dtype, shape and bytes of each. Hex."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
