"""PatchCamelyon from its files: what is read, how it is split, and files that are something else."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from her2cache.errors import ConfigError
from trainers.pretraining import pcam
from trainers.pretraining.pcam import PARTS, file_name, hash_split, open_pcam
from trainers.pretraining.stored import StoredPatches

SIZES = {"train": 12, "valid": 4, "test": 6}


def patches(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 96, 96, 3), np.uint8)


def write(path: Path, **members: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        for name, values in members.items():
            file[name] = values


def pack(path: Path) -> None:
    with path.open("rb") as plain, gzip.open(f"{path}.gz", "wb", compresslevel=1) as packed:
        shutil.copyfileobj(plain, packed)
    path.unlink()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pcam"
    folder.mkdir()
    for k, (part, n) in enumerate(SIZES.items()):
        write(folder / file_name(part, "x"), x=patches(n, k))
        write(folder / file_name(part, "y"), y=(np.arange(n, dtype=np.uint8) % 2).reshape(n, 1, 1, 1))
    return folder


@pytest.fixture
def packed(folder: Path) -> Path:
    for path in sorted(folder.iterdir()):
        pack(path)
    return folder


def npz(path: Path, n: int = 60, **members: np.ndarray) -> Path:
    np.savez(path, **({"x": patches(n, 9), "y": np.arange(n) % 2} | members))
    return path


def contents(part: object) -> tuple[np.ndarray, np.ndarray]:
    assert isinstance(part, StoredPatches)
    blocks = list(part.ordered())
    return np.concatenate([x for x, _ in blocks]), np.concatenate([y for _, y in blocks])


class TestFolder:
    def test_parts_are_as_published(self, folder: Path) -> None:
        data = open_pcam(folder)
        assert (data.source_task, data.classes, data.source_mpp, data.px) == ("pcam", ("normal", "tumour"), 0.97, 96)
        assert data.case_ids == ()
        for k, (part, n) in enumerate(SIZES.items()):
            x, y = contents(getattr(data, part))
            assert np.array_equal(x, patches(n, k))
            assert np.array_equal(y, np.arange(n) % 2)

    def test_packed_files_are_the_same_data(self, folder: Path, tmp_path: Path) -> None:
        digest = open_pcam(folder).digest
        for path in sorted(folder.iterdir()):
            pack(path)
        assert open_pcam(folder, cache=tmp_path / "cache").digest == digest
        assert all(path.suffix == ".gz" for path in folder.iterdir())
        assert open_pcam(folder).digest == digest

    def test_files_are_unpacked_once(self, packed: Path) -> None:
        open_pcam(packed)
        plain = sorted(packed.glob("*.h5"))
        assert len(plain) == 6
        before = [path.stat().st_mtime_ns for path in plain]
        for path in packed.glob("*.gz"):
            path.write_bytes(b"not looked at again")
        open_pcam(packed)
        assert [path.stat().st_mtime_ns for path in plain] == before

    def test_a_cache_is_not_taken_for_another_folder_s(self, packed: Path, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        digest = open_pcam(packed, cache=cache).digest
        write(packed / file_name("test", "x"), x=patches(6, 77))
        pack(packed / file_name("test", "x"))
        assert open_pcam(packed, cache=cache).digest != digest

    def test_the_digest_is_of_pixels_and_labels(self, folder: Path) -> None:
        digest = open_pcam(folder).digest
        write(folder / file_name("valid", "y"), y=np.array([1, 0, 0, 1], np.int64).reshape(4, 1, 1, 1))
        changed = open_pcam(folder).digest
        assert changed != digest
        write(folder / file_name("valid", "y"), y=(np.arange(4) % 2).reshape(4, 1, 1, 1))
        assert open_pcam(folder).digest == digest

    def test_pixels_stay_in_the_file(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        largest = 0
        read = h5py.Dataset.__getitem__

        def counted(self: h5py.Dataset, rows: object) -> np.ndarray:
            nonlocal largest
            found = read(self, rows)
            largest = max(largest, np.asarray(found).nbytes)
            return found

        n = 200
        write(folder / file_name("train", "x"), x=patches(n, 0))
        write(folder / file_name("train", "y"), y=(np.arange(n) % 2).reshape(n, 1, 1, 1))
        monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
        data = open_pcam(folder)
        for _ in data.train.shuffled(0, 1):
            pass
        assert largest <= 64 * 96 * 96 * 3


class TestChecksums:
    """Files of the published size must be the published files."""

    @pytest.fixture
    def official(self, packed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(pcam, "OFFICIAL", SIZES)
        md5 = {
            f"{part}_{member}": hashlib.md5((packed / f"{file_name(part, member)}.gz").read_bytes()).hexdigest()
            for part in PARTS
            for member in "xy"
        }
        monkeypatch.setattr(pcam, "MD5", md5)
        return packed

    def test_the_right_files_pass(self, official: Path) -> None:
        assert open_pcam(official).train.size == SIZES["train"]

    def test_another_file_of_that_size_is_refused_and_leaves_nothing(self, official: Path) -> None:
        write(official / file_name("test", "x"), x=patches(6, 77))
        pack(official / file_name("test", "x"))
        with pytest.raises(ConfigError, match=r"split_test_x\.h5\.gz .* MD5 .* get it anew"):
            open_pcam(official)
        assert not list(official.glob(f"*{file_name('test', 'x')}"))

    def test_another_size_is_nobody_s_business(self, official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pcam, "OFFICIAL", dict.fromkeys(PARTS, 1_000))
        monkeypatch.setattr(pcam, "MD5", {})
        assert open_pcam(official).test.size == SIZES["test"]

    def test_the_published_checksums_are_torchvision_s(self) -> None:
        from torchvision.datasets import PCAM

        parts = {"train": "train", "val": "valid", "test": "test"}
        assert {
            f"{parts[part]}_{member}": files[kind][2]
            for part, files in PCAM._FILES.items()
            for member, kind in (("x", "images"), ("y", "targets"))
        } == pcam.MD5


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class TestWrongFiles:
    @pytest.mark.parametrize(
        ("spoil", "said"),
        [
            (lambda f: (f / file_name("test", "y")).unlink(), "neither camelyonpatch_level_2_split_test_y.h5 nor"),
            (lambda f: _truncate(f / file_name("train", "x")), "split_train_x.h5 cannot be read as HDF5.*truncated"),
            (lambda f: (f / file_name("valid", "x")).write_bytes(b"text"), "split_valid_x.h5 cannot be read as HDF5"),
            (lambda f: write(f / file_name("train", "x"), y=patches(12, 0)), "no member 'x' .it has 'y'"),
            (lambda f: write(f / file_name("train", "x"), x=patches(12, 0)[:, :64]), r"\(12, 64, 96, 3\) uint8"),
            (lambda f: write(f / file_name("train", "x"), x=patches(12, 0) / 255), r"float64, PatchCamelyon's is"),
            (lambda f: write(f / file_name("train", "x"), x=patches(11, 0)), "11 patches and .* 12 labels"),
            (lambda f: write(f / file_name("test", "y"), y=np.zeros((6, 1), np.uint8)), r"y is \(6, 1\) uint8"),
            (lambda f: write(f / file_name("test", "y"), y=np.full((6, 1, 1, 1), 2)), "y holds 2, and a label is 0 or"),
            (lambda f: write(f / file_name("train", "y"), y=np.ones((12, 1, 1, 1), int)), "no training patch of class"),
            (lambda f: write(f / file_name("valid", "y"), y=np.ones((4, 1, 1, 1), int)), "no validation .* 'normal'"),
            (
                lambda f: write(f / file_name("test", "y"), y=np.zeros((6, 1, 1, 1), int)),
                "no test .* 'tumour' .*no AUC",
            ),
        ],
    )
    def test_a_folder(self, folder: Path, spoil: Callable[[Path], object], said: str) -> None:
        spoil(folder)
        with pytest.raises(ConfigError, match=said):
            open_pcam(folder)

    def test_a_truncated_gzip_file_leaves_nothing(self, packed: Path) -> None:
        _truncate(packed / f"{file_name('train', 'x')}.gz")
        with pytest.raises(ConfigError, match=r"split_train_x\.h5\.gz cannot be unpacked .* truncated or damaged"):
            open_pcam(packed)
        assert all(path.suffix == ".gz" for path in packed.iterdir())

    def test_a_gzip_file_that_is_none(self, packed: Path) -> None:
        (packed / f"{file_name('train', 'x')}.gz").write_bytes(b"text")
        with pytest.raises(ConfigError, match="cannot be unpacked"):
            open_pcam(packed)

    def test_a_gzip_file_of_something_else_is_said_of_that_file(self, packed: Path) -> None:
        with gzip.open(packed / f"{file_name('train', 'x')}.gz", "wb") as file:
            file.write(b"text")
        with pytest.raises(ConfigError, match=r"split_train_x\.h5\.gz cannot be read as HDF5"):
            open_pcam(packed)
        assert all(path.suffix == ".gz" for path in packed.iterdir())

    def test_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="does not exist"):
            open_pcam(tmp_path / "none")

    @pytest.mark.parametrize(
        ("members", "said"),
        [
            ({"x": patches(6, 0)[..., :1]}, r"\(6, 96, 96, 1\)"),
            ({"x": patches(6, 0).astype(np.float32)}, "float32"),
            ({"y": np.arange(5)}, r"y \(5,\)"),
            ({"y": np.array([None] * 60)}, "no .npz of arrays x and y"),
            ({"y": np.arange(60)}, "y holds 2"),
        ],
    )
    def test_an_npz(self, tmp_path: Path, members: dict[str, np.ndarray], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            open_pcam(npz(tmp_path / "p.npz", **members))

    def test_an_npz_that_is_none(self, tmp_path: Path) -> None:
        whole = npz(tmp_path / "p.npz")
        _truncate(whole)
        with pytest.raises(ConfigError, match=r"no \.npz of arrays x and y"):
            open_pcam(whole)
        np.savez(whole, x=patches(3, 0))
        with pytest.raises(ConfigError, match=r"no \.npz of arrays x and y"):
            open_pcam(whole)

    def test_an_npz_too_small_to_be_split(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="none falls to"):
            open_pcam(npz(tmp_path / "p.npz", 2))

    @pytest.mark.parametrize("part", [1, 2])
    def test_an_npz_of_which_a_part_gets_one_class(self, tmp_path: Path, part: int) -> None:
        y = np.arange(60) % 2
        y[hash_split(patches(60, 9)) == part] = 1
        with pytest.raises(
            ConfigError, match=rf"p\.npz has no {['validation', 'test'][part - 1]} patch of class 'normal'"
        ):
            open_pcam(npz(tmp_path / "p.npz", y=y))


class TestSplit:
    def test_shares(self) -> None:
        x = np.random.default_rng(0).integers(0, 256, (4_000, 2, 2, 3), np.uint8)
        share = np.bincount(hash_split(x), minlength=3) / len(x)
        assert share == pytest.approx([0.70, 0.15, 0.15], abs=0.02)

    def test_a_patch_keeps_its_part_whatever_the_others(self) -> None:
        x = patches(40, 3)
        order = np.random.default_rng(1).permutation(40)
        assert np.array_equal(hash_split(x)[order], hash_split(x[order]))
        assert np.array_equal(hash_split(x)[:7], hash_split(x[:7]))

    def test_equal_patches_fall_on_one_side(self, tmp_path: Path) -> None:
        x = np.concatenate([patches(30, 3), patches(30, 3)])
        data = open_pcam(npz(tmp_path / "p.npz", x=x, y=np.arange(60) % 2))
        sides = [{patch.tobytes() for patch in contents(part)[0]} for part in (data.train, data.valid, data.test)]
        assert [len(side) for side in sides] == [data.train.size / 2, data.valid.size / 2, data.test.size / 2]
        assert len(set.union(*sides)) == sum(map(len, sides))

    def test_labels_go_with_their_patches(self, tmp_path: Path) -> None:
        x = patches(60, 3)
        y = (x[:, 0, 0, 0] > 127).astype(np.uint8).reshape(60, 1, 1, 1)
        data = open_pcam(npz(tmp_path / "p.npz", x=x, y=y))
        for part in (data.train, data.valid, data.test):
            pixels, labels = contents(part)
            assert np.array_equal(labels, pixels[:, 0, 0, 0] > 127)
        assert data.train.size + data.valid.size + data.test.size == 60
