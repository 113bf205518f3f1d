"""Features of a store as trainers see them: never what was not committed, and never more files than a process has."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from her2cache.bags import BagSampler
from her2cache.embedder import EmbedderSpec, FeatureSpace
from her2cache.errors import CorruptFeaturesError, IncompleteSlideError, StoreError
from her2cache.store.maps import most_kept
from her2cache.store.reader import FeatureStore
from her2cache.store.schema import attempt_path, commit_path
from her2cache.store.writer import SlideShape
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from trainers.dataset import BagDataset
from trainers.features import FeatureRows, stored_features

SLIDES, VIEWS, PATCHES, DIM = 12, 8, 30, 16


def features_of(slide: int) -> np.ndarray:
    return np.random.default_rng(slide).standard_normal((VIEWS, PATCHES, DIM)).astype(np.float16)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve slides of eight views: 96 chunk files of features."""
    folder = tmp_path_factory.mktemp("made") / "store"
    store = FeatureStore.create(folder)
    spec = EmbedderSpec("net", DIM, 96, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "0" * 64)
    key = store.add_space(FeatureSpace(PatchSpec(), preset("HE"), spec, views=VIEWS))
    coords = np.stack([np.arange(PATCHES) * 96, np.zeros(PATCHES)], axis=1).astype(np.int32)
    for k in range(SLIDES):
        writer = store.writer(SlideShape(f"s{k:02d}", key, coords, VIEWS, DIM, "float16", 96.0, {}))
        writer.write(0, features_of(k), np.ones(PATCHES, np.bool_))
        writer.commit({})
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> FeatureStore:
    return FeatureStore.open(shutil.copytree(made, tmp_path / "store"))


def chunk(store: FeatureStore, slide: str, name: str) -> Path:
    record = store.record(slide, "net")
    return store.records.root / attempt_path(slide, record.space_key, record.attempt) / name


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[17] ^= 1
    path.write_bytes(data)


def by_rows(store: FeatureStore) -> object:
    """Through `stored_features` and `FeatureRows`, every view of slide s00."""
    key = store.find_space("net").key
    features = stored_features(store.uri, key, ["s01", "s00"])
    sampler = BagSampler({"s00": PATCHES}, PATCHES, seed=0, views=VIEWS)
    return FeatureRows(features, sampler.slides, 8 * PATCHES).bags(sampler.training(8, 0))


def by_dataset(store: FeatureStore) -> object:
    data = BagDataset(store.uri, "net", {"s00": 0}, size=PATCHES, bags=4)
    return [data[k] for k in range(4)]


def by_maps(store: FeatureStore) -> object:
    return store.maps("net", ["s00"])["s00"][:]


def by_api(store: FeatureStore) -> object:
    return [store.features("s00", "net", view) for view in range(VIEWS)], store.coords("s00", "net")


PATHS = [by_api, by_maps, by_rows, by_dataset]


@pytest.mark.parametrize("read", PATHS)
@pytest.mark.parametrize(
    "damage",
    [flip, Path.unlink, lambda p: os.truncate(p, 100), lambda p: p.write_bytes(p.read_bytes() + b"\0")],
    ids=["flipped", "missing", "truncated", "grown"],
)
@pytest.mark.parametrize("view", [0, 5])
def test_damaged_features_raise_on_every_path(
    store: FeatureStore, read: Callable[[FeatureStore], object], damage: Callable[[Path], object], view: int
) -> None:
    path = chunk(store, "s00", f"features/c/{view}/0/0")
    damage(path)
    for _ in range(2):
        with pytest.raises(CorruptFeaturesError, match=str(path)):
            read(store)


@pytest.mark.parametrize("read", PATHS)
def test_damaged_and_missing_records_raise_on_every_path(
    store: FeatureStore, read: Callable[[FeatureStore], object]
) -> None:
    path = store.records.root / commit_path("s00", store.find_space("net").key)
    path.write_text("{")
    with pytest.raises(CorruptFeaturesError, match="s00"):
        read(store)
    path.unlink()
    with pytest.raises(IncompleteSlideError, match="s00"):
        read(store)


