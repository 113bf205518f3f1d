"""What became of each run: one small file a run, written once it has ended. Resuming reads nothing else."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from her2cache.errors import SweepError
from trainers.stack import Configuration


@dataclass(frozen=True)
class Epoch:
    """One epoch of a run.

    Attributes:
        train_loss: cross-entropy, mean over the epoch's training bags as they came.
        val_loss: cross-entropy, mean over the fixed validation bags.
        val_accuracy: share of the validation bags predicted right.
        seconds: wall time of the epoch, divided among the runs of the stack.
    """

    train_loss: float
    val_loss: float
    val_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """One configuration trained on one fold of one feature space.

    Attributes:
        run_id: its name, also of its checkpoint.
        space_key, embedder: the feature space.
        fold: validated on.
        outer: outer fold of the nested cross-validation that is kept for testing; None is the fixed test set.
        embedder_seed: of an untrained embedder, else 0.
        embedder_overlap: which cases' labels the embedder's weights have seen, see `trainers.overlap`.
        seed: of initial weights and bags.
        configuration: learning rate and weight decay.
        epochs: in order.
        best: epoch of least validation loss, the one kept as checkpoint; None when the run failed.
        reason: why it failed; empty when it did not.
        stopped: what ended it before its last epoch, "patience" or "asha"; empty when nothing did.
    """

    run_id: str
    space_key: str
    embedder: str
    fold: int
    seed: int
    configuration: Configuration
    epochs: tuple[Epoch, ...]
    best: int | None
    reason: str = ""
    stopped: str = ""
    outer: int | None = None
    embedder_seed: int = 0
    embedder_overlap: str = ""

    @property
    def val_loss(self) -> float:
        """Least validation loss; infinite for a failed run."""
        return float("inf") if self.best is None else self.epochs[self.best].val_loss


def name_run(embedder: str, space_key: str, fold: int, configuration: Configuration, outer: int | None = None) -> str:
    """For instance `alexnet-imagenet-1a2b3c4d-f0-lr1e-03-wd1e-05`; an outer fold is `-o2-f0-`."""
    rate, decay = (_short(x) for x in (configuration.learning_rate, configuration.weight_decay))
    place = f"f{fold}" if outer is None else f"o{outer}-f{fold}"
    return f"{safe_name(embedder)}-{space_key[:8]}-{place}-lr{rate}-wd{decay}"


def safe_name(embedder: str) -> str:
    """An embedder's name as part of a file's name."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in embedder)


def write_run(run: Run, folder: Path) -> None:
    """Writes a run's file; a reader sees the whole file or none, whatever kills the writer."""
    _write(run, folder, _path(folder, run.run_id))
    _failure(folder, run.run_id).unlink(missing_ok=True)


def _write(run: Run, folder: Path, path: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(asdict(run), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_failure(run: Run, folder: Path) -> None:
    """Writes the file of a run that failed for a reason that need not be its own, want of memory say: a resumed sweep
    tries it again, and `has_run` does not count it."""
    _write(run, folder, _failure(folder, run.run_id))


def has_run(run_id: str, folder: Path) -> bool:
    """Whether a run has ended, well or not, and is not to be tried again."""
    return _path(folder, run_id).exists()


def read_run(run_id: str, folder: Path) -> Run:
    """Reads a run's file.

    Raises:
        SweepError: it is missing or damaged.
    """
    path = _path(folder, run_id)
    try:
        d: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        epochs = tuple(Epoch(**e) for e in d.pop("epochs"))
        return Run(configuration=Configuration(**d.pop("configuration")), epochs=epochs, **d)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SweepError(
            f"{path} cannot be read ({error}): the disk or a copy damaged it; remove it and run with --resume"
        ) from error


def _path(folder: Path, run_id: str) -> Path:
    return folder / f"{run_id}.json"


def _failure(folder: Path, run_id: str) -> Path:
    return folder / f"{run_id}.failed.json"


def _short(value: float) -> str:
    text = f"{value:.0e}"
    return text if float(text) == value else repr(value)
