"""Training an AlexNet on a source task, epoch by epoch, until patience or epochs end."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from her2cache.embedder import Augmentation, canonical_json, tensors_sha256
from her2cache.errors import ConfigError, TrainingError
from her2cache.weights import WeightsCard, write_weights
from trainers.metrics import evaluate
from trainers.pretraining import checkpoint
from trainers.pretraining.augmentation import GROUP, Augmenting, Plain
from trainers.pretraining.batches import batches
from trainers.pretraining.network import MIN_PX, Prediction, Tensors, build, predict
from trainers.pretraining.patches import PatchSet, SourceData
from trainers.pretraining.statistics import ColourStatistics, colour_statistics

SAVE_EVERY = 30.0
"""Seconds between two epoch checkpoints: what a kill can cost, against writing up to 1 GB."""

_LOOK_EVERY = 64  # steps between two looks at the loss, for which a GPU has to be waited for


@dataclass(frozen=True)
class PretrainSettings:
    """How an AlexNet is trained: AdamW at a constant rate, cross-entropy, the epoch of least validation loss.

    Attributes:
        epochs: at most.
        patience: epochs without a lower validation loss that end it; 0: never.
        batch: patches a step.
        learning_rate, weight_decay: of AdamW.
        seed: of everything.
        precision: "auto" is mixed (float16) on a GPU and float32 elsewhere.
        augment: whether training patches are augmented as in the paper.
    """

    epochs: int = 40
    patience: int = 8
    batch: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    seed: int = 0
    precision: Literal["auto", "float32"] = "auto"
    augment: bool = True


@dataclass(frozen=True)
class PretrainEpoch:
    """One epoch.

    Attributes:
        epoch: its number, from 1.
        train_loss, val_loss: mean cross-entropy of a patch; that of training has dropout and augmentation.
        best: whether its validation loss is the least so far.
        patches_per_second: of training, validation left out.
    """

    epoch: int
    train_loss: float
    val_loss: float
    best: bool
    patches_per_second: float


def pretrain(
    data: SourceData,
    settings: PretrainSettings,
    out: Path,
    *,
    init: Tensors | None = None,
    device: str = "cpu",
    threads: int = 1,
    save_every: float = SAVE_EVERY,
) -> Iterator[PretrainEpoch]:
    """Trains an AlexNet and writes its weights.

    It goes on from the epoch checkpoint beside `out`, when there is one; epochs that this holds are not yielded again.
    On a processor the same data, settings and threads give the same bits, whether or not it was killed on the way. On a
    GPU they give the same batches, augmentation and dropout; torch has no deterministic backward pass of AlexNet's
    pooling there, so sums differ in their last bits.

    Args:
        data: the source task.
        settings: see `PretrainSettings`.
        out: ends in .safetensors. Written once, when the iterator is exhausted: the best epoch's weights, with the
            metrics of the test patches in their card.
        init: a trunk to start from, as `alexnet().features`' state dict; None starts from torchvision's random one.
        device: "cpu" or "cuda".
        threads: torch threads of this process.
        save_every: seconds between two epoch checkpoints.

    Yields:
        Each epoch, once it is trained.

    Raises:
        ConfigError: settings make no sense, or the checkpoint is of another training.
        WeightsMismatchError: `init` is no AlexNet trunk.
        TrainingError: the loss is no longer finite, or a checkpoint cannot be written.
        EmbedderError: `out` cannot be written.
    """
    _check(data, settings)
    torch.set_num_threads(threads)
    path, digest = checkpoint.checkpoint_of(out), training_digest(data, settings, init)
    found = checkpoint.load(path, digest)
    training = Training(data, settings, init=init, device=device)
    if found is not None:
        training.restore(found)
        del found  # a GiB
    saved = time.monotonic()
    while not training.done:
        epoch = training.epoch()
        if time.monotonic() - saved >= save_every:
            checkpoint.save(path, digest, training.state())
            saved = time.monotonic()
        yield epoch
    card = training.finish()
    write_weights(out, {name: t.numpy() for name, t in training.best.items()}, card)
    path.unlink(missing_ok=True)


def is_of(card: WeightsCard, data: SourceData, settings: PretrainSettings, init: Tensors | None) -> bool:
    """Whether weights are what `pretrain` makes of these data, settings and trunk to start from."""
    asked = {**asdict(settings), "init": _named(init)}
    return card.data_digest == data.digest and {key: card.settings.get(key) for key in asked} == asked


class Training:
    """An AlexNet in training.

    Attributes:
        epochs: so far.
        best: state dict of the epoch of least validation loss, on the processor; empty before the first.
        network, optimiser: what is trained, and by what, on the device.
        mixed: whether passes are in float16 where that does no harm.
    """

    def __init__(self, data: SourceData, settings: PretrainSettings, *, init: Tensors | None, device: str) -> None:
        self._data, self._settings = data, settings
        self._device = torch.device(device)
        self.mixed = settings.precision == "auto" and self._device.type == "cuda"
        self._init = _named(init)
        self.epochs = list[PretrainEpoch]()
        self.best = dict[str, Tensor]()
        self.network = build(len(data.classes), init, settings.seed).to(self._device)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self.mixed)

    @property
    def done(self) -> bool:
        since_best = len(self.epochs) - self._best_epoch
        return len(self.epochs) >= self._settings.epochs or 0 < self._settings.patience <= since_best

    @cached_property
    def colours(self) -> ColourStatistics:
        """Of the training patches; measured once, in a stream of its own."""
        try:
            return colour_statistics(self._data.train.ordered())
        except ValueError as error:
            raise TrainingError(f"the training patches show nothing ({error}): are these the right patches?") from error

    def epoch(self) -> PretrainEpoch:
        """Trains and validates once.

        Raises:
            TrainingError: a loss is not finite.
        """
        number = len(self.epochs) + 1
        train_loss, seconds = self.train(number)
        _, _, val_loss = self._predict(self._data.valid)
        self._demand_finite(val_loss, number)
        best = val_loss < min((e.val_loss for e in self.epochs), default=math.inf)
        if best:
            self.best = self._weights()
        self.epochs.append(PretrainEpoch(number, train_loss, val_loss, best, self._data.train.size / seconds))
        return self.epochs[-1]

    def train(self, number: int) -> tuple[float, float]:
        """One pass over the training patches, as the epoch of that number: their mean loss, and the seconds it took.

        Raises:
            TrainingError: the loss is not finite.
        """
        s, patches = self._settings, self._data.train
        colours, group = self.colours, GROUP[self._device.type]
        prepare = Augmenting(Augmentation(), colours, group) if s.augment else Plain(colours)
        self.network.train()
        total, n = torch.zeros((), dtype=torch.float64, device=self._device), 0
        start = time.perf_counter()
        with (
            seeded(self._device, s.seed, number),
            closing(batches(patches.shuffled(s.seed, number), s.batch, self._device)) as fed,
        ):
            for step, (pixels, labels) in enumerate(fed, start=1):
                total += self._step(prepare(pixels), labels) * len(labels)
                n += len(labels)
                if step % _LOOK_EVERY == 0:
                    self._demand_finite(float(total), number)
        self._demand_finite(float(total), number)
        return float(total) / n, time.perf_counter() - start

    def finish(self) -> WeightsCard:
        """Tests the best epoch; what there is to say of its weights."""
        self.network.load_state_dict(self.best)
        labels, probabilities, _ = self._predict(self._data.test)
        scores = evaluate(labels, probabilities, len(self._data.classes))
        found = {"accuracy": scores["accuracy"], "balanced_accuracy": scores["balanced_accuracy"]}
        found |= {"auc_roc": scores["auc"], "n": len(labels)}
        return WeightsCard(
            architecture="alexnet",
            source_task=self._data.source_task,
            classes=self._data.classes,
            source_mpp=self._data.source_mpp,
            input_px=self._data.px,
            mean=self.colours.mean,
            std=self.colours.std,
            data_digest=self._data.digest,
            metrics={name: value for name, value in found.items() if value is not None},
            case_ids=self._data.case_ids,
            settings={**asdict(self._settings), "init": self._init, "best_epoch": self._best_epoch},
            version=version("her2cache"),
        )

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on, as tensors, numbers and text."""
        is_last = self._best_epoch == len(self.epochs)
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "best": None if is_last else self.best,  # else the network itself
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "colours": asdict(self.colours),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])
        self.epochs = [PretrainEpoch(**epoch) for epoch in state["epochs"]]
        self.best = self._weights() if state["best"] is None else state["best"]
        self.colours = ColourStatistics(**state["colours"])

    @property
    def _best_epoch(self) -> int:
        """0 before the first."""
        return max((e.epoch for e in self.epochs if e.best), default=0)

    def _step(self, x: Tensor, labels: Tensor) -> Tensor:
        """One step of the optimiser: (batch, 3, px, px) and (batch,) -> the mean loss."""
        self.optimiser.zero_grad()
        with torch.autocast(self._device.type, torch.float16, enabled=self.mixed):
            loss = cross_entropy(self.network(x), labels)
        self._scaler.scale(loss).backward()
        self._scaler.step(self.optimiser)
        self._scaler.update()
        return loss.detach()

    def _predict(self, patches: PatchSet) -> Prediction:
        with closing(batches(patches.ordered(), self._settings.batch, self._device)) as fed:
            return predict(self.network, fed, Plain(self.colours), mixed=self.mixed)

    def _weights(self) -> dict[str, Tensor]:
        """A copy of the network's state dict, on the processor, in torch's usual order of memory."""
        state = self.network.state_dict()
        return {
            name: t.detach().to("cpu", memory_format=torch.contiguous_format, copy=True) for name, t in state.items()
        }

    def _demand_finite(self, loss: float, number: int) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss was no longer finite in epoch {number}: a learning rate of"
                f" {self._settings.learning_rate:g} is too high for these patches; lower it"
            )