def test_maps_are_of_the_slides_asked_for(store: FeatureStore) -> None:
    maps = store.maps("net", ["s03", "s01"])
    assert list(maps) == ["s03", "s01"]
    assert "s00" not in maps
    assert list(store.maps("net")) == [f"s{k:02d}" for k in range(SLIDES)]
    views = maps["s01"]
    assert (len(views), views.n_patches, views.dim) == (VIEWS, PATCHES, DIM)
    for view in range(VIEWS):
        np.testing.assert_array_equal(views[view], store.features("s01", "net", view))
        assert not views[view].flags.writeable
    assert np.shares_memory(views[-1], views[VIEWS - 1])  # one map, opened once
    with pytest.raises(IndexError):
        views[VIEWS]


def test_a_view_is_checked_when_it_is_first_asked_for(store: FeatureStore) -> None:
    flip(chunk(store, "s00", "features/c/7/0/0"))
    views = stored_features(store.uri, store.find_space("net").key, ["s00"])["s00"]
    assert np.isfinite(views[6]).all()
    with pytest.raises(CorruptFeaturesError, match="crc32c"):
        views[7]
    assert store.open(store.uri, verify="never").maps("net")["s00"][7].shape == (PATCHES, DIM)


_FEW_FILES = """
import os, resource, sys
import numpy as np
from her2cache.bags import BagSampler
from her2cache.errors import StoreError
from her2cache.store.reader import FeatureStore
from tests.trainers.test_features import DIM, PATCHES, SLIDES, VIEWS
from trainers.dataset import BagDataset
from trainers.features import FeatureRows, stored_features

open_now = lambda: len(os.listdir("/proc/self/fd"))
store = FeatureStore.open(sys.argv[1])
space = store.find_space("net")
slides = store.slides(space)
assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] < SLIDES * VIEWS
before = open_now()
views = {(s, v): np.fromfile(next((store.records.root / "attempts" / s / space.key).glob(f"*/features/c/{v}/0/0")),
    np.float16, PATCHES * DIM).reshape(PATCHES, DIM) for s in slides for v in range(VIEWS)}
sampler = BagSampler(dict.fromkeys(slides, PATCHES), 20, seed=0, views=VIEWS)
rows = FeatureRows(stored_features(store.uri, space.key, slides), slides, 64 * 20)
for epoch in range(2):
    bags = sampler.training(64, epoch)
    for i, bag in enumerate(rows.bags(bags).numpy()):
        expected = [views[slides[bags.slide[i]], v][r] for v, r in zip(bags.views[i], bags.rows[i])]
        assert (bag == np.stack(expected)).all()
assert set(bags.slide) == set(range(SLIDES))
data = BagDataset(sys.argv[1], "net", dict.fromkeys(slides, 0), size=20, bags=64)
assert len({data[k][0].numpy().tobytes() for k in range(64)}) == 64
assert open_now() - before <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
held = []
try:
    for slide in slides:
        held += [store.features(slide, space, view) for view in range(VIEWS)]
except StoreError as error:
    print(error)
"""


def test_more_slides_than_a_process_may_open_files(store: FeatureStore) -> None:
    """For real: a process of at most 48 open files trains from 96 chunk files, bit for bit."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))

    command = [sys.executable, "-c", _FEW_FILES, store.uri]
    run = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "ulimit -n" in run.stdout  # whoever holds every map at once is told what to do


def test_an_array_outlives_its_place_among_the_kept(store: FeatureStore) -> None:
    code = (
        "import sys; from her2cache.store.reader import FeatureStore;"
        " maps = FeatureStore.open(sys.argv[1]).maps('net'); first = maps['s00'][0]; before = first.copy();"
        " sum(maps[s][v].size for s in maps for v in range(8)); assert (first == before).all();"
        " again = maps['s00'][0]; assert again is not first and (again == before).all()"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))

    run = subprocess.run(
        [sys.executable, "-c", code, store.uri], preexec_fn=limit, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("files", "kept"), [(1024, 512), (1, 1), (20_000, 10_000), (1_048_576, 16_384), (resource.RLIM_INFINITY, 16_384)]
)
def test_both_limits_of_a_process_are_kept(monkeypatch: pytest.MonkeyPatch, files: int, kept: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert most_kept() == kept
    assert kept < 65_530 / 2  # vm.max_map_count, of which others want some


def test_a_space_that_is_not_there(store: FeatureStore) -> None:
    with pytest.raises(StoreError, match="no feature space 'other'"):
        store.maps("other")
