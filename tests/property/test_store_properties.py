"""A store under any order of writes, any failed rows, any rival: always the slide as planned, or nothing."""

from __future__ import annotations

import hashlib
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from her2cache.embedder import EmbedderSpec, FeatureSpace
from her2cache.errors import IncompleteSlideError
from her2cache.store.reader import FeatureStore
from her2cache.store.schema import row_order
from her2cache.store.writer import SlideShape, SlideWriter
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset

DIM = 3
SLIDES = st.sampled_from(["a", "b/ ü"])


def rank(slide_id: str, x: int, y: int) -> bytes:
    return hashlib.blake2b(slide_id.encode() + b"\0" + struct.pack("<ii", x, y), digest_size=16).digest()


_COORDS = st.lists(st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 2), unique=True, max_size=40)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), _COORDS, st.data())
def test_leaving_patches_out_keeps_the_order(slide_id: str, coords: list[tuple[int, int]], data: st.DataObject) -> None:
    array = np.array(coords, np.int32).reshape(-1, 2)
    stored = [coords[k] for k in row_order(slide_id, array)]
    assert stored == sorted(coords, key=lambda xy: rank(slide_id, *xy))
    kept = data.draw(st.sets(st.sampled_from(coords))) if coords else set()
    fewer = [xy for xy in coords if xy in kept]
    order = row_order(slide_id, np.array(fewer, np.int32).reshape(-1, 2))
    assert [fewer[k] for k in order] == [xy for xy in stored if xy in kept]


class StoreMachine(RuleBasedStateMachine):
    """Several writers at once, each a model of what it was told; the store must show the first to commit."""

    @initialize(views=st.integers(1, 2))
    def start(self, views: int) -> None:
        in_memory = Path("/dev/shm")  # hundreds of commits, each flushed several times
        self.folder = Path(tempfile.mkdtemp(dir=in_memory if in_memory.is_dir() else None))
        self.store = FeatureStore.create(self.folder / "store")
        spec = EmbedderSpec("net", DIM, 96, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "0" * 64)
        self.key = self.store.add_space(FeatureSpace(PatchSpec(), preset("HE"), spec, views=views))
        self.views = views
        self.writers: list[tuple[SlideWriter, str, NDArray[np.int32], dict[int, NDArray[np.float16] | None]]] = []
        self.committed: dict[str, tuple[bytes, NDArray[np.int32], dict[int, NDArray[np.float16] | None]]] = {}
        self.discarded = 0

    @rule(slide_id=SLIDES, n=st.integers(1, 12), seed=st.integers(0, 2**16))
    def begin(self, slide_id: str, n: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        cells = rng.choice(400, n, replace=False)
        coords = np.stack([cells % 20 * 96, cells // 20 * 96], axis=1).astype(np.int32)
        shape = SlideShape(slide_id, self.key, coords, self.views, DIM, "float16", 96.0, {"seed": seed})
        self.writers.append((self.store.writer(shape), slide_id, coords, {}))

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        writer, _, coords, told = self.writers[data.draw(st.integers(0, len(self.writers) - 1))]
        start = data.draw(st.integers(0, len(coords) - 1))
        stop = data.draw(st.integers(start + 1, len(coords)))
        fresh = [k for k in range(start, stop) if k not in told]
        if fresh:  # the longest run of rows that no one wrote yet
            start, stop = fresh[0], next((k for k in range(fresh[0], stop) if k in told), stop)
        ok = np.array(data.draw(st.lists(st.booleans(), min_size=stop - start, max_size=stop - start)))
        if not fresh:
            ok = np.array([told[k] is not None for k in range(start, stop)])
        features = np.random.default_rng(start).standard_normal((self.views, stop - start, DIM)).astype(np.float16)
        features[:, ~ok] = np.nan
        writer.write(start, features, ok)
        told.update({k: features[:, k - start] if ok[k - start] else None for k in range(start, stop)})

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """Writes what is missing, then commits."""
        at = data.draw(st.integers(0, len(self.writers) - 1))
        writer, _, coords, told = self.writers[at]
        for k in range(len(coords)):
            if k not in told:
                features = np.full((self.views, 1, DIM), k, np.float16)
                writer.write(k, features, np.ones(1, np.bool_))
                told[k] = features[:, 0]
        self._commit(at)

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self._commit(data.draw(st.integers(0, len(self.writers) - 1)))

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        self.writers.pop(data.draw(st.integers(0, len(self.writers) - 1)))[0].discard()

    def _commit(self, at: int) -> None:
        writer, slide_id, coords, told = self.writers[at]
        if len(told) < len(coords) or all(features is None for features in told.values()):
            with pytest.raises(IncompleteSlideError):
                writer.commit({})
            return
        self.writers.pop(at)
        outcome = writer.commit({})
        assert outcome == ("lost" if slide_id in self.committed else "committed")
        if outcome == "committed":
            (record,) = (p for p in (self.folder / "store/commits").rglob("*.json") if writer.attempt in p.read_text())
            self.committed[slide_id] = record.read_bytes(), coords, told

    @invariant()
    def the_store_shows_what_was_committed_first(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.slides(self.key) == sorted(self.committed)
        records = {p.read_bytes() for p in (self.folder / "store/commits").rglob("*.json")}
        assert records == {record for record, _, _ in self.committed.values()}
        for slide_id, (_, coords, told) in self.committed.items():
            rows = sorted((k for k in told if told[k] is not None), key=lambda k: rank(slide_id, *map(int, coords[k])))
            features = np.stack([told[k] for k in rows], axis=1)  # pyright: ignore[reportArgumentType]
            np.testing.assert_array_equal(self.store.coords(slide_id, self.key), coords[rows])
            for view in range(self.views):
                np.testing.assert_array_equal(self.store.features(slide_id, self.key, view), features[view])
            record = self.store.record(slide_id, self.key)
            assert record.digest == hashlib.sha256(coords[rows].tobytes() + features.tobytes()).hexdigest()
            assert (record.n_planned, record.n_patches) == (len(coords), len(rows))
        alive = len(self.writers) + len(self.committed)
        assert len(list((self.folder / "store/attempts").glob("*/*/*"))) == alive

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        for slide_id, (_, coords, told) in self.committed.items():
            attempt = self.store.record(slide_id, self.key).attempt
            (folder,) = self.folder.glob(f"store/attempts/*/*/{attempt}")
            group = zarr.open_group(store=folder, mode="r")
            features = np.asarray(group["features"][:])  # pyright: ignore[reportIndexIssue]
            for view in range(self.views):
                np.testing.assert_array_equal(features[view], self.store.features(slide_id, self.key, view))
            assert np.isfinite(features).all()
            assert features.shape[1] == sum(row is not None for row in told.values()) <= len(coords)
        shutil.rmtree(self.folder)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
