"""Jobs seen from outside: as long as they live, by whom they concern, and without touching them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from cluster.cli.main import main
from cluster.cli.status import render
from cluster.job import EmbedOptions
from cluster.telemetry import notices
from cluster.telemetry.logs import LOG_FILE
from cluster.telemetry.notices import Found, Notice, read_notices
from cluster.telemetry.tally import SweepTally
from her2cache.cohort import Slide
from her2cache.store.reader import FeatureStore
from tests.commands import COMMAND, command
from tests.plans import DIMS, plan_of, steps_of
from tests.processes import eventually
from tests.slides import texture, write_slide

SLIDES = 8


@pytest.fixture(autouse=True)
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A board of the test's own: others may run jobs on this machine."""
    folder = tmp_path / "board"
    monkeypatch.setenv("HER2CACHE_RUN_DIR", str(folder))
    return folder


def status(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(main, ["status", "--json", *arguments])
    return result.exit_code, json.loads(result.stdout)


def text_of(*states: dict[str, Any], age: float = 0.5) -> str:
    console = Console(file=StringIO(), width=120)
    console.print(render([Found(state, age) for state in states]))
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


HEAD = {"about": "/data/store", "address": "local", "since": "2026-11-23T10:00:00+00:00", "host": "node1", "pid": 42}


class TestNotices:
    def test_a_job_is_seen_until_it_is_closed(self, board: Path) -> None:
        assert read_notices() == []
        first, second = Notice("embed-1"), Notice("sweep-2")
        assert read_notices() == []  # begun, and nothing said
        second.post({"job": "sweep-2", "since": "2"})
        first.post({"job": "embed-1", "since": "1"})
        first.post({"job": "embed-1", "since": "1", "more": 1})
        assert [found.state for found in read_notices()] == [
            {"job": "embed-1", "since": "1", "more": 1},
            {"job": "sweep-2", "since": "2"},
        ]
        first.close()
        assert [found.state["job"] for found in read_notices()] == ["sweep-2"]
        second.close()
        assert list(board.iterdir()) == []

    def test_a_killed_process_leaves_nothing_on_the_board(self, board: Path) -> None:
        posts = (
            "from cluster.telemetry.notices import Notice;"
            " n = Notice('embed-1'); n.post({'job': 'embed-1', 'since': '1'});"
        )
        with subprocess.Popen([sys.executable, "-c", f"{posts} input()"], stdin=subprocess.PIPE) as process:
            assert eventually(lambda: bool(read_notices()))
            process.send_signal(signal.SIGSTOP)  # not dead
            time.sleep(0.2)
            (found,) = read_notices()
            assert found.age >= 0.15
            process.kill()
            process.wait()
            assert read_notices() == []
        assert list(board.iterdir()) == []

    def test_a_folder_that_others_can_write_is_not_believed(self, board: Path) -> None:
        board.mkdir()
        board.chmod(0o777)
        assert read_notices() == []
        with pytest.raises(PermissionError, match="user's own"):
            Notice("embed-1")


class TestShown:
    def test_nothing(self) -> None:
        assert status() == (0, {"ok": True, "items": [], "outputs": {}, "jobs": []})
        result = CliRunner().invoke(main, ["status"])
        assert (result.exit_code, result.stdout) == (0, "nothing is running\n")

    def test_no_ray_answers(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            result = command("status", "--address", f"127.0.0.1:{port}")  # this process may have a Ray already
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        assert "no Ray cluster answers" in result.stderr

    def test_an_embed_job(self) -> None:
        rate = {"patches_per_s": 900.4, "bytes_per_s": 1.9e6, "busy": 0.97}
        state = HEAD | {
            "job": "embed-1",
            "slides": {"all": 64, "done": 12, "failed": 1, "skipped": 0, "in_flight": 3, "waiting": 48},
            "patches": {"planned": 20000, "written": 12345},
            "remaining_s": 840.0,
            "stages": {"decode": rate | {"busy": 0.3}, "forward": rate, "write": rate | {"busy": 0.01}},
            "in_flight": {"blocks": 5, "bytes": 40e6, "embedders": 2},
            "bottleneck": "forward",
            "requeued": 1,
            "failures": [{"slide": "S\x1b[31m1", "reason": "damaged\n[bold]\x07 " + "x" * 300, "attempts": 3}],
        }
        text = text_of(state)
        for words in (
            "slides   12 done, 1 failed, 3 in flight, 48 waiting, of 64; 1 attempt lost",
            "patches  12,345 of 20,000 of the slides looked at so far",
            "queue    5 blocks in flight, at most 40 MB, for 2 embedders",
            "left     about 14 min",
            "failed S [31m1 (3 attempts): damaged [bold]",
        ):
            assert words in text
        (line,) = [line for line in text.splitlines() if "the bottleneck" in line]
        assert line.split() == ["forward", "900", "1.9", "97%", "the", "bottleneck"]
        assert not {c for c in text if not c.isprintable()} - {"\n"}
        assert "said nothing" not in text
        assert "it has said nothing for 60 s" in text_of(state, age=60)
        assert "bottleneck: none yet" in text_of(state | {"bottleneck": None})

    def test_a_sweep(self, tmp_path: Path) -> None:
        from cluster.telemetry.board import Job
        from cluster.telemetry.logs import EventLog

        log = tmp_path / "log"
        tally = SweepTally(Job("sweep", "local", "/out", EventLog(log)), lambda _: None)
        plans = [plan_of("a", fold) for fold in range(3)] + [plan_of("b")]
        tally.expect(plans, {"b": 2}, DIMS)
        tally.started(plans[0])
        tally.stepped(plans[0], steps_of(plans[0], 1, 4, (0.8,)))
        tally.started(plans[1])
        tally.ended(plans[1], "no memory")
        tally.started(plans[0])  # its process died, another goes on
        tally.ended(plans[0], "")
        state = HEAD | {"job": "sweep-1"} | tally.snapshot()
        assert state["fits"] == {"all": 6, "done": 3, "failed": 1, "running": 0, "waiting": 2}
        assert state["epochs"] == {"all": 40, "done": 20}
        assert state["embedders"]["a"]["val_loss"] == pytest.approx(0.2)
        assert state["embedders"]["b"]["val_loss"] is None
        json.dumps(state)
        text = text_of(state)
        assert "fits     3 done, 1 failed, 2 waiting, of 6" in text
        assert "no memory" in text
        (row,) = [line for line in text.splitlines() if line.startswith("  a ")]
        assert row.split() == ["a", "1/3", "0", "1", "20/30", "0.200", "0.001", "1e-05"]

        told = [json.loads(line) for line in log.read_text().splitlines()]
        assert [(e["event"], e["fit"], e["attempt"]) for e in told] == [
            ("fit begun", plans[0].stack_id(), 1),
            ("fit begun", plans[1].stack_id(), 1),
            ("fit failed", plans[1].stack_id(), 1),
            ("fit begun", plans[0].stack_id(), 2),
            ("fit ended", plans[0].stack_id(), 2),
        ]
        assert told[2]["reason"] == "no memory"
        assert told[0]["runs"] == plans[0].run_ids()

    def test_help_says_what_the_log_file_is(self) -> None:
        for verb in (["embed"], ["sweep"], ["compare"], ["pretrain", "pcam"]):
            assert "--log-file" in CliRunner().invoke(main, [*verb, "--help"]).output


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_job_is_on_the_board_while_it_runs_and_says_what_it_did(tmp_path: Path) -> None:
    from cluster.embed_job import embed_slides
    from her2cache.backbones.registry import load_recipe
    from her2cache.ingest import ReadOptions
    from her2cache.tiling import PatchSpec
    from her2cache.tissue import preset

    paths = [write_slide(tmp_path / f"s{k}.tif", texture(96 * 10, 96 * 7, seed=k)) for k in range(2)]
    (tmp_path / "bad.tif").write_bytes(b"no slide")
    slides = [Slide(path.stem, path.stem, path, "HE") for path in [*paths, tmp_path / "bad.tif"]]
    store = FeatureStore.create(tmp_path / "store")
    seen, ended = list[Found](), threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            seen.extend(read_notices())

    watcher = threading.Thread(target=look)
    watcher.start()
    token = LOG_FILE.set(tmp_path / "events.jsonl")
    try:
        trunk = load_recipe("alexnet-random", 96)
        report = embed_slides(slides, [trunk], store, ReadOptions(PatchSpec(), preset("HE")), EmbedOptions())
    finally:
        LOG_FILE.reset(token)
        ended.set()
        watcher.join()
    assert seen
    assert {found.state["about"] for found in seen} == {store.uri}
    assert {found.state["pid"] for found in seen} == {os.getpid()}
    assert read_notices() == []

    patches = report.patches
    assert patches == 140
    assert report.stages["forward"].busy > 0
    assert report.stages["forward"].patches_per_s == pytest.approx(report.stages["write"].patches_per_s)

    told = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (told[0]["event"], told[-1]["event"]) == ("job begun", "job ended")
    assert len({e["job"] for e in told}) == 1
    assert {(e["event"], e["slide"], e["attempt"]) for e in told if "slide" in e} == {
        ("slide begun", "s0", 1),
        ("slide begun", "s1", 1),
        ("slide begun", "bad", 1),
        ("slide committed", "s0", 1),
        ("slide committed", "s1", 1),
        ("slide failed", "bad", 1),
    }
    assert {e["kind"] for e in told if e["event"] == "actor started"} == {"reader", "embedder", "writer"}


# -- real commands


@pytest.fixture
def cohort(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"s{k}.tif" for k in range(SLIDES)]
    for k, path in enumerate(paths):
        write_slide(path, texture(96 * 24, 96 * 24, seed=k), segment_px=(256, 256))
    return [str(path) for path in paths]


@pytest.fixture
def embedding(cohort: list[str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started = list[subprocess.Popen[bytes]]()

    def start(store: str, *options: str) -> subprocess.Popen[bytes]:
        embed = [COMMAND, "embed", *cohort, "--store", str(tmp_path / store), "--embedder", "alexnet-random"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        started.append(subprocess.Popen([*embed, *options], **quiet))  # pyright: ignore[reportCallIssue,reportArgumentType]
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def jobs_seen() -> dict[int, dict[str, Any]]:
    """pid -> state."""
    code, said = status()
    assert code == 0, said
    return {job["pid"]: job for job in said["jobs"]}


@pytest.mark.slow
def test_two_jobs_are_seen_and_one_that_is_killed_is_not(
    embedding: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    log = tmp_path / "events.jsonl"
    jobs = [embedding(f"store{k}", "--log-file", str(log)) for k in range(2)]
    pids = {job.pid for job in jobs}
    assert eventually(lambda: jobs_seen().keys() == pids, 120)
    jobs[0].kill()
    jobs[0].wait()
    assert jobs_seen().keys() == {jobs[1].pid}
    assert len(list(Path(os.environ["HER2CACHE_RUN_DIR"]).glob("*.lock"))) == 1
    assert eventually(lambda: jobs_seen()[jobs[1].pid].get("patches", {}).get("written", 0) > 0, 120)
    assert jobs_seen()[jobs[1].pid]["slides"]["all"] == SLIDES
    jobs[1].send_signal(signal.SIGINT)
    assert jobs[1].wait(60) == 130
    assert status()[1]["jobs"] == []
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert [e["event"] for e in told if e["pid"] == jobs[1].pid][-1] == "job failed"
    assert len({e["job"] for e in told}) == 2


@pytest.mark.slow
def test_any_node_of_a_cluster_may_ask(embedding: Callable[..., subprocess.Popen[bytes]]) -> None:
    """And the job of a driver that was killed is gone with its actor."""
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 200 << 20, "num_cpus": 1}
    cluster = Cluster(initialize_head=True, head_node_args={"node_ip_address": "127.0.0.2", **memory})
    try:
        cluster.add_node(node_ip_address="127.0.0.3", **memory)
        address = ("--address", cluster.address)
        asked = [COMMAND, "status", "--json", *address]  # a process of its own: a second driver

        def seen() -> dict[int, dict[str, Any]]:
            answer = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60)
            return {job["pid"]: job for job in json.loads(answer.stdout)["jobs"]}

        assert seen() == {}
        jobs = [embedding(f"store{k}", *address) for k in range(2)]
        assert eventually(lambda: seen().keys() == {job.pid for job in jobs}, 120)
        jobs[0].kill()
        jobs[0].wait()
        assert eventually(lambda: seen().keys() == {jobs[1].pid}, 30)
        jobs[1].send_signal(signal.SIGINT)
        jobs[1].wait(60)
        assert seen() == {}
    finally:
        cluster.shutdown()


_EXPORTING = """
import os, sys
from cluster import resources
import ray, ray._private.ray_constants as constants
os.environ.update(resources._LOCAL_ENVIRONMENT)
constants.ENABLE_RAY_CLUSTER = False
options = {"num_cpus": 1, "include_dashboard": False, "log_to_driver": False}
ray.init(address="local", _metrics_export_port=int(sys.argv[1]), **options)
from click.testing import CliRunner
from cluster.cli.main import main
code = CliRunner().invoke(main, sys.argv[2:]).exit_code
print(code, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_prometheus_finds_the_counts(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.prometheus", reason="Ray exports metrics with ray[default] alone")
    pytest.importorskip("aiohttp", reason="Ray exports metrics with ray[default] alone")
    slides = [write_slide(tmp_path / f"s{k}.tif", texture(96 * 10, 96 * 7, seed=k)) for k in range(2)]
    (tmp_path / "bad.tif").write_bytes(b"no slide")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = ["embed", *map(str, slides), str(tmp_path / "bad.tif"), "--store", str(tmp_path / "store")]
    exporting = [sys.executable, "-c", _EXPORTING, str(port), *job, "--embedder", "alexnet-random"]
    with subprocess.Popen(exporting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"  # a slide failed
        expected = {
            "patches_total decode": 140,
            "patches_total forward": 140,
            "patches_total write": 140,
            "bytes_total write": 140 * 1024 * 2,
            "slides_total done": 2,
            "slides_total failed": 1,
            "in_flight_bytes": 0,
        }
        eventually(lambda: expected.items() <= exported(port).items(), 60)
        assert {key: exported(port).get(key) for key in expected} == expected
        assert exported(port)["busy_seconds_total forward"] > 0
        process.communicate()


def exported(port: int) -> dict[str, float]:
    """Our metrics at an endpoint, added up over processes: name and first tag -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("ray_her2cache_")]
    found = dict[str, float]()
    for line in lines:
        name, _, rest = line.removeprefix("ray_her2cache_").partition("{")
        tags, _, value = rest.rpartition("} ")
        tag = [text.split('"')[1] for text in tags.split(",") if text.startswith(("stage=", "outcome="))]
        key = " ".join([name, *tag])
        found[key] = found.get(key, 0.0) + float(value)
    return found


def test_a_board_that_cannot_be_written_stops_no_job(board: Path) -> None:
    from cluster.telemetry.board import running_job

    board.write_text("in the way")
    with running_job("embed", "local", "/store") as job:
        assert job.state()["kind"] == "embed"
    assert notices.read_notices() == []
