"""Small stores for tests: a space, a slide of drawn features, and where its files lie."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from her2cache.embedder import EmbedderSpec, FeatureSpace
from her2cache.store.reader import FeatureStore
from her2cache.store.writer import SlideShape, SlideWriter
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset

DIM = 8


def space(name: str = "net", views: int = 1) -> FeatureSpace:
    spec = EmbedderSpec(name, DIM, 96, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), hashlib.sha256(name.encode()).hexdigest())
    return FeatureSpace(PatchSpec(), preset("HE"), spec, views=views)


def planned(n: int, side: int = 96) -> NDArray[np.int32]:
    """n patches in raster order on a grid 7 wide."""
    return np.stack([np.arange(n) % 7 * side, np.arange(n) // 7 * side], axis=1).astype(np.int32)


def drawn(n: int, views: int = 1, seed: int = 0) -> NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((views, n, DIM)).astype(np.float16)


def shape_of(slide_id: str, key: str, n: int, views: int = 1) -> SlideShape:
    return SlideShape(slide_id, key, planned(n), views, DIM, "float16", 96.0, {"path": "x.svs"})


def filled(
    store: FeatureStore,
    slide_id: str,
    key: str,
    n: int = 20,
    *,
    views: int = 1,
    failed: tuple[int, ...] = (),
    seed: int = 0,
) -> SlideWriter:
    writer = store.writer(shape_of(slide_id, key, n, views))
    ok = np.ones(n, np.bool_)
    ok[list(failed)] = False
    writer.write(0, drawn(n, views, seed), ok)
    return writer


def expected_order(slide_id: str, coords: NDArray[np.int32]) -> list[int]:
    """An independent transcription of: sorted by blake2b(slide_id, x, y)."""

    def rank(k: int) -> bytes:
        x, y = (int(v) for v in coords[k])
        return hashlib.blake2b(slide_id.encode() + b"\0" + struct.pack("<ii", x, y), digest_size=16).digest()

    return sorted(range(len(coords)), key=rank)


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def attempt_folder(store: FeatureStore, slide_id: str, key: str) -> Path:
    attempt = store.record(slide_id, key).attempt
    (found,) = Path(store.uri).glob(f"attempts/*/{key}/{attempt}")
    return found


def flip_bit(path: Path, byte: int = 11) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
