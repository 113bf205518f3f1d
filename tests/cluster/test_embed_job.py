"""Embedding on a real local Ray: the bytes of the sequential path whatever dies, and an outcome for every slide."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from scipy import ndimage

from cluster import pipeline
from cluster.actors import remote_reader
from cluster.batching import fixed_batching
from cluster.embed_job import EmbedReport, embed_slides
from cluster.embed_more import precision_of, slide_of
from cluster.job import EmbedOptions, Progress
from her2cache.backbones.alexnet import Trunk
from her2cache.backbones.registry import load_recipe
from her2cache.cohort import Slide
from her2cache.embedder import FeatureSpace
from her2cache.errors import SlideError
from her2cache.ingest import PatchBlock, ReadOptions, SlideSurvey, embed_block, read_slide
from her2cache.store.reader import FeatureStore
from her2cache.store.writer import SlideShape, SlideWriter
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from tests.processes import actors, descendants, eventually, holds_open, kill, title
from tests.slides import GLASS, corrupt, texture, write_slide

pytestmark = pytest.mark.usefixtures("local_ray", "time_limit")

READING = ReadOptions(PatchSpec(), preset("HE"))
OURS = ("Reader", "Embed", "Writer")


@pytest.fixture
def time_limit() -> Iterator[None]:
    """A job that hangs fails its test instead of stopping the run."""

    def stop(*_: object) -> None:
        raise TimeoutError("the job hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(100)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return load_recipe("alexnet-random", 96)


def scaled(trunk: Trunk, name: str, factor: float) -> Trunk:
    """Another embedder: a trunk with its last layer multiplied."""
    tensors = {
        key: value * np.float32(factor) if key.startswith("10.") else value for key, value in trunk.tensors.items()
    }
    digest = hashlib.sha256(name.encode()).hexdigest()
    return Trunk(replace(trunk.spec, name=name, weights_sha256=digest), tensors, None)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Slide]:
    """Three slides of 70, 130 and 192 patches: two, three and three blocks, one of them full."""
    folder = tmp_path_factory.mktemp("slides")
    grids = {"small": (10, 7), "middle": (13, 10), "full": (16, 12)}
    return [
        as_slide(write_slide(folder / f"{name}.tif", texture(96 * w, 96 * h, seed=w))) for name, (w, h) in grids.items()
    ]


@pytest.fixture(scope="module")
def long_slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    """960 patches in 15 blocks: more than a reader may be ahead, so that it is at work almost to the end."""
    path = tmp_path_factory.mktemp("slides") / "long.tif"
    return as_slide(write_slide(path, np.tile(texture(96 * 8, 96 * 10), (3, 4, 1)), segment_px=(256, 256)))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.create(tmp_path / "store")


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


class TestBytes:
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
        for cores in (1.0, 2.0):
            monkeypatch.setattr(pipeline.ray, "cluster_resources", lambda cores=cores: {"CPU": cores})
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


@pytest.fixture
def bad_slides(tmp_path: Path, slides: list[Slide]) -> dict[str, tuple[Slide, str, str]]:
    """name -> slide, error and a part of its reason."""
    folder = tmp_path / "bad"
    folder.mkdir()
    whole = slides[1].path.read_bytes()
    (folder / "text.svs").write_text("not a slide at all\n" * 50)
    (folder / "empty.svs").write_bytes(b"")
    (folder / "cut.svs").write_bytes(whole[: len(whole) // 2])
    (folder / "stub.svs").write_bytes(whole[:100])
    (folder / "folder.svs").mkdir()
    write_slide(folder / "unscaled.tif", texture(960, 960), mpp=None)
    write_slide(folder / "absurd.tif", texture(960, 960), mpp=353.0)
    write_slide(folder / "coarse.tif", texture(960, 960), mpp=1.0)
    write_slide(folder / "blank.tif", np.full((960, 960, 3), GLASS, np.uint8))
    write_slide(folder / "tiny.tif", texture(90, 90))
    write_slide(folder / "broken.tif", texture(960, 960))
    for index in range(150, 160):  # far enough down that whole blocks come before
        corrupt(folder / "broken.tif", index, "head")
    faults = {
        "gone.svs": ("SlideOpenError", "does not exist"),
        "folder.svs": ("SlideOpenError", "is a directory"),
        "text.svs": ("SlideOpenError", "cannot be opened as a slide"),
        "empty.svs": ("SlideOpenError", "cannot be opened as a slide"),
        "cut.svs": ("DecodeError", "truncated or damaged"),
        "stub.svs": ("SlideOpenError", "truncated"),
        "unscaled.tif": ("MissingMppError", "fill the column mpp"),
        "absurd.tif": ("MissingMppError", "not plausible"),
        "coarse.tif": ("SlideError", "--allow-upsample"),
        "blank.tif": ("EmptyPlanError", "the slide is blank"),
        "tiny.tif": ("EmptyPlanError", "smaller than a patch"),
        "broken.tif": ("DecodeError", "cannot be decoded"),
    }
    return {name: (as_slide(folder / name), *fault) for name, fault in faults.items()}


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


class TestBadSlides:
    def test_the_good_ones_are_done_and_the_bad_ones_say_why(
        self,
        slides: list[Slide],
        bad_slides: dict[str, tuple[Slide, str, str]],
        trunk: Trunk,
        store: FeatureStore,
        tmp_path: Path,
    ) -> None:
        bad = [slide for slide, _, _ in bad_slides.values()]
        odd = replace(slides[0], slide_id="odd", mpp="half")  # pyright: ignore[reportArgumentType]
        mixed = [bad[0], slides[0], *bad[1:], slides[1], odd]
        seen = list[Progress]()
        report = embed(mixed, [trunk], store, lambda p: seen.append(replace(p)))
        (key,) = report.space_keys
        assert [outcome.slide_id for outcome in report.outcomes] == [slide.slide_id for slide in mixed]
        assert {i for i, status in statuses(report).items() if status == "done"} == {"small", "middle"}
        plain = {s.slide_id: sequential_digest(s, trunk, tmp_path / "plain") for s in slides[:2]}
        assert digests(store, key) == plain
        outcomes = {outcome.slide_id: outcome for outcome in report.outcomes}
        failures = {failure.slide_id: failure for failure in store.failures(key)}
        unforeseen = failures.pop("odd")
        assert unforeseen.reason.startswith("not expected: TypeError: ")
        assert "resolve_mpp" in unforeseen.traceback
        assert set(failures) == {slide.slide_id for slide in bad}
        for slide, error, part in bad_slides.values():
            failure = failures[slide.slide_id]
            assert (failure.error, failure.attempts) == (error, 1), failure
            assert part in failure.reason
            assert failure.reason == outcomes[slide.slide_id].reason
            assert error in failure.traceback
        assert attempts_of(store) == 2
        assert (seen[-1].finished, seen[-1].failed) == (len(mixed), len(bad) + 1)
        assert seen[-1].written_patches == seen[-1].planned_patches == report.patches == 200

        self.then_more_embedders_and_a_slide_that_came_late(slides, bad_slides["gone.svs"][0], trunk, store, tmp_path)

    def then_more_embedders_and_a_slide_that_came_late(
        self, slides: list[Slide], late: Slide, trunk: Trunk, store: FeatureStore, tmp_path: Path
    ) -> None:
        """Files of the first space stay as they are; one embedder that fails does not stop the others."""
        first = {path: file for path, file in files_of(store).items() if "failures" not in path}
        another, loud = scaled(trunk, "another", 2.0), scaled(trunk, "loud", 1e9)
        late.path.symlink_to(slides[2].path)
        report = embed([*slides[:2], late], [trunk, loud, another], store)
        key, loud_key, other_key = report.space_keys
        assert statuses(report) == {"small": "failed", "middle": "failed", "gone": "failed"}
        assert all("loud gives features up to" in outcome.reason for outcome in report.outcomes)
        after = files_of(store)
        assert {path: after[path] for path in first} == first
        assert store.slides(loud_key) == []
        assert [failure.error for failure in store.failures(loud_key)] == ["EmbedderError"] * 3
        assert store.slides(key) == store.slides(other_key) == ["gone", "middle", "small"]
        assert "gone" not in {failure.slide_id for failure in store.failures(key)}
        assert not Path(store.uri, f"failures/{key}/gone.json").exists()
        assert attempts_of(store) == 6
        plain = {s.slide_id: sequential_digest(s, another, tmp_path / "plain") for s in (*slides[:2], late)}
        assert digests(store, other_key) == plain
        for slide_id in plain:  # spaces align row by row
            np.testing.assert_array_equal(store.coords(slide_id, key), store.coords(slide_id, other_key))

        self.then_nothing_to_do_but_for_a_damaged_record([*slides[:2], late], [trunk, another], store)

    def then_nothing_to_do_but_for_a_damaged_record(
        self, slides: list[Slide], trunks: list[Trunk], store: FeatureStore
    ) -> None:
        """Ray is not asked for: the address is one that is refused."""
        before = files_of(store)
        report = embed(slides, trunks, store, address="ray://nowhere:1")
        assert {(o.status, o.reason) for o in report.outcomes} == {("skipped", "already embedded")}
        assert (report.patches, report.seconds) == (0, 0)
        assert files_of(store) == before
        Path(store.uri, f"commits/{report.space_keys[0]}/small.json").write_text("{")
        report = embed(slides, trunks, store, address="ray://nowhere:1")
        assert statuses(report) == {"small": "failed", "middle": "skipped", "gone": "skipped"}
        assert "small.json is not a readable record" in report.outcomes[0].reason

    @pytest.mark.slow
    def test_stopping_at_the_first(self, slides: list[Slide], long_slide: Slide, trunk: Trunk, store: FeatureStore):
        gone = as_slide(Path("/nowhere/gone.svs"))
        report = embed([long_slide, gone, *slides], [trunk], store, on_error="fail")
        assert statuses(report) == {
            "long": "skipped",
            "gone": "failed",
            "small": "skipped",
            "middle": "skipped",
            "full": "skipped",
        }
        assert {o.reason for o in report.outcomes if o.status == "skipped"} == {
            "not tried, or not to the end: the job stopped at the first failure"
        }
        assert store.slides(key_of(trunk)) == []
        assert attempts_of(store) == 0  # what was begun is removed

    @pytest.mark.slow
    def test_a_full_disk(
        self, slides: list[Slide], long_slide: Slide, trunk: Trunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The long slide does not fit, the others do; its reader, which nobody listens to, goes on with another."""
        monkeypatch.setattr(pipeline, "BLOCK_BYTES", 1)
        more = [replace(slide, slide_id=f"{slide.slide_id} again") for slide in slides[:2]]
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1800k", "tmpfs", str(disk)],
            capture_output=True,
            text=True,
            check=False,
        )
        if mounted.returncode:
            pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
        try:
            store = FeatureStore.create(disk / "store")
            report = embed([slides[0], long_slide, slides[1], *more], [trunk], store)
            done = {"small", "middle", "small again", "middle again"}
            assert statuses(report) == {"long": "failed"} | dict.fromkeys(done, "done")
            assert "is full" in report.outcomes[1].reason
            assert attempts_of(store) == len(done)
            assert set(digests(store, key_of(trunk))) == done
            assert [failure.error for failure in store.failures(key_of(trunk))] == ["StoreError"]
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)


