"""`her2cache embed` as a user runs it: exit codes, one clear line, JSON, and nothing else on stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cluster.cli.main import main
from her2cache.store.reader import FeatureStore
from tests.commands import COMMAND, command
from tests.processes import eventually, marked
from tests.slides import GLASS, texture, write_slide

HEADER = "slide_id,case_id,path,stain,her2_score"


def in_process(*arguments: object) -> Result:
    """The same without a new process, for what ends before any work begins."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def one_line(text: str) -> str:
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good slides and some bad ones."""
    folder = tmp_path_factory.mktemp("slides")
    write_slide(folder / "good 1.tif", texture(960, 672))
    write_slide(folder / "good 2.tif", texture(672, 960, seed=2))
    (folder / "blank.tif").write_bytes(b"")
    (folder / "blank.tif").unlink()
    write_slide(folder / "blank.tif", texture(960, 672) * 0 + GLASS[0])
    (folder / "text.svs").write_text("not a slide\n")
    return folder


def cohort(folder: Path, rows: Sequence[str], name: str = "cohort.csv") -> Path:
    (folder / name).write_text("\n".join([HEADER, *rows]) + "\n")
    return folder / name


@pytest.mark.slow
def test_a_cohort_with_bad_slides(folder: Path, tmp_path: Path) -> None:
    """The good slides are done, the bad ones listed; a second run has nothing to do and starts no Ray."""
    table = cohort(
        folder,
        [
            "first,c1,good 1.tif,HE,0",
            "bl[a]nk,c2,blank.tif,HE,1",
            "gone,c3,gone.svs,HE,2",
            "second/b,c4,good 2.tif,HE,3",
            "text,c5,text.svs,HE,3",
            "ihc,c6,ihc.svs,IHC,3",
        ],
    )
    store, mark = tmp_path / "out[bold]", uuid.uuid4().hex
    run = command("embed", table, "--store", store, "--embedder", "alexnet-random", "--json", HER2CACHE_MARK=mark)
    assert run.returncode == 1, run.stderr
    assert run.stderr == ""
    document = json.loads(run.stdout)
    assert {"ok", "items", "outputs"} <= document.keys()
    assert document["ok"] is False
    assert [(item["id"], item["status"]) for item in document["items"]] == [
        ("first", "done"),
        ("bl[a]nk", "failed"),
        ("gone", "failed"),
        ("second/b", "done"),
        ("text", "failed"),
    ]
    reasons = {item["id"]: item["reason"] for item in document["items"]}
    assert reasons["first"] == ""
    assert "the slide is blank" in reasons["bl[a]nk"]
    assert f"{folder / 'gone.svs'} does not exist" in reasons["gone"]
    assert "cannot be opened as a slide" in reasons["text"]
    assert all("\n" not in reason and "Traceback" not in reason for reason in reasons.values())
    assert document["outputs"] == {"store": str(store)}
    assert document["patches"] == 140
    assert document["seconds"] > 0
    (key,) = document["spaces"].values()
    assert list(document["spaces"]) == ["alexnet-random"]
    assert FeatureStore.open(store).slides(key) == ["first", "second/b"]
    assert eventually(lambda: not marked("HER2CACHE_MARK", mark)), "processes of the command are still there"

    table = cohort(folder, ["first,c1,good 1.tif,HE,0", "second/b,c4,good 2.tif,HE,3"], "good.csv")
    arguments = ("embed", table, "--store", store, "--embedder", "alexnet-random", "--address", "127.0.0.1:1")
    run = command(*arguments)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == [
        "2 slides skipped: already embedded, nothing to do",
        f"  alexnet-random  space {key[:12]}",
        f"store {store}",
    ]


@pytest.mark.slow
def test_a_real_slide_in_plain_words(data: Path, tmp_path: Path) -> None:
    """As issue and README give it, and a missing file beside it."""
    weights = data / "weights/alexnet_features_imagenet.pth"
    slide = data / "slides/CMU-1-Small-Region.svs"
    arguments = ("--store", tmp_path / "store", "--embedder", f"alexnet-imagenet={weights}")
    run = command("embed", slide, tmp_path / "gone.svs", *arguments)
    assert run.returncode == 1
    first, second, space, store = run.stdout.splitlines()
    assert first.startswith("1 slide embedded: ")
    assert "patches x 1 embedder in" in first
    assert second == f"1 slide failed; the reasons follow, and are kept in {tmp_path / 'store'}/failures"
    assert space.startswith("  alexnet-imagenet  space ")
    assert store == f"store {tmp_path / 'store'}"
    assert one_line(run.stderr).startswith(f"failed gone: {tmp_path / 'gone.svs'} does not exist")
    opened = FeatureStore.open(tmp_path / "store")
    features = opened.features("CMU-1-Small-Region", opened.find_space("alexnet-imagenet").key)
    assert features.shape[0] > 200
    assert features.shape[1] == 1024


@pytest.mark.slow
def test_ray_client_is_refused_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    arguments = ("embed", folder / "good 1.tif", "--store", tmp_path / "s", "--embedder", "alexnet-random")
    run = command(*arguments, "--address", "ray://head:10001")
    assert (run.returncode, run.stdout) == (2, "")
    assert "ray job submit" in one_line(run.stderr)


@pytest.mark.slow
def test_an_address_that_is_none(folder: Path, tmp_path: Path) -> None:
    arguments = ("embed", folder / "good 1.tif", "--store", tmp_path / "s", "--embedder", "alexnet-random")
    run = command(*arguments, "--address", "nonsense", "--json")
    assert (run.returncode, run.stderr) == (2, "")
    document = json.loads(run.stdout)
    assert (document["ok"], document["items"], document["outputs"]) == (False, [], {})
    assert "no Ray cluster answers at --address nonsense" in document["error"]


@pytest.mark.slow
def test_interrupting_keeps_what_is_committed(folder: Path, tmp_path: Path) -> None:
    slides = []
    for k in range(30):
        slides.append(folder / f"s{k}.tif")
        slides[-1].write_bytes((folder / "good 1.tif").read_bytes())
    mark, store = uuid.uuid4().hex, tmp_path / "store"
    arguments = [COMMAND, "embed", *slides, "--store", store, "--embedder", "alexnet-random"]
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HER2CACHE_MARK": mark},
        start_new_session=True,
    )
    assert eventually(lambda: bool(list(store.glob("commits/*/*"))), 90)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert one_line(err).startswith("error interrupted; what was finished stays")
    assert eventually(lambda: not marked("HER2CACHE_MARK", mark), 30)
    opened = FeatureStore.open(store)
    (key,) = (space.key for space in opened.spaces())
    done = opened.slides(key)
    assert 1 <= len(done) < len(slides)
    assert len(list(store.glob("attempts/*/*/*"))) == len(done)
    for slide_id in done:
        assert opened.features(slide_id, key).shape == (70, 1024)
    run = command(*arguments[1:], "--json")
    assert run.returncode == 0
    statuses = [item["status"] for item in json.loads(run.stdout)["items"]]
    assert statuses.count("skipped") == len(done)
    assert statuses.count("done") == len(slides) - len(done)


class TestUsage:
    """What is wrong with the command line or its inputs ends it before any work, with code 2."""

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["good 1.tif", "--embedder", "alexnet-random"], "Missing option '--store'"),
            (["good 1.tif", "--store", "S"], "Missing option '--embedder'"),
            (["--store", "S", "--embedder", "alexnet-random"], "Missing argument"),
            (["good 1.tif", "--store", "S", "--embedder", "alexnet-random", "--tile-px", "9"], "No such option"),
            (["good 1.tif", "--store", "S", "--embedder", "alexnet-random", "--mpp", "0"], "not in the range"),
            (["good 1.tif", "--store", "S", "--embedder", "alexnet-random", "--stain", "PAS"], "is not one of"),
            (["good 1.tif", "--store", "S", "--embedder", "alexnet-random", "--max-attempts", "0"], "not in the range"),
        ],
    )
    def test_by_click(self, folder: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
        places = {"good 1.tif": folder / "good 1.tif", "S": tmp_path / "S"}
        result = in_process("embed", *(places.get(argument, argument) for argument in arguments))
        assert result.exit_code == 2
        assert result.stdout == ""
        assert said in result.stderr
        assert not (tmp_path / "S").exists()

    @pytest.mark.parametrize("as_json", [False, True])
    @pytest.mark.parametrize(
        ("inputs", "embedder", "said"),
        [
            ([], "resnet-900", "'resnet-900' is not known"),
            ([], "alexnet-imagenet=/nowhere/w.pth", "/nowhere/w.pth does not exist"),
            (["text.svs"], "alexnet-imagenet={folder}/text.svs", "is not a weights file"),
            (["faulty.csv"], "alexnet-random", "faulty.csv has 3 faults"),
            (["empty.csv"], "alexnet-random", "empty.csv"),
            (["binary.parquet"], "alexnet-random", "binary.parquet"),
            (["gone.csv"], "alexnet-random", "gone.csv"),
            (["ihc.csv"], "alexnet-random", "no slide of stain HE"),
            (["ihc.csv", "good 1.tif"], "alexnet-random", "one table, or slide files, not both"),
            (["good 1.tif", "other/good 1.tif"], "alexnet-random", "would both be slide 'good 1'"),
            (["x" * 201 + ".svs"], "alexnet-random", "shorten it"),
        ],
    )
    def test_by_ourselves(
        self, folder: Path, tmp_path: Path, inputs: list[str], embedder: str, said: str, as_json: bool
    ) -> None:
        (folder / "faulty.csv").write_text(f"{HEADER}\na,c,good 1.tif,PAS,0\na,c,x.svs,HE,9\n")
        (folder / "empty.csv").write_text("")
        (folder / "binary.parquet").write_bytes(b"\0\1")
        (folder / "ihc.csv").write_text(f"{HEADER}\na,c,a.svs,IHC,0\n")
        paths = [folder / name for name in inputs or ["good 1.tif"]]
        options = ["--store", tmp_path / "store", "--embedder", embedder.format(folder=folder)]
        result = in_process("embed", *paths, *options, *["--json"] * as_json)
        assert result.exit_code == 2
        if as_json:
            assert result.stderr == ""
            message = json.loads(result.stdout)["error"]
        else:
            assert result.stdout == ""
            message = one_line(result.stderr)
            assert message.startswith("error ")
        assert said in message
        assert "Traceback" not in result.output
        assert not (tmp_path / "store").exists()  # nothing was begun

    def test_a_store_that_is_a_file(self, folder: Path) -> None:
        options = ["--store", folder / "text.svs", "--embedder", "alexnet-random"]
        result = in_process("embed", folder / "good 1.tif", *options)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "is a file, a store is a directory" in one_line(result.stderr)

    def test_a_traceback_only_on_demand(self, folder: Path, tmp_path: Path) -> None:
        options = ["--store", tmp_path / "store", "--embedder", "unknown"]
        assert "Traceback" in in_process("embed", folder / "good 1.tif", *options, "--debug").output
        assert "Traceback" not in in_process("embed", folder / "good 1.tif", *options).output

    def test_the_same_file_twice_is_one_slide(self, folder: Path) -> None:
        from cluster.cli.inputs import slides_of

        path = folder / "good 1.tif"
        assert [slide.slide_id for slide in slides_of([path, Path(str(path))], "HE")] == ["good 1"]
