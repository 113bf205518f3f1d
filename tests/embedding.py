"""Embed jobs in tests: what they are given, and what a store has after them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.batching import fixed_batching
from cluster.embed_job import EmbedReport, embed_slides
from cluster.job import EmbedOptions, Progress
from her2cache.backbones.alexnet import Trunk
from her2cache.cohort import Slide
from her2cache.embedder import FeatureSpace
from her2cache.ingest import PatchBlock, ReadOptions, SlideSurvey, embed_block, read_slide
from her2cache.store.reader import FeatureStore
from her2cache.store.writer import SlideShape, SlideWriter
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset

READING = ReadOptions(PatchSpec(), preset("HE"))
OURS = ("Reader", "Embed", "Writer")


def scaled(trunk: Trunk, name: str, factor: float) -> Trunk:
    """Another embedder: a trunk with its last layer multiplied."""
    tensors = {
        key: value * np.float32(factor) if key.startswith("10.") else value for key, value in trunk.tensors.items()
    }
    digest = hashlib.sha256(name.encode()).hexdigest()
    return Trunk(replace(trunk.spec, name=name, weights_sha256=digest), tensors, None)


def as_slide(path: Path, slide_id: str | None = None, **changes: Any) -> Slide:
    return Slide(slide_id or path.stem, path.stem, path, "HE", **changes)


def embed(
    slides: Sequence[Slide],
    trunks: Sequence[Trunk],
    store: FeatureStore,
    watch: Callable[[Progress], None] = lambda _: None,
    reading: ReadOptions = READING,
    **options: Any,
) -> EmbedReport:
    return embed_slides(slides, trunks, store, reading, EmbedOptions(**options), watch)


def statuses(report: EmbedReport) -> dict[str, str]:
    return {outcome.slide_id: outcome.status for outcome in report.outcomes}


def key_of(trunk: Trunk) -> str:
    return FeatureSpace(READING.patch, READING.tissue, trunk.spec).key


def sequential_digest(slide: Slide, trunk: Trunk, folder: Path) -> str:
    """The digest by the plain path: read, embed and write one block after the other, in this process."""
    store = FeatureStore.create(folder)
    key = store.add_space(FeatureSpace(READING.patch, READING.tissue, trunk.spec))
    batching = fixed_batching(96, "cpu")
    embedder = trunk.build(batching)
    writer: SlideWriter | None = None
    for item in read_slide(slide, replace(READING, block=batching.batch)):
        if isinstance(item, SlideSurvey):
            shape = SlideShape(
                item.slide_id, key, item.coords, 1, trunk.spec.dim, "float16", item.patch_level0_px, item.provenance
            )
            writer = store.writer(shape)
        elif isinstance(item, PatchBlock):
            assert writer is not None
            block = embed_block(item, [embedder])
            assert isinstance(block.features[0], np.ndarray)
            writer.write(block.start, block.features[0], block.ok)
    assert writer is not None
    assert writer.commit({}) == "committed"
    return store.record(slide.slide_id, key).digest


def digests(store: FeatureStore, key: str) -> dict[str, str]:
    """Digests of a space's slides; reading checks each against its files."""
    for slide_id in store.slides(key):
        store.features(slide_id, key)
        store.coords(slide_id, key)
    return {slide_id: store.record(slide_id, key).digest for slide_id in store.slides(key)}


def files_of(store: FeatureStore) -> dict[str, tuple[int, bytes]]:
    root = Path(store.uri)
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}


def attempts_of(store: FeatureStore) -> int:
    return len(list(Path(store.uri).glob("attempts/*/*/*")))