class TestDeath:
    """Processes are killed by id, at work on the slide."""

    def test_a_reader_an_embedder_and_a_writer_killed_in_mid_slide(
        self,
        long_slide: Slide,
        trunk: Trunk,
        store: FeatureStore,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """One after the other, each in an attempt of its own, and without a word on the terminal."""
        monkeypatch.setattr(pipeline, "BLOCK_BYTES", 1)  # a batch a block, so that the reader is at work long enough
        left, armed, seen = list(OURS), True, list[Progress]()

        def watch(progress: Progress) -> None:
            nonlocal armed
            seen.append(replace(progress))
            armed = armed or progress.written_patches == 0
            if armed and left and progress.written_patches:
                kill(actors(left.pop(0))[0])
                armed = False
            elif not left and progress.written_patches == 960:  # those who have nothing to do any more
                for pid in actors("Embed"):
                    kill(pid)

        report = embed([long_slide], [trunk], store, watch, max_attempts=4)
        assert not left
        assert statuses(report) == {"long": "done"}
        assert digests(store, key_of(trunk)) == {"long": sequential_digest(long_slide, trunk, tmp_path / "plain")}
        assert list(store.failures(key_of(trunk))) == []
        assert seen[-1] == Progress(1, finished=1, planned_patches=960, written_patches=960)
        assert report.patches == 960
        assert sum(b.planned_patches > a.planned_patches for a, b in pairwise(seen)) == 3  # begun anew
        assert capfd.readouterr() == ("", "")

    @pytest.mark.slow
    def test_embedders_that_die_as_they_start_are_replaced(
        self, slides: list[Slide], trunk: Trunk, store: FeatureStore, tmp_path: Path
    ) -> None:
        killed = list[int]()

        def strike() -> None:
            eventually(lambda: bool(actors("Embed")), 60)
            killed.extend(actors("Embed"))
            for pid in killed:
                kill(pid)

        striker = threading.Thread(target=strike)
        striker.start()
        report = embed(slides, [trunk], store)
        striker.join()
        assert killed
        assert statuses(report) == dict.fromkeys(("small", "middle", "full"), "done")
        plain = {s.slide_id: sequential_digest(s, trunk, tmp_path / "plain") for s in slides}
        assert digests(store, key_of(trunk)) == plain

    @pytest.mark.slow
    def test_everything_killed_at_once(
        self, slides: list[Slide], trunk: Trunk, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pipeline, "BLOCK_BYTES", 1)
        killed = list[int]()

        def watch(progress: Progress) -> None:
            if not killed and progress.written_patches:
                killed.extend(actors(*OURS))
                for pid in killed:
                    kill(pid)

        report = embed(slides, [trunk], store, watch)
        assert len(killed) >= 6
        assert statuses(report) == dict.fromkeys(("small", "middle", "full"), "done")
        plain = {s.slide_id: sequential_digest(s, trunk, tmp_path / "plain") for s in slides}
        assert digests(store, key_of(trunk)) == plain

    @pytest.mark.slow
    def test_a_slide_that_kills_its_reader_each_time(
        self,
        slides: list[Slide],
        long_slide: Slide,
        trunk: Trunk,
        store: FeatureStore,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(pipeline, "BLOCK_BYTES", 1)
        poison = tmp_path / "poison.tif"
        poison.write_bytes(long_slide.path.read_bytes())
        killed, done = set[int](), threading.Event()

        def haunt() -> None:
            while not done.wait(0.02):
                for pid in actors("Reader"):
                    if holds_open(pid, poison):
                        killed.add(pid)
                        kill(pid)

        thread = threading.Thread(target=haunt)
        thread.start()
        try:
            report = embed([as_slide(poison), *slides], [trunk], store, max_attempts=2)
        finally:
            done.set()
            thread.join()
        assert len(killed) == 2
        assert statuses(report) == {"poison": "failed", "small": "done", "middle": "done", "full": "done"}
        assert f"{poison}: the process working on it died 2 times" in report.outcomes[0].reason
        (failure,) = store.failures(key_of(trunk))
        assert (failure.slide_id, failure.error, failure.attempts) == ("poison", "SlideError", 2)
        plain = {s.slide_id: sequential_digest(s, trunk, tmp_path / "plain") for s in slides}
        assert digests(store, key_of(trunk)) == plain

    @pytest.mark.slow
    def test_an_interrupted_job_leaves_no_attempt_and_goes_on(
        self,
        long_slide: Slide,
        slides: list[Slide],
        trunk: Trunk,
        store: FeatureStore,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(pipeline, "BLOCK_BYTES", 1)

        def watch(progress: Progress) -> None:
            if progress.written_patches >= 128:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            embed([long_slide, slides[0]], [trunk], store, watch)
        assert attempts_of(store) == len(store.slides(key_of(trunk)))
        assert eventually(lambda: not actors(*OURS))
        assert set(statuses(embed([long_slide, slides[0]], [trunk], store)).values()) <= {"done", "skipped"}
        assert digests(store, key_of(trunk))["long"] == sequential_digest(long_slide, trunk, tmp_path / "plain")


class TestBounds:
    @pytest.mark.slow
    def test_blocks_in_flight_stay_within_the_budget(
        self,
        long_slide: Slide,
        slides: list[Slide],
        trunk: Trunk,
        store: FeatureStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(pipeline, "BLOCK_BYTES", 1)
        key = store.add_space(FeatureSpace(READING.patch, READING.tissue, trunk.spec))
        shapes = [pipeline.SpaceShape(key, trunk.spec.dim, 1, "float16")]
        tasks = [pipeline.Task(slide, [0]) for slide in (long_slide, *slides)]
        loads = list[int]()
        job = pipeline.Pipeline(
            tasks, [trunk], shapes, store, READING, EmbedOptions(), lambda _: loads.append(sum(job._load()))
        )
        job.run()
        assert 2 <= max(loads) <= job._budget == pipeline.BLOCKS_PER_EMBEDDER * job._count

    def test_a_reader_stops_when_nobody_takes_its_blocks(self, long_slide: Slide) -> None:
        reader = remote_reader(2)
        stream = reader.read.remote(long_slide, replace(READING, block=1))
        survey = ray.get(next(stream))
        assert survey.blocks == 960
        first = ray.get(next(stream))
        assert first.start == 0
        (pid,) = actors("Reader")

        def cpu_ticks() -> int:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            return int(fields[11]) + int(fields[12])

        def idle() -> bool:
            before = cpu_ticks()
            threading.Event().wait(0.5)
            return cpu_ticks() - before < 5

        assert eventually(idle, 20)
        ray.kill(reader)


class TestRayKeepsItsWord:
    """What the job relies on and Ray's documentation leaves open."""

    def test_an_actor_works_in_the_order_of_the_calls_even_when_the_first_waits_for_its_argument(self) -> None:
        @ray.remote(num_cpus=0)
        class Log:
            def __init__(self) -> None:
                self.lines = list[str]()

            def add(self, line: str) -> None:
                self.lines.append(line)

            def get(self) -> list[str]:
                return self.lines

        @ray.remote(num_cpus=0)
        def slow(line: str) -> str:
            threading.Event().wait(1)
            return line

        log = Log.remote()
        log.add.remote(slow.remote("first"))
        log.add.remote("second")
        assert ray.get(log.get.remote()) == ["first", "second"]

    def test_waiting_returns_the_very_objects_it_was_given(self, slides: list[Slide]) -> None:
        reader = remote_reader(2)
        stream = reader.read.remote(slides[0], READING)
        ref = ray.put(1)
        found = ray.wait([stream, ref], num_returns=2, timeout=30, fetch_local=False)[0]
        assert any(thing is stream for thing in found)
        assert any(thing is ref for thing in found)
        ray.kill(reader)

    def test_the_end_of_a_dead_reader_is_an_error_and_not_silence(self, long_slide: Slide) -> None:
        reader = remote_reader(2)
        stream = reader.read.remote(long_slide, READING)
        ray.get(next(stream))
        (pid,) = actors("Reader")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(list(stream))

    def test_an_error_of_the_reader_keeps_its_kind(self) -> None:
        reader = remote_reader(2)
        with pytest.raises(SlideError, match="does not exist"):
            ray.get(next(reader.read.remote(as_slide(Path("/nowhere/gone.svs")), READING)))
        ray.kill(reader)
