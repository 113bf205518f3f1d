"""A training batch of 64 bags x 100 patches x 1,024 features, from stored vectors.

Held against it, on two threads:

- the two matrix products that no implementation can do without, the best of their two layouts;
- torchmil's ABMIL with as many units, trained on the same bags from the same memory maps (extra `bench`; without it
  the row is left out). torchmil has no bags of some patches, so its best form is what a careful user would write: a
  bag's rows go straight from the map into its place of one dense float32 batch that is made once, without padding
  and without a mask, and `torch.optim.Adam` is the fused one. Its own way, a dataset item a bag and its
  `collate_fn`, which pads and masks, stands beside it without a bar;
- the same batch as the original code did it, with augmentation and the embedder in the loop.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import alexnet
from torchvision.transforms import v2

from benchmarks.harness import Row, interleaved, main, over_floor, times_faster
from her2cache.bags import Bags, BagSampler
from trainers.features import FeatureRows
from trainers.feeds import PART_BAGS
from trainers.model import AttentionMIL
from trainers.stack import Configuration, Stack

BAGS, SIZE, DIM, UNITS, CLASSES = 64, 100, 1024, 256, 4
SLIDES, PATCHES, VIEWS, PATCH_PX = 8, 2500, 8, 96
THREADS = 2


def stored_features(folder: Path) -> dict[str, list[np.memmap]]:
    """Memory-mapped float16 views like a trained AlexNet's features: no negatives, many zeros."""
    rng = np.random.default_rng(0)
    maps: dict[str, list[np.memmap]] = {}
    for i in range(SLIDES):
        maps[f"slide_{i}"] = []
        for view in range(VIEWS):
            path, shape = folder / f"{i}_{view}.f16", (PATCHES, DIM)
            np.maximum(rng.standard_normal(shape, np.float32) - 0.67, 0).astype(np.float16).tofile(path)
            maps[f"slide_{i}"].append(np.memmap(path, np.float16, "r", shape=shape))
    return maps


def stored_step(features: dict[str, list[np.memmap]], runs: int = 1) -> Callable[[], None]:
    """One batch of `runs` stacked models, new bags each time: gather, forward, backward, Adam."""
    sampler = BagSampler(dict.fromkeys(features, PATCHES), SIZE, seed=0, views=VIEWS)
    rows = FeatureRows(features, sampler.slides, PART_BAGS * SIZE)
    stack = Stack(
        AttentionMIL.seeded(DIM, CLASSES, UNITS, seed=0),
        [Configuration(1e-4 / (r + 1), 1e-5) for r in range(runs)],
    )
    labels = torch.arange(SLIDES) % CLASSES
    epoch = sampler.training(100 * BAGS, epoch=0)
    batch = 0

    def parts(bags: Bags) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, BAGS, PART_BAGS):
            part = bags[start : start + PART_BAGS]
            yield rows.bags(part), labels[part.slide]

    def step() -> None:
        nonlocal batch
        start = batch % 100 * BAGS
        stack.train_batch(parts(epoch[start : start + BAGS]), BAGS)
        batch += 1

    return step


def products(layout: str) -> Callable[[], None]:
    """The forward product and the weight gradient of one batch, features already float32 in memory."""
    x = torch.relu(torch.randn(BAGS * SIZE, DIM))
    w = torch.randn(UNITS + CLASSES, DIM)
    gradient = torch.empty_like(w)
    rows_last = torch.empty(len(w), len(x))
    rows_first = torch.empty(len(x), len(w))

    def rows_last_products() -> None:
        torch.mm(w, x.T, out=rows_last)
        torch.mm(rows_last, x, out=gradient)

    def rows_first_products() -> None:
        torch.mm(x, w.T, out=rows_first)
        torch.mm(rows_first.T, x, out=gradient)

    return rows_last_products if layout == "rows last" else rows_first_products


