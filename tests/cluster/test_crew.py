"""How many actors a job has, and what becomes of those that die; on a real Ray, with actors that do nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster import crew
from cluster.crew import Crew, Node, Pending
from cluster.job import Task
from cluster.limits import available_cpus
from her2cache.cohort import Slide
from her2cache.errors import EmbedderError
from tests.processes import eventually

pytestmark = pytest.mark.usefixtures("local_ray")


@ray.remote(num_cpus=0)
class Idle:
    def __init__(self, dies: bool = False) -> None:
        if dies:
            raise RuntimeError("no weights here")

    def ready(self) -> dict[str, Any]:
        return {"node": ray.get_runtime_context().get_node_id(), "device": "none"}

    def discard(self) -> None:
        pass

    def work(self, seconds: float) -> None:
        time.sleep(seconds)


def idle(where: Any = "DEFAULT") -> Any:
    return Idle.options(scheduling_strategy=where).remote()


@pytest.fixture
def made() -> Any:
    """Makes crews, and ends them."""
    crews: list[Crew] = []

    def make(most: int = 100, embedder: Callable[[], Any] = idle) -> Crew:
        crews.append(Crew("cpu", embedder, idle, idle, most=most, attempts=2))
        return crews[-1]

    yield make
    for each in crews:
        each.end()


def start(crew: Crew) -> None:
    while starting := crew.starting():
        for thing in ray.wait(list(starting))[0]:
            crew.started(starting[thing])


def test_an_embedder_a_core_and_lanes_beside_them(made: Any) -> None:
    here, cpus = crew.nodes()[0], available_cpus()
    team = made()
    team.look(50, now=True)
    assert len(team.stations) == cpus
    assert len(team.lanes) == 2 + -(-cpus // 2)
    start(team)
    assert {station.node for station in team.ready()} == {here.id}
    assert {lane.node for lane in team.lanes} == {here.id}
    assert team.near(team.lanes[0]) == team.stations
    assert team.stations[0].made == {"device": "none"}  # the node is no provenance


def test_no_more_lanes_than_slides(made: Any) -> None:
    team = made(most=1)
    team.look(1, now=True)
    assert len(team.lanes) == 1


def test_those_that_died_are_replaced(made: Any) -> None:
    team = made()
    team.look(50, now=True)
    start(team)
    lane, station = team.lanes[0], team.stations[0]
    lane.pending["call"] = Pending(station, 64)
    lane.pending["other"] = Pending(None, 0)
    assert team.load()[station] == 1
    writer = lane.writer
    ray.kill(station.actor)
    ray.kill(writer)
    team.mend(lane, [station])
    assert station not in team.stations
    assert lane.writer is not writer
    team.look(50, now=True)
    start(team)
    assert len(team.ready()) == available_cpus()
    assert team.made == {"device": "none"}
    assert all(crew.answers(each) for each in (lane.writer, *(s.actor for s in team.stations)))


def test_a_busy_actor_is_not_taken_for_a_dead_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_ANSWER_S", 0.3)
    actor = idle()
    ray.get(actor.ready.remote())
    actor.work.remote(3.0)
    assert crew.answers(actor)
    ray.kill(actor)
    assert eventually(lambda: not crew.answers(actor))


def test_embedders_that_never_start_end_the_job(made: Any) -> None:
    team = made(embedder=lambda: Idle.remote(True))

    def attempt_for_ever() -> None:
        while True:
            team.look(1, now=True)
            start(team)

    with pytest.raises(EmbedderError, match=r"do not start.*no weights here"):
        attempt_for_ever()


def test_a_node_that_is_gone_loses_its_idle_lanes(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    team = made()
    team.look(50, now=True)
    working = team.lanes[0]
    working.task = Task(Slide("s", "c", Path("s.svs"), "HE"), [0])
    lost = working.node
    monkeypatch.setattr(crew, "nodes", lambda: [Node("another", 0.0, 0.0)])
    team.look(0, now=True)
    assert team.lanes == [working]  # what it worked at is for the pipeline to say
    assert not team.has(lost)


@pytest.mark.slow
def test_a_hungry_embedder_gets_another_reader_where_cores_are_free(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (here,) = crew.nodes()
    monkeypatch.setattr(crew, "nodes", lambda: [replace(here, cpus=8.0)])
    team = made()
    team.look(50, now=True)
    start(team)
    before = len(team.lanes)
    for _ in range(2):
        time.sleep(0.01)
        team.waited(60.0, starved=True)
        team.look(50, now=True)
    assert len(team.lanes) == before + 2
    team.waited(60.0, starved=False)
    team.look(50, now=True)
    assert len(team.lanes) == before + 2
