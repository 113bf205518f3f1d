"""What an embed job counts for those outside: rates, the bottleneck by its definition, slides, failures, events."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from cluster.job import Progress, SlideOutcome
from cluster.telemetry.account import Account, Sums, bottleneck_of, rates_between
from cluster.telemetry.board import Job
from cluster.telemetry.logs import EventLog
from cluster.telemetry.stages import STAGES, Meter, Spent, Stage
from her2cache.errors import SlideOpenError
from tests.clock import Clock

ZERO = dict.fromkeys(STAGES, 0)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def account_of(log: Path, slides: int) -> Account:
    return Account(Job("embed", "local", "/store", EventLog(log)), Progress(slides), block_bytes=1000)


def events(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def spent(stage: Stage, patches: int, seconds: float, pid: int = 7) -> Spent:
    return Spent(stage, patches, patches * 10, seconds, "10.0.0.3", pid)


def sums(busy: tuple[float, float, float], slide_seconds: float, embedder_seconds: float) -> Sums:
    work = dict(zip(STAGES, busy, strict=True))
    return Sums(10.0, dict.fromkeys(STAGES, 100), dict.fromkeys(STAGES, 2000), work, slide_seconds, embedder_seconds)


START = Sums(0.0, ZERO, ZERO, ZERO, 0.0, 0.0)


@pytest.mark.parametrize(
    ("busy", "slides", "embedders", "expected"),
    [
        ((5.0, 19.0, 1.0), 3, 2, "forward"),  # two embedders hardly rest, three readers wait
        ((28.0, 10.0, 1.0), 3, 2, "decode"),
        ((3.0, 9.0, 27.0), 3, 2, "write"),  # slides stand in the queue of a slow store
        ((9.5, 30.0, 0.5), 1, 8, "decode"),  # the last slide: eight embedders work, none of them half of the time
    ],
)
def test_the_bottleneck_is_the_stage_that_waits_least(
    busy: tuple[float, float, float], slides: int, embedders: int, expected: str
) -> None:
    rates = rates_between(START, sums(busy, 10.0 * slides, 10.0 * embedders))
    assert bottleneck_of(rates) == expected
    assert rates["write"].patches_per_s == 10.0
    assert rates["write"].bytes_per_s == 200.0
    assert all(0 <= rate.busy <= 1 for rate in rates.values())


def test_nothing_has_no_bottleneck() -> None:
    assert bottleneck_of(rates_between(START, START)) is None
    assert bottleneck_of({}) is None


def test_a_job_is_counted(clock: Clock, log: Path) -> None:
    account = account_of(log, slides=4)
    account.before = {"skipped": 2}
    account.loaded(0, 2)
    for slide in ("a", "b"):
        account.begun(slide, 1)
        account.surveyed(slide, 300)
    account.taken(100)
    account.loaded(1, 2)
    early = account.snapshot()
    assert early["slides"] == {"all": 6, "done": 0, "failed": 0, "skipped": 2, "in_flight": 2, "waiting": 2}
    assert early["bottleneck"] is None
    assert early["remaining_s"] is None
    assert early["in_flight"] == {"blocks": 1, "bytes": 1000, "embedders": 2}

    clock.now += 10
    account.taken(100)
    account.spend([spent("decode", 100, 2.0), spent("forward", 100, 18.0), spent("write", 100, 0.5)])
    account._progress.written_patches += 100
    now = account.snapshot()
    assert now["bottleneck"] == "forward"
    assert now["stages"]["decode"] == {"patches_per_s": 20.0, "bytes_per_s": 100, "busy": 0.1}
    assert now["stages"]["forward"] == {"patches_per_s": 10.0, "bytes_per_s": 100, "busy": 0.9}
    # 500 patches of these two slides and 600 of the two to come, at 10 a second
    assert now["remaining_s"] == pytest.approx(110.0)

    clock.now += 40  # nothing happens: rates are of the last half minute
    account.snapshot()
    clock.now += 31
    assert account.snapshot()["stages"]["write"]["patches_per_s"] == 0.0


def test_what_becomes_of_slides_is_shown_and_logged(log: Path) -> None:
    account = account_of(log, slides=3)
    account.begun("a", 1)
    account.surveyed("a", 50)
    died = "The actor died\n\tclass_name: Reader\n\tactor_id: 12\n\tpid: 4711\n\tnamespace: x\n\tip: 10.0.0.9\nkilled"
    account.interrupted("a", RayActorError(error_msg=died), 50, 20, again=True)
    account.begun("a", 2)
    account.begun("b", 1)
    account.spend([spent("decode", 50, 1.0)])
    account.spend([spent("decode", 50, 1.0)])
    account.ended(SlideOutcome("a", "done", "", 50))
    account.interrupted("b", SlideOpenError("/x/b.svs is\n\x1b[31mdamaged"), 0, 0, again=False)
    account.ended(SlideOutcome("b", "failed", "/x/b.svs is\n\x1b[31mdamaged"))
    account.ended(SlideOutcome("c", "skipped", "already embedded"))

    state = account.snapshot()
    assert state["slides"] == {"all": 3, "done": 1, "failed": 1, "skipped": 1, "in_flight": 0, "waiting": 0}
    assert state["requeued"] == 1
    assert state["failures"] == [{"slide": "b", "reason": "/x/b.svs is\n\x1b[31mdamaged", "attempts": 1}]
    assert "\x1b" not in log.read_text()

    told = events(log)
    assert [(e["event"], e["level"], e.get("slide"), e.get("attempt")) for e in told] == [
        ("slide begun", "info", "a", 1),
        ("actor died", "warning", None, None),
        ("slide requeued", "warning", "a", 1),
        ("slide begun", "info", "a", 2),
        ("slide begun", "info", "b", 1),
        ("actor started", "info", None, None),
        ("slide committed", "info", "a", 2),
        ("slide failed", "error", "b", 1),
        ("slide skipped", "info", "c", 0),
    ]
    assert {k: told[1][k] for k in ("kind", "node", "pid")} == {"kind": "reader", "node": "10.0.0.9", "pid": 4711}
    assert {k: told[5][k] for k in ("kind", "node", "pid")} == {"kind": "reader", "node": "10.0.0.3", "pid": 7}
    assert told[7]["reason"] == "/x/b.svs is\n\x1b[31mdamaged"
    assert all(e["job"].startswith("embed-") and e["node"] and e["pid"] and e["time"] for e in told)


@pytest.mark.usefixtures("local_ray")
def test_what_ray_says_of_a_dead_actor_is_understood(log: Path) -> None:
    class Reader:
        def pid(self) -> int:
            return os.getpid()

        def die(self) -> None:
            os._exit(3)

    actor: Any = ray.remote(num_cpus=0)(Reader).remote()
    pid = ray.get(actor.pid.remote())
    with pytest.raises(RayActorError) as raised:
        ray.get(actor.die.remote())
    account = account_of(log, slides=1)
    account.begun("a", 1)
    account.interrupted("a", raised.value, 0, 0, again=True)
    _, died, requeued = events(log)
    assert (died["event"], died["kind"], died["pid"], died["node"]) == ("actor died", "reader", pid, "127.0.0.1")
    assert requeued["reason"]


def test_the_failures_shown_are_the_last_ones(log: Path) -> None:
    account = account_of(log, slides=9)
    for k in range(9):
        account.ended(SlideOutcome(f"s{k}", "failed", "why"))
    assert [failure["slide"] for failure in account.snapshot()["failures"]] == ["s4", "s5", "s6", "s7", "s8"]


def test_a_meter_counts_seconds_of_work_and_not_of_waiting() -> None:
    meter = Meter("decode")

    def slow() -> Any:
        for k in range(3):
            time.sleep(0.02)
            yield k

    for _ in meter.each(slow()):
        time.sleep(0.05)
    said = meter.spent(3, 30)
    assert (said.stage, said.patches, said.nbytes) == ("decode", 3, 30)
    assert 0.06 <= said.seconds < 0.15
    assert meter.spent().seconds == 0.0


def test_two_threads_at_once_do_not_work_more_than_time_passes() -> None:
    meter = Meter("forward")

    def work() -> None:
        with meter:
            time.sleep(0.1)

    began = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.1 <= meter.spent().seconds <= time.perf_counter() - began
