"""A cohort whose features carry a planted signal: a tenth of a slide's patches point at its class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from her2cache.cohort import Slide, write_cohort
from her2cache.embedder import EmbedderSpec, FeatureSpace
from her2cache.store.reader import FeatureStore
from her2cache.store.writer import SlideShape
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from her2cache.weights import WeightsCard

DIM, PATCHES, VIEWS = 16, 60, 2


def planted_features(score: int, seed: int, *, signal: float = 4.0, views: int = VIEWS) -> NDArray[np.float16]:
    """(views, patches, dim); every tenth patch has `signal` added to the component of its slide's score."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((views, PATCHES, DIM))
    features[:, ::10, score] += signal
    return features.astype(np.float16)


def planted_slides(folder: Path, n: int = 16) -> list[Slide]:
    """`n` cases of one slide, the scores 0 to 3 in turn."""
    return [Slide(f"s{i:02d}", f"case{i:02d}", folder / f"s{i:02d}.svs", "HE", her2_score=i % 4) for i in range(n)]


def planted_store(folder: Path, embedders: dict[str, float], n: int = 16) -> list[Slide]:
    """Writes cohort.csv and a store with a space an embedder, given as name -> signal."""
    slides = planted_slides(folder, n)
    write_cohort(slides, folder / "cohort.csv")
    store = FeatureStore.create(folder / "store")
    for k, (name, signal) in enumerate(embedders.items()):
        planted_space(store, slides, name, f"{k}" * 64, signal=signal)
    return slides


def planted_space(
    store: FeatureStore,
    slides: list[Slide],
    name: str,
    weights_sha256: str,
    *,
    signal: float = 4.0,
    card: WeightsCard | None = None,
) -> str:
    """Adds a space with features of every slide; returns its key."""
    spec = EmbedderSpec(name, DIM, 96, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), weights_sha256)
    space = FeatureSpace(PatchSpec(), preset("HE"), spec, views=VIEWS)
    store.add_space(space, weights=None if card is None else f"{weights_sha256[:4]}.safetensors", card=card)
    for i, slide in enumerate(slides):
        coords = np.stack([np.arange(PATCHES) * 96, np.zeros(PATCHES)], axis=1).astype(np.int32)
        shape = SlideShape(slide.slide_id, space.key, coords, VIEWS, DIM, "float16", 96.0, {})
        writer = store.writer(shape)
        writer.write(0, planted_features(slide.her2_score or 0, i, signal=signal), np.ones(PATCHES, np.bool_))
        writer.commit({})
    return space.key


def planted_experiment(
    *,
    store: str = "store",
    per_epoch: int,
    fixed: tuple[int, int],
    units: int,
    epochs: int,
    learning_rate: str,
    weight_decay: str = "[1e-4]",
    search: str = "",
) -> str:
    """An experiment file of a planted cohort whose embedders are called good and poor: 2 folds, 4 test slides.

    Args:
        store: its URI, relative to the file's folder.
        per_epoch: bags of a training epoch.
        fixed: validation bags, test bags.
        units: width of the attention layer.
        epochs: of a run.
        learning_rate, weight_decay: lists, as TOML has them.
        search: lines of the section [search]; the grid without any.
    """
    return f"""\
[data]
cohort = "cohort.csv"
store = "{store}"
embedders = ["good", "poor"]
[splits]
folds = 2
test_slides = 4
[bags]
size = 20
per_epoch = {per_epoch}
validation = {fixed[0]}
test = {fixed[1]}
[model]
attention_units = {units}
[training]
epochs = {epochs}
batch_bags = 16
learning_rate = {learning_rate}
weight_decay = {weight_decay}
""" + (f"[search]\n{search}" if search else "")