def torchmil_step(features: dict[str, list[np.memmap]], *, collated: bool) -> Callable[[], None]:
    """One batch of torchmil's ABMIL, the bags that `stored_step` trains on; see the module."""
    from torchmil.data import collate_fn
    from torchmil.models import ABMIL

    torch.manual_seed(0)
    model = ABMIL((DIM,), att_dim=UNITS)
    model.classifier = torch.nn.Linear(DIM, CLASSES)  # its own has one output
    adam = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-5, fused=True)
    sampler = BagSampler(dict.fromkeys(features, PATCHES), SIZE, seed=0, views=VIEWS)
    maps = [[np.asarray(view) for view in features[slide]] for slide in sampler.slides]
    labels = torch.arange(SLIDES) % CLASSES
    epoch = sampler.training(100 * BAGS, epoch=0)
    dense = torch.empty(BAGS, SIZE, DIM)
    batch = 0

    def gather(bags: Bags, bag: int, into: np.ndarray) -> None:
        ends = bags.views[bag].searchsorted(np.arange(VIEWS + 1))
        for view in range(VIEWS):
            rows = bags.rows[bag, ends[view] : ends[view + 1]]
            into[ends[view] : ends[view + 1]] = maps[bags.slide[bag]][view].take(rows, axis=0)

    def items(bags: Bags) -> Iterator[dict[str, Tensor]]:
        for bag in range(BAGS):
            x = torch.empty(SIZE, DIM)
            gather(bags, bag, x.numpy())
            yield {"X": x, "Y": labels[bags.slide[bag]]}

    def step() -> None:
        nonlocal batch
        start = batch % 100 * BAGS
        bags = epoch[start : start + BAGS]
        if collated:
            made = collate_fn(list(items(bags)))
            x, y, mask = made["X"], made["Y"], made["mask"]
        else:
            for bag in range(BAGS):
                gather(bags, bag, dense[bag].numpy())
            x, y, mask = dense, labels[bags.slide], None
        adam.zero_grad()
        torch.nn.functional.cross_entropy(model(x, mask), y).backward()
        adam.step()
        batch += 1

    return step


def torchmil_rows(features: dict[str, list[np.memmap]]) -> list[Row]:
    """Ours and torchmil's, turn by turn; no row where it is not installed."""
    try:
        rivals = {collated: torchmil_step(features, collated=collated) for collated in (False, True)}
    except ModuleNotFoundError as error:
        print(f"torchmil is left out ({error}): pip install 'her2cache[bench]'", file=sys.stderr)
        return []
    candidates = {"ours": stored_step(features), "dense": rivals[False], "collated": rivals[True]}
    times = interleaved(candidates, rounds=41, warm_up=3)
    return [
        times_faster(
            "batch over torchmil's ABMIL, the same bags in one dense batch", times["ours"], times["dense"], bar=1.6
        ),
        times_faster("batch over torchmil's ABMIL, its own collate_fn", times["ours"], times["collated"]),
    ]


def loop_step() -> Callable[[], None]:
    """One batch with the embedder in the loop: augment every patch, embed it, train on the result."""
    augment = v2.Compose(
        [
            v2.ColorJitter(0.1, 0.1, 0.1, 0.1),
            v2.RandomAffine(10, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=10, fill=245),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            v2.RandomApply([v2.GaussianNoise(sigma=0.1, clip=False)], 0.5),
        ]
    )
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (BAGS * SIZE, PATCH_PX, PATCH_PX, 3), np.uint8)
    embedder = alexnet(weights=None).features.eval().requires_grad_(False)
    model = AttentionMIL.seeded(DIM, CLASSES, UNITS, seed=0)
    adam = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-5)
    labels = torch.arange(BAGS) % CLASSES

    def step() -> None:
        bags: list[Tensor] = []
        for start in range(0, len(patches), SIZE):
            bag = torch.stack([augment(Image.fromarray(p)) for p in patches[start : start + SIZE]])
            with torch.no_grad():
                bags.append(embedder(bag).flatten(1))  # (size, dim)
        adam.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.stack(bags)), labels).backward()
        adam.step()

    return step


def measure() -> list[Row]:
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        features = stored_features(Path(folder))
        times = interleaved(
            {
                "batch": stored_step(features),
                "rows last": products("rows last"),
                "rows first": products("rows first"),
            },
            rounds=41,
            warm_up=3,
        )
        floor = min(times["rows last"], times["rows first"])
        rows = [over_floor("batch 64 x 100 x 1024 over its two matrix products", times["batch"], floor, bar=1.35)]
        rows += torchmil_rows(features)
        step = stored_step(features)
        # a batch in the loop takes half a minute, so it is timed once, between two runs of ours
        loop = interleaved({"before": times_20(step), "loop": loop_step(), "after": times_20(step)}, 1, warm_up=0)
    ours = (loop["before"] + loop["after"]) / 40
    rows.append(times_faster("batch over the embedder in the loop (1 round)", ours, loop["loop"], bar=250))
    return rows


def times_20(step: Callable[[], None]) -> Callable[[], None]:
    """Runs a step 20 times."""

    def run() -> None:
        for _ in range(20):
            step()

    return run


if __name__ == "__main__":
    main("bench_train: one training batch from stored vectors", measure)
