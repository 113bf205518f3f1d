"""What is in flight stays within bounds, and Ray keeps its word."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from cluster import pipeline
from cluster.actors import remote_reader
from cluster.job import EmbedOptions, Task
from cluster.limits import available_cpus
from her2cache.backbones.alexnet import Trunk
from her2cache.cohort import Slide
from her2cache.embedder import FeatureSpace
from her2cache.errors import SlideError
from her2cache.store.reader import FeatureStore
from tests.embedding import (
    READING,
    as_slide,
)
from tests.processes import actors, eventually

pytestmark = pytest.mark.usefixtures("local_ray", "time_limit")


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
        tasks = [Task(slide, [0]) for slide in (long_slide, *slides)]
        loads = list[int]()
        job = pipeline.Pipeline(
            tasks,
            [trunk],
            shapes,
            store,
            READING,
            EmbedOptions(),
            lambda _: loads.append(sum(job.crew.load().values())),
        )
        job.run()
        assert 2 <= max(loads) <= pipeline.BLOCKS_PER_EMBEDDER * available_cpus()

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
