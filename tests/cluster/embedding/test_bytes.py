"""Features are those of the sequential path, whatever the number of actors; and of the patches that were chosen."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from cluster import crew, pipeline
from cluster.batching import fixed_batching
from cluster.embed_more import precision_of, slide_of
from cluster.job import Progress
from her2cache.backbones.alexnet import Trunk
from her2cache.backbones.registry import load_recipe
from her2cache.cohort import Slide
from her2cache.embedder import FeatureSpace
from her2cache.store.reader import FeatureStore
from her2cache.store.writer import SlideShape
from tests.embedding import (
    OURS,
    READING,
    as_slide,
    attempts_of,
    digests,
    embed,
    key_of,
    sequential_digest,
    statuses,
)
from tests.processes import actors, descendants, eventually, title
from tests.slides import texture, write_slide

pytestmark = pytest.mark.usefixtures("local_ray", "time_limit")


class TestBytes:
    @pytest.mark.slow
    def test_real_slides_equal_the_sequential_path(self, data: Path, store: FeatureStore, tmp_path: Path) -> None:
        """Meanwhile nothing grows: blocks in the driver's books, bytes in Ray's object store, processes."""
        weights = data / "weights/alexnet_features_imagenet.pth"
        trunk = load_recipe(f"alexnet-imagenet={weights}", 96)
        real = [as_slide(data / "slides" / name) for name in ("CMU-1-Small-Region.svs", "synthetic_cmu1.ndpi")]
        seen, processes = list[Progress](), set[int]()
        before = object_store_bytes()

        def watch(progress: Progress) -> None:
            seen.append(replace(progress))
            processes.update(actors(*OURS))

        report = embed(real, [trunk, trunk], store, watch)  # one trunk by two names is one space
        key = key_of(trunk)
        assert report.space_keys == [key, key]
        assert statuses(report) == {slide.slide_id: "done" for slide in real}
        assert digests(store, key) == {s.slide_id: sequential_digest(s, trunk, tmp_path / "plain") for s in real}
        assert attempts_of(store) == 2

        record = store.record("CMU-1-Small-Region", key)
        assert (record.views, record.dim, record.dtype) == (1, 1024, "float16")
        assert store.features(record.slide_id, key).shape == (record.n_patches, 1024)
        assert record.slide["path"] == str(real[0].path)
        assert (record.slide["width"], record.slide["height"]) == (2220, 2967)
        assert (record.slide["mpp"], record.slide["mpp_source"]) == (pytest.approx(0.499), "file")
        assert record.made["batching"] == {
            "batch": 64,
            "threads": 1,
            "memory_format": "channels_last",
            "device": "cpu",
            "precision": "float32",
        }
        assert 0 < record.made["embed_seconds"] < report.seconds
        assert record.made["versions"]["torch"]
        assert record.made["at"]
        patches = sum(outcome.patches for outcome in report.outcomes)
        assert report.patches == patches > 400
        assert seen[-1] == Progress(2, finished=2, planned_patches=patches, written_patches=patches)
        written = [p.written_patches for p in seen]
        assert written == sorted(written)
        assert 0 < report.seconds < 100

        blocks = pipeline.BLOCKS_PER_EMBEDDER * 2 + 2 * 4  # in flight for two embedders, ahead in two readers
        assert object_store_bytes() - before < 1.2 * (blocks * pipeline.BLOCK_BYTES + 10_000_000)
        assert 3 <= len(processes) <= 6
        assert eventually(lambda: not processes & set(descendants()))

    @pytest.mark.slow
    def test_any_number_of_actors_gives_the_same(
        self, slides: list[Slide], trunk: Trunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = {slide.slide_id: sequential_digest(slide, trunk, tmp_path / "plain") for slide in slides}
        real = crew.nodes
        for cores in (1.0, 2.0):
            monkeypatch.setattr(crew, "nodes", lambda cores=cores: [replace(*real(), cpus=cores)])
            store = FeatureStore.create(tmp_path / str(cores))
            assert statuses(embed(slides[::-1], [trunk], store)) == dict.fromkeys(expected, "done")
            assert digests(store, key_of(trunk)) == expected

    def test_batches_are_fixed_and_bounded(self) -> None:
        assert [fixed_batching(px, "cpu").batch for px in (16, 96, 224, 512, 1024, 4096)] == [64, 64, 64, 32, 8, 1]
        assert [fixed_batching(px, "cuda").batch for px in (96, 224, 4096)] == [512, 128, 1]

    def test_half_precision_is_for_gpus(self) -> None:
        asked = [(device, precision) for device in ("cpu", "cuda") for precision in ("auto", "float32")]
        found = [fixed_batching(96, device, precision).precision for device, precision in asked]
        assert found == ["float32", "float32", "float16", "float32"]

    @pytest.mark.parametrize(
        ("batching", "precision"),
        [
            ({"device": "cuda", "precision": "float32"}, "float32"),
            ({"device": "cuda", "precision": "float16"}, "auto"),
            ({"device": "cuda"}, "float32"),  # written before there was a choice
            ({"device": "cpu", "precision": "float32"}, "float32"),
        ],
    )
    def test_more_slides_are_computed_as_those_before(
        self, trunk: Trunk, store: FeatureStore, batching: dict[str, str], precision: str
    ) -> None:
        key = store.add_space(FeatureSpace(READING.patch, READING.tissue, trunk.spec))
        space = store.find_space(key)
        assert precision_of(store, space) == "auto"
        writer = store.writer(SlideShape("s", key, np.zeros((1, 2), np.int32), 1, 1024, "float16", 96.0, {}))
        writer.write(0, np.zeros((1, 1, 1024), np.float16), np.ones(1, np.bool_))
        writer.commit({"batching": batching})
        assert precision_of(store, space) == precision


def object_store_bytes() -> int:
    """The most that Ray's object store ever held: pages of its unlinked file in memory."""
    for pid in descendants():
        if "raylet" in title(pid):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                if "/plasma" in os.readlink(fd) and "deleted" in os.readlink(fd):  # noqa: PTH115
                    return fd.stat().st_blocks * 512
    pytest.fail("Ray keeps its objects elsewhere: find out where")


