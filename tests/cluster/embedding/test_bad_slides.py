"""A bad slide says why it failed, and the others are embedded."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster import pipeline
from cluster.job import STOPPED, Progress
from her2cache.backbones.alexnet import Trunk
from her2cache.cohort import Slide
from her2cache.store.reader import FeatureStore
from tests.embedding import (
    READING,
    as_slide,
    attempts_of,
    digests,
    embed,
    files_of,
    key_of,
    scaled,
    sequential_digest,
    statuses,
)
from tests.mutants import put, tags_of
from tests.processes import actors, holds_open
from tests.slides import GLASS, corrupt, make_sparse, texture, write_slide

pytestmark = pytest.mark.usefixtures("local_ray", "time_limit")


def put_value(path: Path, code: int, value: int) -> None:
    """Overwrites the first value of a tag of level 0."""
    content = bytearray(path.read_bytes())
    tag = next(tag for tag in tags_of(bytes(content)) if tag.code == code)
    put(content, tag.values, tag.order + {3: "H", 4: "I"}[tag.kind], value)
    path.write_bytes(content)


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
    absurd = write_slide(folder / "enormous.tif", texture(960, 960))
    put_value(absurd, 256, 2**31 - 1)
    unknown = write_slide(folder / "unknown.tif", texture(960, 960))
    put_value(unknown, 259, 999)
    hollow = write_slide(folder / "hollow.tif", texture(960, 960), factors=(1, 4))
    make_sparse(hollow, range(16), page=1)
    for index in range(150, 160):  # far enough down that whole blocks come before
        corrupt(folder / "broken.tif", index, "head")
    faults = {
        "gone.svs": ("SlideOpenError", "does not exist"),
        "folder.svs": ("SlideOpenError", "is a directory"),
        "text.svs": ("SlideOpenError", "cannot be opened as a slide"),
        "empty.svs": ("SlideOpenError", "cannot be opened as a slide"),
        "cut.svs": ("DecodeError", "truncated or damaged"),
        "stub.svs": ("SlideOpenError", "truncated"),
        "enormous.tif": ("SlideOpenError", "has an index of 225 segments, but 2,147,483,647 x 960 px"),
        "unknown.tif": ("SlideOpenError", "TIFF compression 999"),
        "hollow.tif": ("SlideOpenError", "level 1 is empty"),
        "unscaled.tif": ("MissingMppError", "fill the column mpp"),
        "absurd.tif": ("MissingMppError", "not plausible"),
        "coarse.tif": ("SlideError", "--allow-upsample"),
        "blank.tif": ("EmptyPlanError", "the slide is blank"),
        "tiny.tif": ("EmptyPlanError", "smaller than a patch"),
        "broken.tif": ("DecodeError", "cannot be decoded"),
    }
    return {name: (as_slide(folder / name), *fault) for name, fault in faults.items()}


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
        new = as_slide(Path("/nowhere/new.svs"))
        report = embed([*slides, new], trunks, store, address="ray://nowhere:1", on_error="fail")
        assert statuses(report) == {"small": "failed", "middle": "skipped", "gone": "skipped", "new": "skipped"}
        assert report.outcomes[-1].reason == STOPPED

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
        assert {o.reason for o in report.outcomes if o.status == "skipped"} == {STOPPED}
        assert store.slides(key_of(trunk)) == []
        assert attempts_of(store) == 0  # what was begun is removed

    @pytest.mark.slow
    def test_what_happens_to_a_file_while_it_is_read(
        self,
        slides: list[Slide],
        long_slide: Slide,
        trunk: Trunk,
        store: FeatureStore,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Two disappear, one is cut off; what was written of them is removed."""
        monkeypatch.setattr(pipeline, "BLOCK_BYTES", 1)
        copies = {name: tmp_path / f"{name}.tif" for name in ("gone", "cut", "moved")}
        for path in copies.values():
            path.write_bytes(long_slide.path.read_bytes())
        struck = set[str]()

        def strike(name: str) -> None:
            if name == "gone":
                copies[name].unlink()
            elif name == "cut":
                os.truncate(copies[name], 4000)
            else:
                copies[name].rename(tmp_path / "elsewhere.tif")

        def watch(progress: Progress) -> None:
            for name, path in copies.items():
                if name not in struck and any(holds_open(pid, path) for pid in actors("Reader")):
                    struck.add(name)
                    strike(name)

        report = embed([*(as_slide(path) for path in copies.values()), slides[0]], [trunk], store, watch)
        assert struck == set(copies)
        assert statuses(report) == dict.fromkeys(copies, "failed") | {"small": "done"}
        reasons = {outcome.slide_id: outcome.reason for outcome in report.outcomes}
        assert "disappeared" in reasons["gone"]
        assert "disappeared" in reasons["moved"]
        assert "the file ends before its segment does" in reasons["cut"] or "written to" in reasons["cut"]
        (key,) = report.space_keys
        assert {failure.slide_id for failure in store.failures(key)} == set(copies)
        assert attempts_of(store) == 1

    @pytest.mark.slow
    def test_patches_of_corrupt_segments_are_left_out_and_counted(
        self, slides: list[Slide], trunk: Trunk, store: FeatureStore, tmp_path: Path
    ) -> None:
        path = write_slide(tmp_path / "hurt.tif", texture(960, 960))
        for index in (100, 101):
            corrupt(path, index)
        reading = replace(READING, max_bad_patches=0.1)
        report = embed([as_slide(path), slides[0]], [trunk], store, reading=reading)
        assert statuses(report) == {"hurt": "done", "small": "done"}
        record = store.record("hurt", report.space_keys[0])
        left_out = record.made["left_out"]["undecodable"]
        assert 0 < left_out < 10
        assert (record.n_planned, record.n_patches) == (100, 100 - left_out)
        assert report.outcomes[0].reason == f"{left_out} undecodable patches left out"
        x, y = store.coords("hurt", report.space_keys[0]).T
        assert not ((x < 768) & (x + 96 > 640) & (y < 448) & (y + 96 > 384)).any()  # segments 100 and 101 of 15 a row

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
