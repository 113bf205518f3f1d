"""Frozen embedders: the AlexNet trunks of the paper.

The paper's embedding is torchvision `alexnet().features`, flattened: at 96 px 256 x 2 x 2 = 1,024
numbers. A trunk here is its tensors and its spec, so that it travels between machines as data.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import AlexNet_Weights, alexnet

from her2cache.embedder import RANDOM, Batching, EmbedderSpec, random_name, tensors_sha256
from her2cache.errors import EmbedderError, WeightsMismatchError
from her2cache.units import PatchBatch

T = TypeVar("T", bound=np.generic)
Tensors = Mapping[str, NDArray[Any]]
Rgb = tuple[float, float, float]

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)
"""Statistics of ImageNet's images in 0 to 1, as torchvision's weights expect them
(torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms)."""

MIN_PX = 63
"""AlexNet's trunk has no output below this side."""
_DOWNLOAD_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Trunk:
    """A frozen AlexNet trunk as data: it pickles, and rebuilds anywhere as an `AlexNetEmbedder`.

    Attributes:
        spec: what it is.
        tensors: its state dict, keys as in `alexnet().features`.
        source: where the tensors came from, for people.
    """

    spec: EmbedderSpec
    tensors: Tensors
    source: str | None


class AlexNetEmbedder:
    """An AlexNet trunk that embeds patches in batches of one fixed shape.

    Attributes:
        spec: what it is.
        batching: how it is run.
        embedded: patches embedded so far, padding left out.
    """

    def __init__(self, trunk: Trunk, batching: Batching) -> None:
        self.spec = trunk.spec
        self.batching = batching
        self.embedded = 0
        torch.set_num_threads(batching.threads)
        self._device = torch.device(batching.device)
        self._model = _empty_trunk()
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in trunk.tensors.items()}
        self._model.load_state_dict(tensors, assign=True)
        self._model.eval().requires_grad_(requires_grad=False)
        self._memory_format: torch.memory_format = getattr(torch, batching.memory_format)
        self._model.to(device=self._device).to(memory_format=self._memory_format)  # pyright: ignore[reportCallIssue]
        self._mean = torch.tensor(trunk.spec.mean, device=self._device).view(1, 3, 1, 1)
        self._std = torch.tensor(trunk.spec.std, device=self._device).view(1, 3, 1, 1)

    def embed(self, patches: PatchBatch, noise: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Features of patches, see `Embedder.embed`: uint8 (n, px, px, 3) in, float32 (n, dim) out."""
        n, size = len(patches), self.batching.batch
        features = np.empty((n, self.spec.dim), np.float32)
        for start in range(0, n, size):
            batch = _padded(patches[start : start + size], size)
            extra = None if noise is None else _padded(noise[start : start + size], size)
            features[start : start + size] = self._forward(batch, extra)[: n - start]
        self.embedded += n
        return features

    @torch.inference_mode()
    def _forward(self, batch: PatchBatch, noise: NDArray[np.float32] | None) -> NDArray[np.float32]:
        # patches shared between Ray actors are read-only, which torch only accepts as a copy
        pixels = torch.from_numpy(np.require(batch, requirements=["C", "W"])).to(self._device)
        x = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=self._memory_format)  # (batch, 3, px, px)
        x = x.div_(255).sub_(self._mean).div_(self._std)
        if noise is not None:
            x = x.add_(torch.from_numpy(noise).to(self._device))
        out: Tensor = self._model(x)  # (batch, 256, h, w)
        return out.flatten(1).cpu().numpy()  # (batch, dim)


def _padded(batch: NDArray[T], size: int) -> NDArray[T]:
    """A batch filled up to `size` with zeros, so that every forward pass has one shape."""
    if len(batch) == size:
        return batch
    return np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), batch.dtype)])


def load_trunk(request: str, patch_px: int, *, offline: bool = False) -> Trunk:
    """The trunk behind `NAME` or `NAME=WEIGHTS`.

    Args:
        request: as on the command line. `alexnet-random=3` and `alexnet-random-s3` are both the untrained trunk of
            seed 3, whose name is the latter.
        patch_px: side of the patches it will be given; decides the length of its features.
        offline: never try a download.

    Raises:
        EmbedderError: the name is unknown, or the weights cannot be had.
        WeightsMismatchError: the file is not a trunk.
    """
    name, _, weights = request.partition("=")
    if not weights and (seeded := re.fullmatch(rf"{RANDOM}-s(\d+)", name)):
        name, weights = RANDOM, seeded[1]
    if name not in _KINDS:
        raise EmbedderError(
            f"embedder {name!r} is not known; this version has {', '.join(_KINDS)} (as NAME, or NAME=WEIGHTS_FILE)"
        )
    if patch_px < MIN_PX:
        raise EmbedderError(f"{name} takes patches of at least {MIN_PX} px, not {patch_px}; raise --patch-px")
    kind = _KINDS[name]
    tensors, source = kind.load(weights, offline)
    spec = EmbedderSpec(
        name=random_name(int(weights or 0)) if name == RANDOM else name,
        dim=256 * _trunk_side(patch_px) ** 2,
        input_px=patch_px,
        mean=kind.mean,
        std=kind.std,
        weights_sha256=tensors_sha256(tensors),
    )
    return Trunk(spec, tensors, source)


def names() -> list[str]:
    """Names of the embedders that can be asked for."""
    return list(_KINDS)


def best_device() -> str:
    """ "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def instruction_set() -> str:
    """The vector instructions torch uses on this CPU; digests agree between machines that share it."""
    return torch.backends.cpu.get_cpu_capability()


def _trunk_side(patch_px: int) -> int:
    """Side of the trunk's output: the strides and pools of `alexnet().features`, one after the other."""
    side = (patch_px + 2 * 2 - 11) // 4 + 1  # convolution 11, stride 4, padding 2
    for _ in range(2):  # pool 3, stride 2; the convolution behind it keeps the side
        side = (side - 3) // 2 + 1
    return (side - 3) // 2 + 1


def _load_random(weights: str, offline: bool) -> tuple[Tensors, str | None]:
    """torchvision's initialisation from a seed; the generator of the process is left as it was."""
    del offline
    if weights and not re.fullmatch(r"\d{1,9}", weights):
        raise EmbedderError(
            f"{RANDOM} takes no weights file, but a seed ({RANDOM}=3): it is torchvision's initialisation"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(weights or 0))  # torch.manual_seed would seed the GPUs too
        state = alexnet(weights=None).features.state_dict()
    return _arrays(state), None


def _load_imagenet(weights: str, offline: bool) -> tuple[Tensors, str | None]:
    if weights:
        return _read_weights(Path(weights)), str(Path(weights).resolve())
    remedy = "give a file with alexnet-imagenet=FILE (state dict of torchvision's alexnet, or of its .features)"
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.IMAGENET1K_V1.url).name
    if offline and not cached.exists():
        raise EmbedderError(f"the ImageNet weights of alexnet are not on this machine, and downloads are off; {remedy}")
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)
        state = AlexNet_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise EmbedderError(f"the ImageNet weights of alexnet cannot be downloaded ({error}); {remedy}") from error
    finally:
        socket.setdefaulttimeout(timeout)
    return _trunk_tensors(state, str(AlexNet_Weights.IMAGENET1K_V1)), "torchvision AlexNet_Weights.IMAGENET1K_V1"