class TestWhichPatches:
    @pytest.mark.slow
    def test_regions_and_focus_decide_and_a_change_of_them_is_noticed(
        self, slides: list[Slide], trunk: Trunk, store: FeatureStore, tmp_path: Path
    ) -> None:
        regions = tmp_path / "regions.geojson"

        def draw(side: int) -> None:
            ring = [[0, 0], [side, 0], [side, side], [0, side], [0, 0]]
            regions.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))

        draw(400)
        pixels = texture(960, 384)
        pixels[:, :480] = ndimage.gaussian_filter(pixels[:, :480], (6, 6, 0))
        pixels[::8, 480::8] = 40
        soft = as_slide(write_slide(tmp_path / "soft.tif", pixels))
        chosen = replace(slides[0], regions=regions, thresholds=(("min_tissue", 0.4),))
        reading = replace(READING, patch=replace(READING.patch, min_edges=20.0))

        report = embed([chosen, soft], [trunk], store, reading=reading)
        (key,) = report.space_keys
        assert statuses(report) == {"small": "done", "soft": "done"}
        assert len(store.coords("small", key)) == 16
        record = store.record("soft", key)
        assert (record.n_planned, record.n_patches) == (40, 20)
        assert record.made["left_out"] == {"undecodable": 0, "blurred": 20}
        assert report.left_out == {"undecodable": 0, "blurred": 20}
        assert (report.outcomes[1].reason, report.outcomes[1].patches) == ("20 blurred patches left out", 20)
        assert (store.coords("soft", key)[:, 0] >= 480).all()
        assert slide_of(store.record("small", key)) == replace(chosen, case_id="small")

        draw(500)
        for changed in (chosen, slides[0], replace(chosen, thresholds=())):
            refused = embed([changed, soft], [trunk], store, reading=reading, address="ray://nowhere:1")
            assert statuses(refused) == {"small": "failed", "soft": "skipped"}
            assert "other regions or tissue thresholds" in refused.outcomes[0].reason
        assert statuses(embed([chosen], [trunk], store, reading=reading, replace=True)) == {"small": "done"}
        assert len(store.coords("small", key)) == 25
        regions.unlink()
        gone = embed([chosen], [trunk], store, reading=reading, address="ray://nowhere:1")
        assert "column regions" in gone.outcomes[0].reason
