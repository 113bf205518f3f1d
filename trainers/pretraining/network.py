"""The whole AlexNet that is trained, and what it says of patches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models import alexnet

from her2cache.errors import WeightsMismatchError
from trainers.pretraining.batches import Batch

Tensors = Mapping[str, NDArray[Any]]
"""A trunk: state dict of `alexnet().features`."""

Prediction = tuple[NDArray[np.int64], NDArray[np.float64], float]
"""Labels (n,), class probabilities (n, classes), and the mean cross-entropy of a patch."""

MIN_PX = 63
"""AlexNet's trunk has no output below this side."""


def build(classes: int, init: Tensors | None, seed: int) -> nn.Module:
    """torchvision's AlexNet, freshly drawn from a seed but for the trunk, where one is given.

    Raises:
        WeightsMismatchError: the given tensors are no AlexNet trunk.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = alexnet(weights=None, num_classes=classes)
    if init is not None:
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in init.items()}
        try:
            network.features.load_state_dict(tensors)
        except RuntimeError as error:
            raise WeightsMismatchError(
                f"the training cannot start from these tensors ({error}): they are no trunk of an AlexNet; give a state"
                " dict of torchvision's alexnet, or of its .features"
            ) from error
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@torch.inference_mode()
def predict(
    network: nn.Module, batches: Iterable[Batch], prepare: Callable[[Tensor], Tensor], *, mixed: bool
) -> Prediction:
    """Runs a network over labelled patches, without dropout.

    Args:
        network: on the device of the batches.
        batches: of patches and labels, at least one.
        prepare: turns patches into the network's input.
        mixed: forward pass in float16 where that does no harm (autocast).

    Returns:
        See `Prediction`.
    """
    network.eval()
    logits, labels = list[Tensor](), list[Tensor]()
    for pixels, y in batches:
        with torch.autocast(pixels.device.type, torch.float16, enabled=mixed):
            logits.append(network(prepare(pixels)))  # (batch, classes)
        labels.append(y)
    z, y = torch.cat(logits).double(), torch.cat(labels)  # (n, classes), (n,)
    return y.cpu().numpy(), z.softmax(dim=1).cpu().numpy(), float(cross_entropy(z, y))