def _read_weights(path: Path) -> Tensors:
    """Reads a state dict from safetensors, or from a torch file without unpickling objects."""
    if not path.is_file():
        raise EmbedderError(f"weights file {path} does not exist; correct NAME=FILE")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling what is no pickle raises anything
        reason = str(error).partition("\n")[0]
        raise WeightsMismatchError(
            f"{path} is not a weights file ({type(error).__name__}: {reason}); give a state dict, saved by"
            " torch or as safetensors"
        ) from error
    if not isinstance(state, Mapping):
        raise WeightsMismatchError(f"{path} holds a {type(state).__name__}, not a state dict; save model.state_dict()")
    return _trunk_tensors(state, str(path))


def _trunk_tensors(state: Mapping[str, Any], source: str) -> Tensors:
    """The trunk's tensors of a state dict of the trunk or of the whole network."""
    expected = _empty_trunk().state_dict()
    names = {str(name): value for name, value in state.items()}
    found = {
        name.removeprefix("features."): value for name, value in names.items() if not name.startswith("classifier.")
    }
    wrong = sorted(
        name
        for name in expected.keys() | found.keys()
        if name not in expected or not isinstance(found.get(name), Tensor) or found[name].shape != expected[name].shape
    )
    if wrong:
        raise WeightsMismatchError(
            f"{source} does not hold an AlexNet trunk: {len(wrong)} tensors are missing, extra or of another shape"
            f" ({', '.join(wrong[:3])}); give a state dict of torchvision's alexnet, or of its .features"
        )
    return _arrays({name: found[name] for name in expected})


def _empty_trunk() -> torch.nn.Module:
    """`alexnet().features` without memory for its tensors: quick, and no draw from the process's generator."""
    with torch.device("meta"):
        return alexnet(weights=None).features


def _arrays(state: Mapping[str, Tensor]) -> Tensors:
    return {name: value.detach().to(torch.float32).numpy().copy() for name, value in state.items()}


@dataclass(frozen=True)
class _Kind:
    load: Callable[[str, bool], tuple[Tensors, str | None]]
    mean: Rgb
    std: Rgb


_KINDS = {
    RANDOM: _Kind(_load_random, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "alexnet-imagenet": _Kind(_load_imagenet, IMAGENET_MEAN, IMAGENET_STD),
}
