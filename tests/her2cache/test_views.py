"""Views of a block: each (patch, view) once through each embedder; view 0 is the patch itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from her2cache.augment import augment, draw_views, gaussian_noise
from her2cache.backbones.alexnet import Trunk
from her2cache.backbones.registry import load_recipe
from her2cache.embedder import Augmentation, Batching, FeatureSpace
from her2cache.ingest import PatchBlock, embed_block
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from tests.slides import texture

VIEWS, N = 3, 5


@pytest.fixture(scope="module")
def trunks() -> list[Trunk]:
    first = load_recipe("alexnet-random", 96)
    tensors = {name: value * np.float32(0.5) for name, value in first.tensors.items()}
    return [first, Trunk(replace(first.spec, name="half", weights_sha256="0" * 64), tensors, None)]


@pytest.fixture(scope="module")
def block() -> PatchBlock:
    patches = np.stack([texture(96, 96, seed=k) for k in range(N)])
    coords = np.stack([np.arange(N) * 96, np.zeros(N)], axis=1).astype(np.int32)
    return PatchBlock("s", 0, coords, patches, np.ones(N, np.bool_))


def test_each_view_goes_once_through_each_embedder(trunks: list[Trunk], block: PatchBlock) -> None:
    embedders = [trunk.build(Batching(batch=8)) for trunk in trunks]
    made = embed_block(block, embedders, VIEWS)
    assert len(made.seconds) == 2
    assert min(made.seconds) > 0
    assert [np.asarray(f).shape for f in made.features] == [(VIEWS, N, 1024)] * 2


def test_views_equal_embedding_their_pixels_one_by_one(trunks: list[Trunk], block: PatchBlock) -> None:
    embedder = trunks[0].build(Batching(batch=8))
    (made,) = embed_block(block, [embedder], VIEWS).features
    made = np.asarray(made)
    np.testing.assert_array_equal(made[0], embedder.embed(block.patches).astype(np.float16))
    for view in range(1, VIEWS):
        draws = draw_views(Augmentation(), "s", block.coords, view, 96)
        pixels = augment(block.patches, draws, Augmentation())
        noise = gaussian_noise(draws, 96, Augmentation())
        for k in range(N):
            alone = embedder.embed(pixels[k : k + 1], noise[k : k + 1])[0].astype(np.float16)
            np.testing.assert_array_equal(made[view, k], alone)
    assert not np.array_equal(made[0], made[1])
    assert not np.array_equal(made[1], made[2])


def test_a_patch_keeps_its_views_in_any_block(trunks: list[Trunk], block: PatchBlock) -> None:
    embedder = trunks[0].build(Batching(batch=8))
    (whole,) = embed_block(block, [embedder], VIEWS).features
    tail = PatchBlock("s", 3, block.coords[3:], block.patches[3:], block.ok[3:])
    (part,) = embed_block(tail, [embedder], VIEWS).features
    np.testing.assert_array_equal(np.asarray(whole)[:, 3:], np.asarray(part))


def test_the_augmentation_is_part_of_the_key_only_where_there_are_views(trunks: list[Trunk]) -> None:
    one = FeatureSpace(PatchSpec(), preset("HE"), trunks[0].spec)
    eight = replace(one, views=8)
    stronger = Augmentation(hue=0.2)
    assert replace(one, augmentation=stronger).key == one.key
    assert len({one.key, eight.key, replace(eight, augmentation=stronger).key}) == 3
