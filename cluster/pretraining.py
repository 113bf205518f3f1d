"""Pre-training on a cluster: slides are cut on every core, one network is trained on the device that there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError

from her2cache.backbones.device import best_device
from her2cache.cohort import Slide
from her2cache.errors import ConfigError, EmbedderError, Her2CacheError, TrainingError
from her2cache.ingest import ReadOptions
from her2cache.weights import WeightsCard, read_card
from trainers.pretraining.cutting import CutSlide, cut_slide
from trainers.pretraining.loop import SAVE_EVERY, PretrainEpoch, PretrainSettings, is_of, pretrain
from trainers.pretraining.network import Tensors
from trainers.pretraining.patches import SourceData

_ATTEMPTS = 3
"""How often a training is taken up again when its process dies without having finished an epoch."""

_LOST = (RayActorError, WorkerCrashedError, ObjectLostError, OutOfMemoryError)


@dataclass(frozen=True)
class CutReport:
    """What cutting left.

    Attributes:
        cut: patches of the slides that could be cut.
        failed: slide_id -> why it could not.
    """

    cut: list[CutSlide] = field(default_factory=list[CutSlide])
    failed: dict[str, str] = field(default_factory=dict[str, str])


def cut_slides(
    slides: Sequence[Slide],
    options: ReadOptions,
    most: int,
    folder: Path,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> CutReport:
    """Cuts patches of slides into a folder that every node sees, as many slides at once as there are cores.

    Args:
        slides: with scores.
        options: how patches are cut.
        most: patches a slide, at most.
        folder: of the cache.
        watch: called with (slides done, slides in all).

    Returns:
        What became of each; a bad slide ends nothing.
    """
    report = CutReport()
    cut: Any = ray.remote(num_cpus=1, max_retries=_ATTEMPTS - 1)(cut_slide)
    waiting = iter(slides)
    at_once = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running: dict[Any, Slide] = {}
    for done in range(len(slides)):
        while len(running) < at_once and (slide := next(waiting, None)) is not None:
            running[cut.remote(slide, options, most, folder)] = slide
        (ended,), _ = ray.wait(list(running), num_returns=1)
        slide = running.pop(ended)
        try:
            report.cut.append(ray.get(ended))
        except RayTaskError as error:
            if not isinstance(error.cause, Her2CacheError):
                raise
            report.failed[slide.slide_id] = str(error.cause)
        except _LOST as error:
            report.failed[slide.slide_id] = (
                f"{slide.path}: the process cutting it died {_ATTEMPTS} times ({type(error).__name__}: out of memory,"
                " or a codec crashed on a damaged file); look at the file, or try again with more memory"
            )
        watch(done + 1, len(slides))
    return report


class Trainer:
    """Trains one network; an actor of it has the whole device."""

    def train(
        self,
        load: Callable[[], SourceData],
        settings: PretrainSettings,
        out: Path,
        init: Tensors | None,
        threads: int,
        save_every: float,
    ) -> Iterator[PretrainEpoch]:
        """See `trainers.pretraining.loop.pretrain`; the data are opened here."""
        data, device = load(), best_device()
        yield from pretrain(data, settings, out, init=init, device=device, threads=threads, save_every=save_every)


def train_network(
    load: Callable[[], SourceData],
    settings: PretrainSettings,
    out: Path,
    *,
    init: Tensors | None = None,
    save_every: float = SAVE_EVERY,
    watch: Callable[[PretrainEpoch], None] = lambda epoch: None,
) -> tuple[WeightsCard, bool]:
    """Trains a network in an actor, or finds that `out` holds it already. Ray must be running.

    A training whose process dies is taken up again from its checkpoint.

    Args:
        load: opens the data, here and in the actor.
        settings: how it is trained.
        out: the weights file, on a disk that the actor's node sees.
        init: a trunk to start from.
        save_every: seconds between two epoch checkpoints.
        watch: called after each epoch.

    Returns:
        What the weights file says of itself, and whether it was there already.

    Raises:
        ConfigError: `out` is no name for weights, or holds others.
        Her2CacheError: the data cannot be used, or the training failed.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out} must end in .safetensors, as the weights are written in that format")
    if out.exists():
        return _there(out, load(), settings, init), True
    trainer, threads = _actor()
    left = _ATTEMPTS
    while True:
        actor = trainer.remote()
        try:
            for epoch in actor.train.remote(load, settings, out, init, threads, save_every):
                watch(ray.get(epoch))
                left = _ATTEMPTS
            card = read_card(out)
            break
        except RayTaskError as error:
            if isinstance(error.cause, Her2CacheError):
                raise error.cause from None
            raise
        except _LOST as error:
            left -= 1
            if not left:
                raise TrainingError(
                    f"the process that trains {out.name} died {_ATTEMPTS} times in one epoch"
                    f" ({type(error).__name__}), most likely for want of memory: lower --batch, and run the same"
                    " command again"
                ) from error
        finally:
            ray.kill(actor)
    if card is None:
        raise EmbedderError(
            f"{out} was written, and says nothing of itself: another program replaced it; train it anew"
        )
    return card, False


def _there(out: Path, data: SourceData, settings: PretrainSettings, init: Tensors | None) -> WeightsCard:
    card = read_card(out)
    if card is None or not is_of(card, data, settings, init):
        raise ConfigError(
            f"{out} is there already, and was not trained on these data with these settings: name another --out, or"
            " remove it"
        )
    return card


def _actor() -> tuple[Any, int]:
    """The kind of actor that trains, and its threads: a GPU where there is one, else every core of a node."""
    make: Any = ray.method(num_returns="streaming")
    kind = type("Trainer", (Trainer,), {"train": make(Trainer.train)})
    if ray.cluster_resources().get("GPU", 0) >= 1:
        return ray.remote(num_gpus=1, num_cpus=1)(kind), 1
    cores = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    return ray.remote(num_cpus=max(1, cores))(kind), max(1, cores)
