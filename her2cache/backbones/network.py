"""One embedder for all networks of torch: batches of one fixed shape, frozen, the same bytes every time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from her2cache.backbones.device import settle
from her2cache.backbones.placement import Placed
from her2cache.embedder import Batching, EmbedderSpec, Resize
from her2cache.errors import EmbedderError
from her2cache.units import PatchBatch
from her2cache.weights import WeightsCard

T = TypeVar("T")
Tensors = Mapping[str, NDArray[Any]]
"""A state dict without torch: floats are float32."""

INTERPOLATIONS = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}


class TorchEmbedder:
    """A frozen network that embeds patches in batches of one fixed shape.

    Attributes:
        spec: what it is.
        batching: how it is run.
    """

    def __init__(self, network: torch.nn.Module, spec: EmbedderSpec, batching: Batching) -> None:
        """Takes a network over, and freezes it.

        Args:
            network: float32 (n, 3, input_px, input_px), normalised, to (n, ...), dim numbers a patch.
            spec: what it is.
            batching: how to run it.
        """
        settle(batching)
        self.spec = spec
        self.batching = batching
        self._device = torch.device(batching.device)
        self._memory_format: torch.memory_format = getattr(torch, batching.memory_format)
        self._network = network.eval().requires_grad_(requires_grad=False)
        self._network.to(device=self._device).to(memory_format=self._memory_format)  # pyright: ignore[reportCallIssue]
        self._mean = torch.tensor(spec.mean, device=self._device).view(1, 3, 1, 1)
        self._std = torch.tensor(spec.std, device=self._device).view(1, 3, 1, 1)

    def embed(self, patches: PatchBatch, noise: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Features of patches, see `Embedder.embed`: uint8 (n, px, px, 3) in, float32 (n, dim) out."""
        noises = {} if noise is None else {self.spec.input_px: noise}
        return self.embed_placed(Placed(patches, noises, self.batching.device, self.batching.batch))

    @torch.inference_mode()
    def embed_placed(self, placed: Placed) -> NDArray[np.float32]:
        """Features of patches that are on the device: float32 (n, dim)."""
        n, size = placed.n, self.batching.batch
        on_gpu = self._device.type == "cuda"
        features = torch.empty((n, self.spec.dim), dtype=torch.float32, pin_memory=on_gpu)
        for start in range(0, n, size):
            noise = placed.noise(self.spec.input_px, start, size)
            found = self._forward(placed.pixels(start, size), noise)  # (batch, dim)
            rows = min(size, n - start)
            features[start : start + rows].copy_(found[:rows], non_blocking=on_gpu)
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return features.numpy()

    def prepare(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """What the network sees of patches: uint8 (n, px, px, 3) to float32 (n, 3, input_px, input_px)."""
        x = pixels.permute(0, 3, 1, 2)  # (batch, 3, px, px), channels last in memory
        if self.spec.resize is not None:
            x = resized(x, self.spec.resize)  # (batch, 3, input_px, input_px)
        x = x.to(torch.float32, memory_format=self._memory_format)
        x = x.div_(255).sub_(self._mean).div_(self._std)
        return x if noise is None else x.add_(noise)

    def _forward(self, pixels: Tensor, noise: Tensor | None) -> Tensor:
        x = self.prepare(pixels, noise)
        with torch.autocast(self._device.type, torch.float16, enabled=self.batching.precision == "float16"):
            out: Tensor = self._network(x)  # (batch, ...)
        return out.float().flatten(1)  # (batch, dim)


def resized(patches: Tensor, resize: Resize) -> Tensor:
    """Scales patches and cuts their centres: uint8 (n, 3, px, px) to uint8 (n, 3, crop, crop)."""
    interpolation = INTERPOLATIONS[resize.interpolation]
    side = [resize.side, resize.side]
    scaled = functional.resize(patches, side, interpolation=interpolation, antialias=resize.antialias)
    return functional.center_crop(scaled, [resize.crop, resize.crop])


def fitting(patch_px: int, resize: Resize) -> Resize | None:
    """How patches come to a network: as its own transform does it, or as they are where they have the side it sees."""
    return None if patch_px == resize.crop else resize


@dataclass(frozen=True)
class NetworkRecipe:
    """A frozen network as data.

    Attributes:
        spec: what it is.
        tensors: its state dict.
        source, card: see `embedder.Recipe`.
        network: makes the network, whatever its weights; a function that can be imported, or a partial of one.
    """

    spec: EmbedderSpec
    tensors: Tensors
    source: str | None
    network: Callable[[], torch.nn.Module]
    card: WeightsCard | None = None

    def build(self, batching: Batching) -> TorchEmbedder:
        """See `embedder.Recipe.build`."""
        network = quietly(self.network)
        load_tensors(network, self.tensors)
        return TorchEmbedder(network, self.spec, batching)


def load_tensors(network: torch.nn.Module, tensors: Tensors) -> None:
    """Gives a network tensors of its own that hold these numbers; all of its tensors must be among them."""
    copies = OrderedDict((name, torch.from_numpy(np.array(value))) for name, value in tensors.items())
    copies._metadata = network.state_dict()._metadata  # pyright: ignore - they are as this network names them
    try:
        network.load_state_dict(copies, assign=True)
    except RuntimeError as error:
        raise EmbedderError(
            f"the weights do not fit the network that this machine makes ({str(error).splitlines()[-1].strip()}):"
            " it has another version of torchvision or timm; install the same everywhere"
        ) from error


def quietly(make: Callable[[], T]) -> T:
    """Makes a network; the generator of the process is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return make()


def arrays(state: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """A state dict as arrays of its own: floats as float32, integers as they are."""
    return {
        name: value.detach().to(torch.float32 if value.is_floating_point() else value.dtype).cpu().numpy().copy()
        for name, value in state.items()
    }
