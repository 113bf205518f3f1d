"""The torch dataset of bags: what the store holds, drawn as the sampler says."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from her2cache.errors import BagError, StoreError
from her2cache.store.reader import FeatureStore
from tests.planted import DIM, PATCHES, VIEWS, planted_store
from trainers.dataset import BagDataset

LABELS = {f"s{k:02d}": k % 4 for k in range(6)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    planted_store(folder, {"net": 4.0}, 8)
    return folder / "store"


def test_every_instance_is_a_row_of_the_bags_slide(store: Path) -> None:
    opened = FeatureStore.open(store)
    key = opened.find_space("net").key
    data = BagDataset(store, "net", LABELS, size=20, bags=50)
    seen: set[int] = set()
    for bag, label in (data[k] for k in range(len(data))):
        assert bag.shape == (20, DIM)
        assert bag.dtype == torch.float32
        fits = [
            slide
            for slide, number in LABELS.items()
            if number == label
            and all(
                any(
                    (opened.features(slide, key, view) == row.astype(np.float16)).all(axis=1).any()
                    for view in range(VIEWS)
                )
                for row in bag.numpy()
            )
        ]
        assert len(fits) == 1
        assert len({row.tobytes() for row in bag.numpy()}) == 20
        seen.add(label)
    assert seen == {0, 1, 2, 3}


def test_epochs_differ_and_evaluation_does_not(store: Path) -> None:
    training = BagDataset(store, "net", LABELS, size=20, bags=10, seed=3)
    first = torch.stack([training[k][0] for k in range(10)])
    training.set_epoch(1)
    assert not torch.equal(first, torch.stack([training[k][0] for k in range(10)]))
    training.set_epoch(0)
    assert torch.equal(first, torch.stack([training[k][0] for k in range(10)]))
    plain = BagDataset(store, "net", LABELS, size=20, bags=10, training=False)
    before = torch.stack([plain[k][0] for k in range(10)])
    plain.set_epoch(5)
    assert torch.equal(before, torch.stack([plain[k][0] for k in range(10)]))


def test_a_data_loader_with_workers_yields_the_same_bags(store: Path) -> None:
    data = BagDataset(store, "net", LABELS, size=20, bags=12)
    direct = torch.stack([data[k][0] for k in range(12)])
    loader = DataLoader(data, batch_size=4, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(direct, torch.cat([features for features, _ in loader]))


def test_it_pickles_without_features(store: Path) -> None:
    data = BagDataset(store, "net", LABELS, size=20, bags=12)
    bag, _ = data[0]
    again = pickle.loads(pickle.dumps(data))
    assert len(pickle.dumps(data)) < 12 * 20 * 8 * 2 + 10_000  # the indices, and not the maps
    assert torch.equal(bag, again[0][0])


def test_mistakes_are_named(store: Path) -> None:
    with pytest.raises(BagError, match="needs"):
        BagDataset(store, "net", LABELS, size=PATCHES + 1)
    with pytest.raises(StoreError, match="other"):
        BagDataset(store, "other", LABELS)
    with pytest.raises(IndexError):
        BagDataset(store, "net", LABELS, size=20, bags=3)[3]
