"""Training an AlexNet on 96 px patches: patches a second of the whole loop, over bare forward and backward passes.

The loop is `trainers.pretraining.loop.Training.epoch` without validation: reading HDF5, shuffling, the paper's
augmentation, normalisation, forward and backward pass, AdamW. The floor is the same network's forward and backward pass
on the same number of batches, which lie ready as normalised tensors. What the loop adds is timed in the same rounds.
On a GPU, where there is one, the loop is mixed in precision and so is its floor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.harness import Row, interleaved, main, over_floor
from her2cache.embedder import Augmentation
from trainers.pretraining.augmentation import GROUP, Augmenting
from trainers.pretraining.batches import batches
from trainers.pretraining.loop import PretrainSettings, Training
from trainers.pretraining.patches import SourceData
from trainers.pretraining.pcam import PARTS, file_name, open_pcam

THREADS = 2
BATCHES = {"cpu": 3, "cuda": 64}


def source(folder: Path, n: int) -> SourceData:
    """Noise in PatchCamelyon's files: `n` patches to train on."""
    rng = np.random.default_rng(0)
    for part in PARTS:
        size = n if part == "train" else 2
        with h5py.File(folder / file_name(part, "x"), "w") as file:
            file["x"] = rng.integers(0, 256, (size, 96, 96, 3), np.uint8)
        with h5py.File(folder / file_name(part, "y"), "w") as file:
            file["y"] = (np.arange(size) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)
    return open_pcam(folder)


def measure_on(name: str) -> list[Row]:
    device, settings = torch.device(name), PretrainSettings()
    n = settings.batch * BATCHES[name]
    with tempfile.TemporaryDirectory() as folder:
        data = source(Path(folder), n)
        training = Training(data, settings, init=None, device=name)
        network, optimiser = training.network, training.optimiser
        augmenting = Augmenting(Augmentation(), training.colours, GROUP[name])
        network.train()
        ready = [(augmenting(x), y) for x, y in batches(data.train.ordered(), settings.batch, device)]
        scaler = torch.amp.GradScaler(name, enabled=training.mixed)

        def passes() -> None:
            for x, y in ready:
                network.zero_grad()
                with torch.autocast(name, torch.float16, enabled=training.mixed):
                    loss = cross_entropy(network(x), y)
                scaler.scale(loss).backward()

        def read() -> list[torch.Tensor]:
            return [x for x, _ in batches(data.train.shuffled(0, 1), settings.batch, device)]

        pixels = read()
        candidates = {
            "loop": lambda: training.train(1),
            "passes": passes,
            "augmentation": lambda: [augmenting(x) for x in pixels],
            "optimiser": lambda: [optimiser.step() for _ in ready],
            "reading": read,
        }
        passes()  # gradients for the optimiser
        times = interleaved({what: waited(device, run) for what, run in candidates.items()}, rounds=7)
    loop, floor = n / times["loop"], n / times["passes"]
    what = f"{name}: {BATCHES[name]} batches of {settings.batch} patches of 96 px"
    return [
        Row(f"{what}: the training loop over bare passes", loop, "patches/s", floor, loop / floor, "higher", 0.85),
        *(
            over_floor(f"{what}: {part} over bare passes", times[part], times["passes"])
            for part in ("augmentation", "optimiser", "reading")
        ),
    ]


def waited(device: torch.device, run: Callable[[], object]) -> Callable[[], None]:
    """The same, until the device has done it."""

    def runs() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return runs


def measure() -> list[Row]:
    torch.set_num_threads(THREADS)
    return [row for name in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])) for row in measure_on(name)]


if __name__ == "__main__":
    main("bench_pretrain: training an AlexNet", measure)
