"""Slide files in object storage, on a real S3 server: read as from a disk, staged once a node, and never stale."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import obstore
import pytest

from her2cache.cohort import Slide, check_cohort, read_cohort, write_cohort
from her2cache.errors import CohortError, SlideOpenError, StoreSilentError
from her2cache.identity import file_changed, file_identity
from her2cache.ingest import PatchBlock, ReadOptions, SlideSurvey, read_slide
from her2cache.remote import RemotePath, slide_path
from her2cache.slide import open_slide
from her2cache.store import copies as copies_module
from her2cache.store.objects import open_bucket
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from tests.s3 import S3Server
from tests.slides import texture, write_slide

READING = ReadOptions(PatchSpec(), preset("HE"))


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> str:
    return s3_server.make_bucket("slides")


@pytest.fixture(autouse=True)
def node(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the folder of its files."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HER2CACHE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "files"


def upload(bucket: str, name: str, content: bytes) -> RemotePath:
    obstore.put(open_bucket(bucket), name, content)
    path = slide_path(f"{bucket}/{name}")
    assert isinstance(path, RemotePath)
    return path


def slide_bytes(folder: Path, seed: int = 0, side: int = 600) -> bytes:
    return write_slide(folder / f"{seed}.tiff", texture(side, side, seed)).read_bytes()


def copies(node: Path) -> list[Path]:
    return sorted(path for path in node.iterdir() if not path.name.endswith(".sha256"))


def test_read_as_from_a_disk(bucket: str, tmp_path: Path, node: Path) -> None:
    local = write_slide(tmp_path / "s.svs", texture(900, 700))
    remote = upload(bucket, "of one/the slide.svs", local.read_bytes())
    surveys: list[SlideSurvey] = []
    patches: list[np.ndarray] = []
    for path in (local, remote):
        items = list(read_slide(Slide("s", "c", path, "HE"), READING))
        surveys += [item for item in items if isinstance(item, SlideSurvey)]
        patches.append(np.concatenate([item.patches for item in items if isinstance(item, PatchBlock)]))
    assert len(patches[0]) > 20
    assert np.array_equal(patches[0], patches[1])
    of_disk, of_bucket = (dict(survey.provenance) for survey in surveys)
    assert of_bucket.pop("path") == str(remote) == f"{bucket}/of one/the slide.svs"
    assert of_bucket["sha256"] == of_disk["sha256"]
    for own in ("path", "mtime_ns"):
        of_disk.pop(own)
    of_bucket.pop("mtime_ns")
    assert of_bucket == of_disk
    assert len(copies(node)) == 1


def test_staged_once_and_anew_when_it_was_changed(bucket: str, tmp_path: Path, node: Path) -> None:
    remote = upload(bucket, "a.svs", slide_bytes(tmp_path, 1))
    before = file_identity(remote)
    (first,) = copies(node)
    made = first.stat().st_ino
    with open_slide(remote) as slide:
        assert slide.path == remote
    assert [copy.stat().st_ino for copy in copies(node)] == [made]
    assert not file_changed(remote, before)
    assert not file_changed(remote, before | {"mtime_ns": 0})  # another time alone is no other content

    upload(bucket, "a.svs", slide_bytes(tmp_path, 2))
    assert file_changed(remote, before)
    assert file_identity(remote)["sha256"] != before["sha256"]
    assert len(copies(node)) == 2
    obstore.delete(open_bucket(bucket), "a.svs")
    assert not file_changed(remote, before)  # one that is gone has not changed
    with pytest.raises(SlideOpenError, match="does not exist"):
        open_slide(remote)


def test_a_slide_larger_than_a_range(bucket: str, tmp_path: Path) -> None:
    content = slide_bytes(tmp_path, 3, 300) + np.random.default_rng(0).bytes(70_000_000)
    remote = upload(bucket, "large.tiff", content)
    with remote.local() as copy:
        assert copy.path.read_bytes() == content


STAGE = "import sys; from her2cache.remote import RemotePath; RemotePath(sys.argv[1]).identity()"


def test_a_damaged_copy_is_staged_again(bucket: str, tmp_path: Path, node: Path) -> None:
    content = slide_bytes(tmp_path, 4)
    remote = upload(bucket, "b.svs", content)
    subprocess.run([sys.executable, "-c", STAGE, str(remote)], check=True, cwd=Path(__file__).parents[2])
    (copy,) = copies(node)
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 1
    copy.write_bytes(damaged)
    with remote.local() as copy:
        assert copy.path.read_bytes() == content


def test_a_slide_stays_while_it_is_open(
    bucket: str, tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [slide_bytes(tmp_path, seed) for seed in (5, 6, 7)]
    remotes = [upload(bucket, f"{k}.svs", content) for k, content in enumerate(contents)]
    monkeypatch.setenv("HER2CACHE_CACHE_GB", str(2.2 * max(map(len, contents)) / 1e9))  # room for two
    with open_slide(remotes[0]):
        (held,) = copies(node)
        for remote in remotes[1:]:
            with open_slide(remote):
                assert held.exists()
        assert len(copies(node)) == 2
    with open_slide(remotes[1]):  # gone, and now the first may leave
        assert not held.exists()


def test_what_was_read_is_what_is_recorded(bucket: str, tmp_path: Path) -> None:
    contents = [slide_bytes(tmp_path, seed) for seed in (10, 11)]
    remote = upload(bucket, "d.svs", contents[0])
    with open_slide(remote) as slide:
        upload(bucket, "d.svs", contents[1])
        assert slide.identity is not None
        assert slide.identity["sha256"] == hashlib.sha256(contents[0]).hexdigest()
    items = read_slide(Slide("s", "c", remote, "HE"), READING)
    survey = next(items)
    upload(bucket, "d.svs", contents[0])  # after it was opened
    list(items)
    assert isinstance(survey, SlideSurvey)
    assert survey.provenance["sha256"] == hashlib.sha256(contents[1]).hexdigest()


def test_an_ndpi_keeps_its_suffix(bucket: str, data: Path) -> None:
    """By it tifffile knows that offsets have 64 bits."""
    local = data / "slides" / "synthetic_cmu1.ndpi"
    remote = upload(bucket, "n.ndpi", local.read_bytes())
    with remote.local() as copy:
        assert copy.path.suffix == ".ndpi"
    with open_slide(local) as expected, open_slide(remote) as found:
        assert found.level_sizes == expected.level_sizes
        assert np.array_equal(found.thumbnail(200)[0], expected.thumbnail(200)[0])


def test_a_server_that_is_silent_is_waited_for_once(
    bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("HER2CACHE_STORE_PATIENCE", "1")
    monkeypatch.setattr(copies_module, "_silent", {})
    remote = RemotePath(f"{bucket}/s.svs")
    with pytest.raises(StoreSilentError, match="no S3 server answers"):
        open_slide(remote)
    with pytest.raises(StoreSilentError, match="did not answer just now"):
        open_slide(remote)
    assert not file_changed(remote, {"bytes": 1})


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("none.svs", None, "does not exist"),
            ("empty.svs", b"", "empty|zero|no bytes|truncated"),
            ("text.svs", b"this is no slide" * 100, "cannot be opened as a slide"),
            ("s.mrxs", b"x", "slide of several files.*copy it to a disk"),
        ],
    )
    def test_object(self, bucket: str, node: Path, name: str, content: bytes | None, words: str) -> None:
        remote = RemotePath(f"{bucket}/{name}") if content is None else upload(bucket, name, content)
        with pytest.raises(SlideOpenError, match=words) as caught:
            open_slide(remote)
        assert str(caught.value).startswith(str(remote))
        assert str(node) not in str(caught.value)

    def test_a_bucket_that_cannot_be_used_has_changed_nothing(
        self, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        remote = upload(bucket, "c.svs", slide_bytes(tmp_path, 9))
        before = file_identity(remote) | {"bytes": 1}
        assert remote.is_file()
        assert file_changed(remote, before)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-somebody-else")
        with pytest.raises(SlideOpenError):
            remote.is_file()
        assert not file_changed(remote, before)

    def test_bucket(self) -> None:
        with pytest.raises(SlideOpenError, match="no bucket 'nowhere'"):
            open_slide(RemotePath("s3://nowhere/s.svs"))

    def test_credentials(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-somebody-else")
        with pytest.raises(SlideOpenError, match="AWS_SECRET_ACCESS_KEY does not fit") as caught:
            open_slide(RemotePath(f"{bucket}/s.svs"))
        assert "of-somebody-else" not in str(caught.value)

    @pytest.mark.parametrize("text", ["s3://", "s3://bucket", "s3://key:secret@bucket/s.svs", "gs://bucket/s.svs"])
    def test_text(self, text: str) -> None:
        with pytest.raises(CohortError) as caught:
            slide_path(text)
        assert "secret" not in str(caught.value)


class TestCohort:
    def test_round_trip(self, tmp_path: Path) -> None:
        table = tmp_path / "cohort.csv"
        slides = (
            Slide("a", "1", RemotePath("s3://bucket/path/a.svs"), "HE", 2),
            Slide("b", "1", tmp_path / "b.svs", "IHC", 2),
        )
        write_cohort(slides, table)
        assert read_cohort(table).slides == slides

    def test_faults(self, bucket: str, tmp_path: Path) -> None:
        upload(bucket, "there.svs", slide_bytes(tmp_path, 8))
        upload(bucket, "empty.svs", b"")
        paths = [f"{bucket}/{name}.svs" for name in ("there", "empty", "missing", "there")] + ["gs://bucket/s.svs"]
        rows = [f"s{k},c{k},{path},HE,1" for k, path in enumerate(paths)]
        table = tmp_path / "cohort.csv"
        table.write_text("\n".join(["slide_id,case_id,path,stain,her2_score", *rows]))
        faults = {fault.row or 0: fault.message for fault in check_cohort(table)}
        assert sorted(faults) == [3, 4, 5, 6]
        assert "is an empty object" in faults[3]
        assert "does not exist" in faults[4]
        assert "also the slide of row 2" in faults[5]
        assert "no kind of store" in faults[6]
