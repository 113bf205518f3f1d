"""Attention MIL (paper equations 1-2): the readable form of the model, and its checkpoint."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from her2cache.errors import TrainingError
from trainers.patch_scores import PatchScores
from trainers.tasks import Task

_BLOCK_ROWS = 4096  # patches scored at once: 16 MiB of float32 features at dim 1,024


class AttentionMIL(nn.Module):
    """`a_k = softmax_k(w1^T tanh(W2 v_k))`, `A = sum_k a_k v_k`, then one linear layer.

    Paper equations 1-2; every layer has a bias, as in the original code. `trainers.stack` trains many of
    these at once; this module is what it must equal.

    Args:
        dim: length of a feature vector.
        classes: outputs.
        attention_units: rows of W2, 256 in the paper.
        gated: multiplies the hidden units by `sigmoid(U v_k)`: gated attention of Ilse, Tomczak and Welling 2018.
    """

    def __init__(self, dim: int, classes: int, attention_units: int = 256, *, gated: bool = False) -> None:
        super().__init__()
        self.units, self.classes, self.gated = attention_units, classes, gated
        self.hidden = nn.Linear(dim, attention_units)
        self.gate = nn.Linear(dim, attention_units) if gated else None
        self.attention = nn.Linear(attention_units, 1)
        self.classifier = nn.Linear(dim, classes)

    @classmethod
    def seeded(cls, dim: int, classes: int, attention_units: int, seed: int, *, gated: bool = False) -> AttentionMIL:
        """A freshly initialised model; the global random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(dim, classes, attention_units, gated=gated)

    def attention_logits(self, v: Tensor) -> Tensor:
        """s_k of each instance; (..., dim) -> (...)."""
        hidden = torch.tanh(self.hidden(v))  # (..., units)
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(v))
        return self.attention(hidden).squeeze(-1)

    def forward(self, v: Tensor) -> Tensor:
        """Class logits of bags.

        Args:
            v: features, (bags, size, dim).

        Returns:
            (bags, classes).
        """
        a = torch.softmax(self.attention_logits(v), dim=1)  # (bags, size)
        pooled = torch.einsum("bk,bkd->bd", a, v)  # (bags, dim)
        return self.classifier(pooled)  # (bags, classes)


@dataclass(frozen=True)
class Origin:
    """Where a trained model comes from, and what it may be applied to.

    Attributes:
        run_id: of the run that trained it.
        space_key: feature space of its input.
        embedder: name of that space's embedder.
        experiment: digest of the experiment.
        fold: the fold it was validated on.
        epoch: the epoch kept, from 0.
        task: what its outputs mean.
    """

    run_id: str
    space_key: str
    embedder: str
    experiment: str
    fold: int
    epoch: int
    task: Task


class TrainedModel:
    """A model with its origin: applied, saved and loaded as one thing."""

    def __init__(self, module: AttentionMIL, origin: Origin) -> None:
        self.module = module.eval()
        self.origin = origin

    @torch.inference_mode()
    def patch_scores(self, features: NDArray[np.floating]) -> PatchScores:
        """Scores each patch once.

        Args:
            features: of one slide, any float type, (patches, dim).

        Returns:
            The scores of every patch, in the same order.
        """
        logits: list[Tensor] = []
        contributions: list[Tensor] = []
        weight = self.module.classifier.weight  # (classes, dim)
        for start in range(0, len(features), _BLOCK_ROWS):
            v = torch.from_numpy(features[start : start + _BLOCK_ROWS].astype(np.float32))  # (rows, dim)
            logits.append(self.module.attention_logits(v))
            contributions.append(v @ weight.T)
        return PatchScores(
            attention_logit=torch.cat(logits).numpy(),
            contribution=torch.cat(contributions).numpy(),
            bias=self.module.classifier.bias.detach().numpy(),
        )

    def save(self, path: Path) -> None:
        """Writes a safetensors checkpoint; a reader sees the whole file or none."""
        metadata = {"origin": json.dumps(asdict(self.origin), sort_keys=True)}
        tensors = {name: t.detach().contiguous() for name, t in self.module.state_dict().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        save_file(tensors, partial, metadata=metadata)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, *, space_key: str | None = None) -> TrainedModel:
        """Reads a checkpoint.

        Args:
            path: a file written by `save`.
            space_key: of the features that the model is to be applied to, when they are known.

        Raises:
            TrainingError: the file is no checkpoint of ours, or was trained in another feature space.
        """
        try:
            with safe_open(path, framework="pt") as file:
                fields: dict[str, Any] = json.loads((file.metadata() or {})["origin"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise TrainingError(
                f"{path} is no checkpoint of a sweep ({error}): it is missing, cut short or of another kind; "
                "give a file of a sweep's checkpoints/ folder"
            ) from error
        origin = Origin(task=_task(fields.pop("task")), **fields)
        if space_key is not None and space_key != origin.space_key:
            raise TrainingError(
                f"{path} was trained in feature space {origin.space_key} ({origin.embedder}), the features are of "
                f"{space_key}: patch size, scale, views or weights differ; embed the slide as the sweep's store was"
            )
        units, dim = tensors["hidden.weight"].shape
        module = AttentionMIL(dim, len(origin.task.classes), units, gated="gate.weight" in tensors)
        module.load_state_dict(tensors)
        return cls(module, origin)


def _task(fields: dict[str, Any]) -> Task:
    classes, scores = tuple(fields["classes"]), tuple(fields["class_of_score"])
    return Task(fields["name"], classes, scores, fields.get("class_of_amplified"))
