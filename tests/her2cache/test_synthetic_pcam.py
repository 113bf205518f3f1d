"""Synthetic patches in PatchCamelyon's form: shapes, labels that are true, bytes that repeat."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from her2cache.errors import ConfigError
from her2cache.synthetic.pcam import has_tumour, write_synthetic_pcam
from her2cache.units import PatchBatch

SIZES = {"train": 32, "valid": 4, "test": 4}


@pytest.fixture(scope="module")
def pcam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_pcam(tmp_path_factory.mktemp("pcam"), 32, workers=1)


def member(folder: Path, part: str, name: str) -> np.ndarray:
    with h5py.File(folder / f"camelyonpatch_level_2_split_{part}_{name}.h5") as file:
        assert list(file) == [name]
        return file[name][:]  # pyright: ignore[reportReturnType, reportIndexIssue]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_six_files_of_the_published_form(pcam: Path) -> None:
    assert len(list(pcam.iterdir())) == 6
    for part, n in SIZES.items():
        x, y = member(pcam, part, "x"), member(pcam, part, "y")
        assert (x.shape, x.dtype) == ((n, 96, 96, 3), np.uint8)
        assert (y.shape, y.dtype) == ((n, 1, 1, 1), np.uint8)
        assert y.mean() == 0.5


def test_no_patch_occurs_twice(pcam: Path) -> None:
    patches = [patch.tobytes() for part in SIZES for patch in member(pcam, part, "x")]
    assert len(set(patches)) == sum(SIZES.values())


def test_only_the_centre_decides() -> None:
    tumour = np.zeros((2 * 96, 3 * 96), np.bool_)
    tumour[31, 40] = tumour[64, 40] = tumour[40, 31] = tumour[40, 64] = True  # around the centre of the first patch
    tumour[32, 96 + 32] = tumour[63, 2 * 96 + 63] = True  # corners of the centres of the next two
    tumour[96:, :32] = True
    assert has_tumour(tumour).tolist() == [[False, True, True], [False, False, False]]


def haematoxylin_share(patches: PatchBatch) -> np.ndarray:
    """Share of bluish pixels in the centre: nests have them between nuclei, too."""
    centre = patches[:, 32:64, 32:64].astype(np.int64)
    return (centre[..., 2] - centre[..., 0] > 10).mean(axis=(1, 2))


def test_labels_are_of_the_patches_beside_them(pcam: Path) -> None:
    x, y = member(pcam, "train", "x"), member(pcam, "train", "y").reshape(-1)
    share = haematoxylin_share(x)
    assert share[y == 1].mean() > share[y == 0].mean() + 0.1


@pytest.mark.slow
def test_bytes_follow_the_seed_not_the_workers(pcam: Path, tmp_path: Path) -> None:
    steps = list[tuple[int, int]]()
    again = write_synthetic_pcam(tmp_path / "again", 32, workers=2, progress=lambda *step: steps.append(step))
    assert digests(again) == digests(pcam)
    assert steps[-1] == (40, 40)


@pytest.mark.slow
def test_another_seed_gives_other_patches_under_the_same_labels(pcam: Path, tmp_path: Path) -> None:
    other = write_synthetic_pcam(tmp_path, 16, seed=1, workers=1)
    assert digests(other).keys() == digests(pcam).keys()
    assert not np.array_equal(member(other, "train", "x"), member(pcam, "train", "x")[:16])
    assert np.array_equal(member(other, "train", "y"), member(pcam, "train", "y")[:16])


@pytest.mark.parametrize(
    ("patches", "options", "said"),
    [
        (0, {}, "multiple of 16"),
        (100, {}, "multiple of 16"),
        (16, {"seed": -1}, "seed"),
        (16, {"workers": 0}, "worker"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, patches: int, options: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        write_synthetic_pcam(tmp_path / "out", patches, **options)  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        write_synthetic_pcam(tmp_path / "out", 16, workers=1)
