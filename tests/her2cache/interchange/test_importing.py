"""Files made by hand after the code of each tool, imported; and files that are wrong."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from her2cache.cohort import Slide
from her2cache.errors import ConfigError, StoreError
from her2cache.interchange.importing import ImportOptions, ImportReport, import_features
from her2cache.interchange.patches import Given
from her2cache.store.audit import verify
from her2cache.store.reader import FeatureStore
from her2cache.store.writer import SlideWriter
from tests.cohorts import slide_file
from tests.her2cache.interchange.handmade import (
    DIM,
    N,
    clam_slide,
    features,
    grid,
    stamp_slide,
    trident_slide,
)
from tests.stores import expected_order, files_under

CLAM = Given(mpp=0.5)


def stored(folder: Path, report: ImportReport) -> FeatureStore:
    """The store, once it is known to be whole."""
    assert report.space is not None
    store = FeatureStore.open(folder / "store")
    assert [checked.problem for checked in verify(store.records)] == [""] * len(store.slides(report.space.key))
    return store


def bring(folder: Path, source: Path, tool: str, slides: list[Slide] | None = None, **options: object) -> ImportReport:
    settings = {"tool": tool, "embedder": "uni"} | options
    return import_features(source, folder / "store", ImportOptions(**settings), slides)  # pyright: ignore[reportArgumentType]


def reason(report: ImportReport, slide_id: str) -> str:
    (found,) = [one for one in report.imported if one.slide_id == slide_id]
    assert found.status == "failed"
    return found.reason


def slide(path: Path, mpp: float | None = 0.25) -> Slide:
    return Slide(path.stem, f"case-{path.stem}", path, "HE", 1, mpp=mpp)


def holds(store: FeatureStore, slide_id: str, coords: np.ndarray, values: np.ndarray) -> None:
    """The store has these rows, in the order of its own."""
    (space,) = store.spaces()
    order = expected_order(slide_id, coords.astype(np.int32))
    assert np.array_equal(store.coords(slide_id, space), coords[order])
    assert np.array_equal(store.features(slide_id, space), values[order])
    assert store.features(slide_id, space).dtype == values.dtype


@pytest.mark.parametrize("level", [0, 1])
def test_clam_with_its_coordinates(tmp_path: Path, level: int) -> None:
    for k in range(2):
        clam_slide(tmp_path / "clam", f"s{k}", seed=k, level=level)
    given = Given(mpp=0.5, patches=tmp_path / "clam" / "patches")
    report = bring(tmp_path, tmp_path / "clam", "clam", given=given)
    assert [(one.slide_id, one.status, one.patches) for one in report.imported] == [
        ("s0", "done", N),
        ("s1", "done", N),
    ]
    store = stored(tmp_path, report)
    holds(store, "s1", grid(), features(seed=1))
    record = store.record("s0", "uni")
    assert record.patch_level0_px == 256 * 2**level
    assert (record.slide["read"]["level"], record.slide["read"]["downsample"]) == (level, 2.0**level)
    assert (record.n_planned, record.dim, record.dtype) == (N, DIM, "float32")


def test_clam_with_sizes_instead(tmp_path: Path) -> None:
    clam_slide(tmp_path / "clam", "s0")
    given = Given(patch_px=256, patch_level0_px=512, mpp=0.5)
    report = bring(tmp_path, tmp_path / "clam", "clam", given=given)
    assert stored(tmp_path, report).record("s0", "uni").patch_level0_px == 512


@pytest.mark.parametrize(
    ("given", "option"),
    [
        (Given(), "--patch-px"),
        (Given(patch_px=256), "--patch-level0-px"),
        (Given(patch_px=1, patch_level0_px=1), "--mpp"),
    ],
)
def test_clam_names_the_option_that_is_missing(tmp_path: Path, given: Given, option: str) -> None:
    clam_slide(tmp_path / "clam", "s0")
    assert option in reason(bring(tmp_path, tmp_path / "clam", "clam", given=given), "s0")
    assert not (tmp_path / "store").exists()


def test_clam_tensors_need_coordinates(tmp_path: Path) -> None:
    clam_slide(tmp_path / "clam", "s0")
    tensors = tmp_path / "clam" / "pt_files"
    assert "--patches" in reason(bring(tmp_path, tensors, "clam", given=CLAM), "s0")
    given = Given(mpp=0.5, patches=tmp_path / "clam")
    holds(stored(tmp_path, bring(tmp_path, tensors, "clam", given=given)), "s0", grid(), features())


def test_clam_refuses_another_patching(tmp_path: Path) -> None:
    clam_slide(tmp_path / "clam", "s0")
    clam_slide(tmp_path / "other", "s0", coords=grid(N - 1))
    (tmp_path / "empty").mkdir()
    for folder, said in (("other", "not those of"), ("empty", "has no s0.h5")):
        given = Given(mpp=0.5, patches=tmp_path / folder)
        assert said in reason(bring(tmp_path, tmp_path / "clam", "clam", given=given), "s0")


@pytest.mark.parametrize("start", ["", "20x_256px_0px_overlap", "20x_256px_0px_overlap/features_uni_v1"])
@pytest.mark.parametrize("whole", [True, False])
def test_trident(tmp_path: Path, start: str, whole: bool) -> None:
    trident_slide(tmp_path / "job", "s0", whole=whole)
    report = bring(tmp_path, tmp_path / "job" / start, "trident")
    store = stored(tmp_path, report)
    holds(store, "s0", grid(), features())
    (space,) = store.spaces()
    assert space.document["patch"] == {"mpp": 0.5, "patch_px": 256, "stride_px": 256}
    assert space.document["imported"] == {"tool": "trident", "made_by": "uni_v1"}
    record = store.record("s0", space)
    assert (record.slide["width"], record.slide["height"], record.patch_level0_px) == (8192, 4096, 512)
    assert (record.slide["mpp"], record.slide["mpp_source"]) == (0.25, "sizes of its patches")
    assert (record.slide["path"], record.slide["bytes"], record.slide["sha256"]) == ("", None, None)
    assert set(record.slide["imported"]) == {"tool", "file", "bytes", "mtime_ns", "sha256"}
    assert set(record.made) == {"versions", "at"}


def test_trident_asks_which_of_several_networks(tmp_path: Path) -> None:
    base = trident_slide(tmp_path / "job", "s0").parents[1]
    (base / "features_uni").mkdir()
    (base / "features_uni" / "s0.h5").write_bytes((base / "features_uni_v1" / "s0.h5").read_bytes())
    assert bring(tmp_path, tmp_path / "job", "trident").imported[0].status == "done"  # the embedder's name decides
    with pytest.raises(ConfigError, match="several folders"):
        bring(tmp_path, tmp_path / "job", "trident", embedder="other")


def test_slides_of_another_patching_are_left_out(tmp_path: Path) -> None:
    trident_slide(tmp_path / "job", "s0")
    trident_slide(tmp_path / "job", "s1", patch_size=512)
    trident_slide(tmp_path / "job", "s2", target_magnification=10)
    trident_slide(tmp_path / "job", "s3", patch_size_level0=511.5)  # another scanner is no other space
    report = bring(tmp_path, tmp_path / "job", "trident")
    assert [one.status for one in report.imported] == ["done", "failed", "failed", "done"]
    assert "patch_px 512 instead of 256" in reason(report, "s1")
    assert "mpp 1.0 instead of 0.5" in reason(report, "s2")


@pytest.mark.parametrize(("version", "given"), [("2.3.0", Given()), ("2.0.1", Given(patch_px=224))])
def test_stamp_takes_the_scale_from_the_cohort(tmp_path: Path, version: str, given: Given) -> None:
    stamp_slide(tmp_path / "stamp" / "site", "s0", version=version)
    cohort = [slide(tmp_path / "s0.svs", mpp=0.2527)]
    report = bring(tmp_path, tmp_path / "stamp", "stamp", cohort, given=given)
    store = stored(tmp_path, report)
    cells = np.stack([np.arange(N) // 4, np.arange(N) % 4], axis=1)
    holds(store, "s0", np.rint(cells * 256 / 0.2527), features().astype(np.float16))
    record = store.record("s0", "uni")
    assert record.patch_level0_px == 256 / 0.2527
    assert (record.slide["mpp"], record.slide["mpp_source"]) == (0.2527, "cohort")
    assert "does not exist" in report.imported[0].notes[0]


def test_stamp_takes_the_scale_from_the_slide(tmp_path: Path) -> None:
    stamp_slide(tmp_path / "stamp", "s0", side_um=4.0)
    path = slide_file(tmp_path / "s0.svs")  # 64 px at 1.27 um/px
    report = bring(tmp_path, tmp_path / "stamp", "stamp", [slide(path, mpp=None)])
    made = stored(tmp_path, report).record("s0", "uni").slide
    assert (made["mpp"], made["mpp_source"], made["width"], made["height"]) == (1.27, "file", 64, 64)
    assert (made["path"], made["bytes"]) == (str(path.resolve()), path.stat().st_size)
    assert len(made["sha256"]) == 64


def test_stamp_without_a_scale_or_a_unit(tmp_path: Path) -> None:
    path = stamp_slide(tmp_path / "stamp", "s0")
    assert "--cohort" in reason(bring(tmp_path, tmp_path / "stamp", "stamp"), "s0")
    with h5py.File(path, "r+") as file:
        del file.attrs["tile_size_um"]
    assert "STAMP before 2.0" in reason(bring(tmp_path, tmp_path / "stamp", "stamp"), "s0")
    with h5py.File(path, "r+") as file:
        file.attrs["feat_type"] = "slide"
    assert "one vector a slide" in reason(bring(tmp_path, tmp_path / "stamp", "stamp"), "s0")


def test_the_cohort_names_the_slides(tmp_path: Path) -> None:
    trident_slide(tmp_path / "job", "scan-7")
    trident_slide(tmp_path / "job", "stranger")
    row = Slide("A", "case", tmp_path / "scan-7.svs", "HE")
    report = bring(tmp_path, tmp_path / "job", "trident", [row])
    assert [(one.slide_id, one.status) for one in report.imported] == [("A", "done"), ("stranger", "skipped")]
    holds(stored(tmp_path, report), "A", grid(), features())


def test_patches_beyond_the_slide_are_another_slides(tmp_path: Path) -> None:
    trident_slide(tmp_path / "job", "s0")
    path = slide_file(tmp_path / "s0.svs")
    assert "another slide's" in reason(bring(tmp_path, tmp_path / "job", "trident", [slide(path)]), "s0")


def test_a_space_says_that_it_was_imported_and_has_a_key_of_its_own(tmp_path: Path) -> None:
    trident_slide(tmp_path / "job", "s0")
    keys = set[str]()
    for options in ({}, {"embedder": "virchow"}, {"dtype": "float16"}, {"given": Given(mpp=0.4)}):
        report = bring(tmp_path, tmp_path / "job", "trident", **options)
        assert report.space is not None
        keys.add(report.space.key)
    assert len(keys) == 4
    for space in FeatureStore.open(tmp_path / "store").spaces():
        assert space.document["tissue"] is None
        assert set(space.document["embedder"]) == {"name", "dim", "weights_sha256"}
        assert space.document["imported"]["tool"] == "trident"
        json.dumps(space.document, allow_nan=False)


def test_float16_is_asked_for_and_never_overflows(tmp_path: Path) -> None:
    trident_slide(tmp_path / "job", "s0")
    path = trident_slide(tmp_path / "job", "s1")
    with h5py.File(path, "r+") as file:
        file["features"][3, 1] = 70_000.0
    report = bring(tmp_path, tmp_path / "job", "trident", dtype="float16")
    holds(stored(tmp_path, report), "s0", grid(), features().astype(np.float16))
    assert "7e+04, which float16 cannot hold" in reason(report, "s1")
    assert "--dtype float32" in reason(report, "s1")


def test_float32_from_stamp_is_not_rounded_unasked(tmp_path: Path) -> None:
    path = stamp_slide(tmp_path / "stamp", "s0")
    with h5py.File(path, "r+") as file:
        del file["feats"]
        file["feats"] = features()
    cohort = [slide(tmp_path / "s0.svs")]
    assert "would round" in reason(bring(tmp_path, tmp_path / "stamp", "stamp", cohort), "s0")
    report = bring(tmp_path, tmp_path / "stamp", "stamp", cohort, dtype="float32")
    assert np.array_equal(np.sort(stored(tmp_path, report).features("s0", "uni"), 0), np.sort(features(), 0))


def test_an_import_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    trident_slide(tmp_path / "job", "s0")
    bad = trident_slide(tmp_path / "job", "s1", seed=1)
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    first = bring(tmp_path, tmp_path / "job", "trident")
    assert [one.status for one in first.imported] == ["done", "failed"]
    store = stored(tmp_path, first)
    assert [failure.slide_id for failure in store.failures("uni")] == ["s1"]
    before = store.record("s0", "uni")
    bad.write_bytes(whole)
    trident_slide(tmp_path / "job", "s2", seed=2)
    second = bring(tmp_path, tmp_path / "job", "trident")
    assert [one.status for one in second.imported] == ["skipped", "done", "done"]
    assert store.record("s0", "uni") == before
    assert not list(stored(tmp_path, second).failures("uni"))


def test_an_import_that_is_interrupted_leaves_nothing_of_its_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("s0", "s1", "s2"):
        trident_slide(tmp_path / "job", name)

    def interrupt(self: SlideWriter, made: object) -> str:
        if self._shape.slide_id == "s1":
            raise KeyboardInterrupt
        return commit(self, made)  # pyright: ignore[reportArgumentType]

    commit = SlideWriter.commit
    with monkeypatch.context() as patched:
        patched.setattr(SlideWriter, "commit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            bring(tmp_path, tmp_path / "job", "trident")
    assert [path.name for path in (tmp_path / "store").glob("commits/*/*")] == ["s0.json"]
    assert not list((tmp_path / "store").glob("attempts/s1/*/*"))
    report = bring(tmp_path, tmp_path / "job", "trident")
    assert [one.status for one in report.imported] == ["skipped", "done", "done"]
    assert stored(tmp_path, report).slides("uni") == ["s0", "s1", "s2"]


def test_features_that_changed_are_imported_anew_only_when_asked(tmp_path: Path) -> None:
    path = trident_slide(tmp_path / "job", "s0")
    stored(tmp_path, bring(tmp_path, tmp_path / "job", "trident"))
    trident_slide(tmp_path / "job", "s0", seed=9)
    os.utime(path, ns=(1, 1))
    assert "--replace" in reason(bring(tmp_path, tmp_path / "job", "trident"), "s0")
    report = bring(tmp_path, tmp_path / "job", "trident", replace=True)
    holds(stored(tmp_path, report), "s0", grid(), features(seed=9))


def _without(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file[name]

    return damage


def _with(name: str, values: np.ndarray) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            described = dict(file[name].attrs)
            del file[name]
            file.create_dataset(name, data=values).attrs.update(described)

    return damage


def _told(**attributes: object) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file["coords"].attrs.update(attributes)

    return damage


def _linked(path: Path) -> None:
    other = path.with_name(".other")
    other.write_bytes(path.read_bytes())
    with h5py.File(path, "r+") as file:
        del file["features"]
        file["features"] = h5py.ExternalLink(str(other), "/features")


def _hollow(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["features"]
        file.create_dataset("features", shape=(1 << 34, 1024), dtype="f4", chunks=(64, 1024))


def _poked(path: Path) -> None:
    """Breaks the inside, not the head, so that it shows as the data is read."""
    with h5py.File(path, "r+") as file:
        values = file["features"][()]
        del file["features"]
        file.create_dataset("features", data=values, chunks=(N, DIM), compression="gzip", fletcher32=True)
        offset = file["features"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[offset + 4 : offset + 40] = bytes(36)
    path.write_bytes(data)


NAN, FAR = grid().astype(np.float64), grid() * 2**40
NAN[2, 0] = np.nan
HOLED = features()
HOLED[1, 1] = np.inf

HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no features": (_without("features"), "no dataset 'features'"),
    "no coords": (_without("coords"), "no dataset 'coords'"),
    "NaN in coords": (_with("coords", NAN), "coords hold NaN"),
    "coords beyond int32": (_with("coords", FAR), "beyond any slide"),
    "coords of fractions": (_with("coords", grid() + 0.25), "no whole pixels"),
    "coords of three columns": (_with("coords", np.zeros((N, 3), np.int64)), "not numbers (n, 2)"),
    "coords of text": (_with("coords", np.full((N, 2), b"1")), "not numbers (n, 2)"),
    "fewer coords": (_with("coords", grid(N - 1)), "12 features but 11 coordinates"),
    "no patch": (_with("coords", np.zeros((0, 2), np.int64)), "holds no patch"),
    "infinite features": (_with("features", HOLED), "1 of 12 features hold NaN or infinity"),
    "features of one number": (_with("features", np.zeros(N, np.float32)), "not (n, dim)"),
    "whole features": (_with("features", np.zeros((N, DIM), np.int64)), "features are int64"),
    "another dim": (_with("features", features(dim=DIM + 1)), "dim 7 instead of 6, as the files before have it"),
    "no size": (_told(patch_size_level0="None"), "--patch-level0-px"),
    "size of nothing": (_told(patch_size_level0=0), "not a number that makes sense"),
    "size of text": (_told(patch_size="big"), "not a number that makes sense"),
    "size of many": (_told(patch_size=[1, 2]), "not a number that makes sense"),
    "a link to elsewhere": (_linked, "lies in another file"),
    "more than it holds": (_hollow, "hardly any was written"),
    "broken inside": (_poked, "truncated or damaged"),
    "truncated": (lambda path: os.truncate(path, path.stat().st_size // 2), "truncated or damaged"),
    "empty": (lambda path: os.truncate(path, 0), "(0 bytes) cannot be read"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"features": [1]})), "cannot be read as HDF5"),
    "text": (lambda path: path.write_text("no"), "cannot be read as HDF5"),
}


def test_bad_files_fail_alone_and_leave_nothing(tmp_path: Path) -> None:
    for name in ("a", *HOSTILE, "z"):
        trident_slide(tmp_path / "job", name)
    base = tmp_path / "job" / "20x_256px_0px_overlap"
    for name, (damage, _) in HOSTILE.items():
        damage(base / "features_uni_v1" / f"{name}.h5")
    _told(patch_size_level0="None")(base / "patches" / "no size_patches.h5")
    report = bring(tmp_path, tmp_path / "job", "trident")
    found = {one.slide_id: one for one in report.imported}
    assert (found.pop("a").status, found.pop("z").status) == ("done", "done")
    assert {name: one.status for name, one in found.items()} == dict.fromkeys(sorted(HOSTILE), "failed")
    unsaid = {name: found[name].reason for name, (_, said) in HOSTILE.items() if said not in found[name].reason}
    assert unsaid == {}
    assert all(str(base) in one.reason for one in found.values())
    store = stored(tmp_path, report)
    assert store.slides("uni") == ["a", "z"]
    assert sorted(failure.slide_id for failure in store.failures("uni")) == sorted(HOSTILE)
    assert len(list((tmp_path / "store").glob("attempts/*/*/*"))) == 2


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("bomb-went-off",)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", pickle.dumps(_Bomb()), pickle.dumps([1.0])])
def test_a_pickle_is_never_run(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clam_slide(tmp_path / "clam", "s0")
    path = tmp_path / "clam" / "pt_files" / "s0.pt"
    path.write_bytes(content)
    given = Given(mpp=0.5, patches=tmp_path / "clam")
    report = bring(tmp_path, path.parent, "clam", given=given)
    assert str(path) in reason(report, "s0")
    assert not Path("bomb-went-off").exists()
    assert not (tmp_path / "store").exists()


def test_two_files_of_one_slide_both_fail(tmp_path: Path) -> None:
    for place, name in (("one", "s0"), ("two", "S0"), ("two", "s1")):
        stamp_slide(tmp_path / "stamp" / place, name)
    cohort = [slide(tmp_path / f"{name}.svs") for name in ("s0", "S0", "s1")]
    report = bring(tmp_path, tmp_path / "stamp", "stamp", cohort)
    assert [one.status for one in report.imported] == ["failed", "failed", "done"]
    assert all("several files" in one.reason for one in report.imported[:2])
    assert stored(tmp_path, report).slides("uni") == ["s1"]


@pytest.mark.parametrize("name", ["a..b", "%2e%2e%2fescape", "-rf", "a b", "x" * 190, "CON", "ünï"])
def test_names_of_files_stay_within_the_store(tmp_path: Path, name: str) -> None:
    """Names inside a file count for nothing, and that of the file is encoded."""
    trident_slide(tmp_path / "job", name, savetodir="/etc")
    path = tmp_path / "job" / "20x_256px_0px_overlap" / "features_uni_v1" / f"{name}.h5"
    with h5py.File(path, "r+") as file:
        file["coords"].attrs["name"] = "../../../escape"
    before = set(tmp_path.iterdir())
    report = bring(tmp_path, tmp_path / "job", "trident")
    assert set(tmp_path.iterdir()) - before == {tmp_path / "store"}
    assert stored(tmp_path, report).slides("uni") == [report.imported[0].slide_id]
    assert all(
        Path(at).parts[0] in {"store.json", "spaces", "commits", "attempts"} for at in files_under(tmp_path / "store")
    )


def test_a_name_that_no_store_can_have_fails(tmp_path: Path) -> None:
    trident_slide(tmp_path / "job", "ü" * 80)
    trident_slide(tmp_path / "job", "s0")
    report = bring(tmp_path, tmp_path / "job", "trident")
    assert [one.status for one in report.imported] == ["done", "failed"]
    assert "shorten it" in report.imported[1].reason


def test_a_source_without_features(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        bring(tmp_path, tmp_path / "nowhere", "stamp")
    for tool in ("clam", "trident", "stamp"):
        with pytest.raises(ConfigError, match="holds no features"):
            bring(tmp_path, tmp_path, tool)


def test_a_place_that_can_be_no_store_ends_the_import(tmp_path: Path) -> None:
    trident_slide(tmp_path / "job", "s0")
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match="is a file"):
        bring(tmp_path, tmp_path / "job", "trident")


def test_scales_that_contradict_each_other_are_noted(tmp_path: Path) -> None:
    trident_slide(tmp_path / "job", "s0")
    for mpp, notes in ((0.23, 1), (0.5, 2)):  # that the slide's file is not there is the first
        report = bring(tmp_path, tmp_path / "job", "trident", [slide(tmp_path / "s0.svs", mpp)], replace=True)
        assert len(report.imported[0].notes) == notes
    assert "256 um by the slide's scale (0.5 um/px), but 128 um" in report.imported[0].notes[1]


def test_another_dim_than_asked_for(tmp_path: Path) -> None:
    trident_slide(tmp_path / "job", "s0")
    assert "not --dim 7" in reason(bring(tmp_path, tmp_path / "job", "trident", dim=7), "s0")
    assert not (tmp_path / "store").exists()