def training_digest(data: SourceData, settings: PretrainSettings, init: Tensors | None) -> str:
    """What a checkpoint must agree in: the patches, the settings and the start. Hex."""
    document = {
        "task": [data.source_task, data.classes, data.source_mpp, data.px],
        "data": [data.digest, data.train.size, data.valid.size, data.test.size],
        "settings": asdict(settings),
        "init": _named(init),
    }
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()


def _named(init: Tensors | None) -> str:
    return "random" if init is None else tensors_sha256(init)


@contextmanager
def seeded(device: torch.device, *key: int) -> Generator[None]:
    """Seeds torch's generators of the processor and a device; afterwards they are as they were."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


def _check(data: SourceData, s: PretrainSettings) -> None:
    """Settings and data that cannot be trained with."""
    least: tuple[tuple[str, float, float], ...] = (
        ("epochs", s.epochs, 1),
        ("patience", s.patience, 0),
        ("batch", s.batch, 1),
        ("seed", s.seed, 0),
        ("weight_decay", s.weight_decay, 0),
    )
    for name, value, limit in least:
        if value < limit:
            raise ConfigError(f"{name} is {value}; it must be {limit} or more")
    if not 0 < s.learning_rate < math.inf:
        raise ConfigError(f"learning_rate is {s.learning_rate}; it must be above 0")
    if data.px < MIN_PX:
        raise ConfigError(f"the patches are {data.px} px wide; an AlexNet takes at least {MIN_PX} px")
    for name, part in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        if not part.size:
            raise ConfigError(f"there is no patch to {name} with: the data are too few to be split; give more")
