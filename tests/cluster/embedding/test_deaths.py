"""Processes die, and the job comes to the same bytes."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from cluster import pipeline
from cluster.job import Progress
from her2cache.backbones.alexnet import Trunk
from her2cache.cohort import Slide
from her2cache.store.reader import FeatureStore
from tests.embedding import (
    OURS,
    as_slide,
    attempts_of,
    digests,
    embed,
    key_of,
    sequential_digest,
    statuses,
)
from tests.processes import actors, eventually, holds_open, kill

pytestmark = pytest.mark.usefixtures("local_ray", "time_limit")


class TestDeath:
    """Processes are killed by id, at work on the slide."""

    @pytest.mark.slow
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
        begun = sum(b.planned_patches > a.planned_patches for a, b in pairwise([Progress(1), *seen]))
        assert begun == 4  # once, and anew after each death
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
