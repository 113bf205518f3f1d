"""An embedder of every kind, from weights of chance in local files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torchvision.models import alexnet, resnet18

from her2cache.weights import WeightsCard, write_weights

THIRD_PARTY = Path(__file__).parent / "third_party"


def card(task: str, **changes: object) -> WeightsCard:
    """What a weights file of the PCam or IHC task says."""
    values = {
        "architecture": "alexnet",
        "source_task": task,
        "classes": ("a", "b"),
        "source_mpp": 0.97 if task == "pcam" else 0.5,
        "input_px": 96,
        "mean": (0.7, 0.5, 0.6),
        "std": (0.2, 0.25, 0.15),
        "data_digest": "ab" * 32,
    }
    return WeightsCard(**(values | changes))  # pyright: ignore[reportArgumentType]


def trained(path: Path, task: str, seed: int = 0, **changes: object) -> Path:
    """A file as `her2cache pretrain` writes it, its trunk drawn and its classifier small."""
    with torch.device("meta"):
        shapes = {f"features.{name}": value.shape for name, value in alexnet().features.state_dict().items()}
    draw = np.random.default_rng(seed)
    tensors = {name: draw.normal(0, 0.03, shape).astype(np.float32) for name, shape in shapes.items()}
    write_weights(path, tensors | {"classifier.6.bias": np.zeros(2, np.float32)}, card(task, **changes))
    return path


def requests(folder: Path) -> list[str]:
    """What to ask for, one of each kind; their files are written to a folder."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.save(alexnet(weights=None).features.state_dict(), folder / "imagenet.pth")
        torch.save(resnet18(weights=None).state_dict(), folder / "resnet18.pth")
        torch.save(timm.create_model("resnet10t.c3_in1k", pretrained=False).state_dict(), folder / "resnet10t.pth")
    return [
        "alexnet-random",
        f"alexnet-imagenet={folder / 'imagenet.pth'}",
        f"alexnet-pcam={trained(folder / 'pcam.safetensors', 'pcam')}",
        f"alexnet-ihc={trained(folder / 'ihc.safetensors', 'ihc', 1)}",
        f"torchvision:resnet18={folder / 'resnet18.pth'}",
        f"timm:resnet10t.c3_in1k={folder / 'resnet10t.pth'}",
        "colour-moments",
    ]


KINDS = ("alexnet-random", "alexnet-imagenet", "alexnet-pcam", "alexnet-ihc", "torchvision", "timm", "third party")


def noisy(n: int, px: int = 96, seed: int = 0) -> np.ndarray:
    """Patches of blocks of colour: uint8 (n, px, px, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, px // 8, px // 8, 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)
