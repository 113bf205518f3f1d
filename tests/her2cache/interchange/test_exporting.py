"""What is written for each tool: attribute by attribute, in raster order, whole or not at all; and read by torchmil."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from her2cache.cohort import Slide
from her2cache.errors import ConfigError
from her2cache.interchange import files
from her2cache.interchange.exporting import Exported, ExportOptions, export_features
from her2cache.interchange.importing import ImportOptions, import_features
from her2cache.interchange.patches import Given
from her2cache.store.reader import FeatureStore
from her2cache.store.writer import SlideShape
from tests.her2cache.interchange.handmade import N, clam_slide, features, grid, stamp_slide, trident_slide
from tests.stores import DIM, drawn, files_under, filled, planned, space

PLACES = planned(20)
RASTER = np.lexsort((PLACES[:, 0], PLACES[:, 1]))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Two slides of 20 patches under two views; nothing is known of their files."""
    store = FeatureStore.create(tmp_path / "store")
    key = store.add_space(space(views=2))
    for k, slide_id in enumerate(("s0", "s1")):
        filled(store, slide_id, key, views=2, seed=k).commit({})
    return store


def export(store: FeatureStore, out: Path, tool: str, *slides: str, **options: Any) -> list[Exported]:
    return export_features(store, store.find_space("net"), ExportOptions(tool, out, **options), slides)


def attributes(thing: Any) -> dict[str, Any]:
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in thing.attrs.items()}


def test_clam(store: FeatureStore, tmp_path: Path) -> None:
    import torch

    out = tmp_path / "out"
    assert [one.status for one in export(store, out, "clam")] == ["done", "done"]
    assert sorted(files_under(out)) == [f"{part}/s{k}.{part[:2]}" if part != "patches" else f"patches/s{k}.h5"
                                        for part in ("h5_files", "patches", "pt_files") for k in range(2)]  # fmt: skip
    with h5py.File(out / "h5_files" / "s1.h5") as file:
        assert (sorted(file), attributes(file["features"]), attributes(file["coords"])) == (
            ["coords", "features"],
            {},
            {},
        )
        assert (file["features"].dtype, file["coords"].dtype) == (np.float32, np.int32)
        assert np.array_equal(file["coords"][()], PLACES[RASTER])
        assert np.array_equal(file["features"][()], drawn(20, 2, seed=1)[0][RASTER])
        tensor = torch.load(out / "pt_files" / "s1.pt", weights_only=True)
        assert tensor.dtype == torch.float32
        assert np.array_equal(tensor.numpy(), file["features"][()])
    with h5py.File(out / "patches" / "s1.h5") as file:
        assert sorted(file) == ["coords"]
        found = attributes(file["coords"])
    assert found == {
        "patch_size": 96,
        "patch_level": 0,
        "downsample": [1.0, 1.0],
        "name": "s1",
        "save_path": str(out / "patches"),
        "patch_level0_px": 96.0,
    }


def test_trident(store: FeatureStore, tmp_path: Path) -> None:
    assert [one.status for one in export(store, tmp_path / "out", "trident", "s0", view=1)] == ["done"]
    base = tmp_path / "out" / "20x_96px_0px_overlap"
    assert sorted(files_under(base)) == ["features_net/s0.h5", "patches/s0_patches.h5"]
    expected = {
        "patch_size": 96,
        "patch_size_level0": 96,
        "level0_magnification": 20,
        "target_magnification": 20,
        "overlap": 0,
        "name": "s0",
        "savetodir": str(base),
    }
    with h5py.File(base / "patches" / "s0_patches.h5") as file:
        assert (sorted(file), attributes(file["coords"])) == (["coords"], expected)
        assert file["coords"].dtype == np.int64
    with h5py.File(base / "features_net" / "s0.h5") as file:
        assert (sorted(file), attributes(file["coords"])) == (["coords", "features"], expected)
        named = {"name": "s0", "savetodir": str(base / "features_net"), "encoder": "net"}
        assert attributes(file["features"]) == named
        assert file["features"].dtype == np.float32
        assert np.array_equal(file["coords"][()], PLACES[RASTER])
        assert np.array_equal(file["features"][()], drawn(20, 2, seed=0)[1][RASTER])


def test_stamp(store: FeatureStore, tmp_path: Path) -> None:
    export(store, tmp_path / "out", "stamp")
    with h5py.File(tmp_path / "out" / "s0.h5") as file:
        found = attributes(file)
        assert (len(found.pop("code_hash")), sorted(file)) == (8, ["coords", "feats"])
        assert (file["coords"].dtype, file["feats"].dtype) == (np.float32, np.float16)
        assert np.array_equal(file["coords"][()], PLACES[RASTER] * 0.5)
        assert np.array_equal(file["feats"][()], drawn(20, 2)[0][RASTER])
    assert found == {
        "stamp_version": "2.1.0",
        "extractor": "net",
        "unit": "um",
        "tile_size_um": 48.0,
        "tile_size_px": 96,
        "feat_type": "tile",
        "patch_mpp": 0.5,
    }


def test_what_is_known_of_the_slide_is_written(tmp_path: Path) -> None:
    """A slide of 0.2505 um/px whose patches are read from a level four times smaller and brought to 0.5."""
    store = FeatureStore.create(tmp_path / "store")
    key = store.add_space(space())
    side = 96 * 0.5 / 0.2505
    known = {"width": 8000, "height": 4000, "mpp": 0.2505, "read": {"level": 1, "downsample": 4.0}}
    shape = SlideShape("s", key, planned(5, 192), 1, DIM, "float16", side, known)
    writer = store.writer(shape)
    writer.write(0, drawn(5), np.ones(5, np.bool_))
    writer.commit({})
    for tool in ("clam", "trident"):
        export(store, tmp_path / tool, tool)
    with h5py.File(tmp_path / "clam" / "patches" / "s.h5") as file:
        found = attributes(file["coords"])
    assert (found["patch_size"], found["patch_level"], found["downsample"]) == (48, 1, [4.0, 4.0])
    assert (found["level_dim"], found["downsampled_level_dim"]) == ([2000, 1000], [2000, 1000])
    (path,) = tmp_path.glob("trident/*/patches/s_patches.h5")
    with h5py.File(path) as file:
        found = attributes(file["coords"])
    assert (found["level0_width"], found["level0_height"], found["patch_size_level0"]) == (8000, 4000, side)
    assert found["level0_magnification"] == pytest.approx(10 / 0.2505)


@pytest.mark.parametrize("tool", ["clam", "trident", "stamp"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_imported_slide_comes_out_as_it_went_in(tmp_path: Path, tool: str, dtype: str) -> None:
    """Up to the order of rows, which is raster order."""
    job = tmp_path / "job"
    if tool == "clam":
        clam_slide(job, "s")
    elif tool == "trident":
        trident_slide(job, "s")
    else:
        stamp_slide(job, "s", side_um=257.3)
    slide = Slide("s", "case", tmp_path / "s.svs", "HE", mpp=0.2527)
    given = Given(mpp=0.5, patches=job / "patches") if tool == "clam" else Given()
    options = ImportOptions(tool, "net", dtype=dtype, given=given)
    assert import_features(job, tmp_path / "store", options, [slide]).imported[0].status == "done"
    assert export(FeatureStore.open(tmp_path / "store"), tmp_path / "out", tool)[0].status == "done"
    names = {"clam": "h5_files/s.h5", "trident": "20x_256px_0px_overlap/features_{}/s.h5", "stamp": "s.h5"}
    with (
        h5py.File(job / names[tool].format("uni_v1")) as before,
        h5py.File(tmp_path / "out" / names[tool].format("net")) as after,
    ):
        coords = before["coords"][()]
        order = np.lexsort((coords[:, 0], coords[:, 1]))
        assert np.array_equal(after["coords"][()], coords[order])
        values = before["feats" if tool == "stamp" else "features"][()][order]
        written = after["feats" if tool == "stamp" else "features"]
        assert written.dtype == values.dtype
        assert np.array_equal(written[()], values if dtype == "float32" else values.astype(np.float16))
        if tool == "trident":
            kept = {"patch_size", "patch_size_level0", "level0_magnification", "target_magnification", "overlap"}
            kept |= {"name", "level0_width", "level0_height"}
            assert {k: attributes(after["coords"])[k] for k in kept} == {
                k: attributes(before["coords"])[k] for k in kept
            }
        if tool == "stamp":
            assert attributes(after)["tile_size_um"] == 257.3


@pytest.mark.parametrize("tool", ["clam", "trident", "stamp"])
def test_a_slide_made_here_comes_back_through_each_tool(tmp_path: Path, tool: str) -> None:
    """Rows, places and sizes, though a patch's side is no whole number of px."""
    store = FeatureStore.create(tmp_path / "store")
    key = store.add_space(space())
    side = 96 * 0.5 / 0.2505
    known = {"width": 8000, "height": 4000, "mpp": 0.2505, "read": {"level": 1, "downsample": 4.0}}
    places = np.rint(planned(40, 1) * side).astype(np.int32)
    writer = store.writer(SlideShape("s", key, places, 1, DIM, "float16", side, known))
    writer.write(0, drawn(40), np.ones(40, np.bool_))
    writer.commit({})
    export(store, tmp_path / "out", tool)
    given = Given(mpp=0.5, patch_px=96, patches=tmp_path / "out" / "patches") if tool == "clam" else Given()
    cohort = [Slide("s", "case", tmp_path / "s.svs", "HE", mpp=0.2505)]
    options = ImportOptions(tool, "again", dtype="float16", given=given)
    assert import_features(tmp_path / "out", tmp_path / "other", options, cohort).imported[0].status == "done"
    other = FeatureStore.open(tmp_path / "other")
    assert np.array_equal(other.coords("s", "again"), store.coords("s", "net"))
    assert np.array_equal(other.features("s", "again"), store.features("s", "net"))
    record = other.record("s", "again")
    assert record.patch_level0_px == pytest.approx(side, rel=0 if tool != "stamp" else 1e-11)
    document = other.find_space("again").document
    assert (document["patch"]["mpp"], document["patch"]["patch_px"]) == (0.5, 96)


def test_stamp_refuses_what_float16_cannot_hold(tmp_path: Path) -> None:
    path = trident_slide(tmp_path / "job", "s")
    with h5py.File(path, "r+") as file:
        file["features"][0, 0] = -1e5
    import_features(tmp_path / "job", tmp_path / "store", ImportOptions("trident", "net"))
    (found,) = export(FeatureStore.open(tmp_path / "store"), tmp_path / "out", "stamp")
    assert "1e+05" in found.reason
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.slow  # torchmil takes 8 s to import
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_torchmil_itself_loads_the_export(store: FeatureStore, tmp_path: Path) -> None:
    pytest.importorskip("torchmil", reason="the extra bench is not installed")
    from torchmil.datasets import ProcessedMILDataset

    out = tmp_path / "out"
    done = export(store, out, "torchmil", her2_scores={"s0": 0, "s1": 3})
    assert [one.patch_size for one in done] == [96, 96]
    folders = [str(out / part) for part in ("features", "labels", "inst_labels", "coords")]
    found = ProcessedMILDataset(*folders, dist_thr=1.5 * 96, verbose=False)
    assert found.get_bag_names() == ["s0", "s1"]
    bag = found[1]
    assert np.array_equal(bag["X"].numpy(), drawn(20, 2, seed=1)[0][RASTER])
    assert (bag["Y"].tolist(), bag["y_inst"].tolist()) == ([3], [-1] * 20)
    assert np.array_equal(bag["coords"].numpy(), PLACES[RASTER])
    near = np.abs(PLACES[RASTER][:, None] - PLACES[RASTER][None]).max(axis=2) <= 96
    np.fill_diagonal(near, val=False)
    assert np.array_equal(bag["adj"].to_dense().numpy() > 0, near)  # the eight patches around each


@pytest.mark.slow  # torchmil takes 8 s to import
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_torchmil_itself_loads_an_export_for_trident(store: FeatureStore, tmp_path: Path) -> None:
    pytest.importorskip("torchmil", reason="the extra bench is not installed")
    from torchmil.datasets import TridentWSIDataset

    export(store, tmp_path / "out", "trident")
    (tmp_path / "labels.csv").write_text("wsi,label\ns0.svs,0\ns1.svs,3\n")
    base = f"{tmp_path / 'out' / '20x_96px_0px_overlap'}/"
    keys = ["X", "Y", "adj", "coords"]
    options: dict[str, Any] = {"wsi_name_col": "wsi", "wsi_label_col": "label", "load_at_init": False}
    found = TridentWSIDataset(base, str(tmp_path / "labels.csv"), "net", bag_keys=keys, patch_size=96, **options)
    bag = found[1]
    assert bag["Y"].tolist() == [3]
    assert np.array_equal(bag["coords"].numpy(), PLACES[RASTER] // 96)
    assert np.array_equal(bag["X"].numpy(), drawn(20, 2, seed=1)[0][RASTER])


def test_torchmil_needs_a_label(store: FeatureStore, tmp_path: Path) -> None:
    one, other = export(store, tmp_path / "out", "torchmil", her2_scores={"s1": 2})
    assert (one.status, other.status) == ("failed", "done")
    assert "has no label" in one.reason
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.npy")) == ["s1.npy"] * 4


@pytest.mark.parametrize("tool", ["clam", "trident", "stamp", "torchmil"])
def test_files_that_are_there_stay_unless_told_otherwise(store: FeatureStore, tmp_path: Path, tool: str) -> None:
    out, scores = tmp_path / "out", {"s0": 1, "s1": 1}
    export(store, out, tool, her2_scores=scores)
    before = files_under(out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert [one.status for one in export(store, out, tool, her2_scores=scores)] == ["skipped", "skipped"]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    other = export(store, out, tool, view=1, her2_scores=scores)
    assert [one.status for one in other] == ["failed", "failed"]
    assert "--replace" in other[0].reason
    assert files_under(out) == before
    lost = sorted(out.rglob("*s0*"))[0]
    lost.unlink()
    assert [one.status for one in export(store, out, tool, her2_scores=scores)] == ["done", "skipped"]
    assert files_under(out) == before
    assert [o.status for o in export(store, out, tool, view=1, her2_scores=scores, replace=True)] == ["done", "done"]
    assert files_under(out) != before
    assert sorted(files_under(out)) == sorted(before)


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_export_that_is_cut_off_leaves_no_half_files(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    """The third of a slide's three files fails: none of them is there, and the slide before it is whole."""
    export(store, tmp_path / "out", "clam", "s0")
    before = files_under(tmp_path / "out")
    flushed = list[int]()

    def flush(descriptor: int) -> None:
        flushed.append(descriptor)
        if len(flushed) == 3:
            raise fault

    monkeypatch.setattr(files.os, "fsync", flush)
    if fault is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            export(store, tmp_path / "out", "clam", "s1")
    else:
        (found,) = export(store, tmp_path / "out", "clam", "s1")
        assert "No space left" in found.reason
    assert files_under(tmp_path / "out") == before


@pytest.mark.parametrize("slide_id", ["../escape", "/etc/escape", "a\\b", ".hidden", "..", "line\nbreak"])
def test_ids_that_lead_elsewhere_are_refused(tmp_path: Path, slide_id: str) -> None:
    store = FeatureStore.create(tmp_path / "store")
    key = store.add_space(space())
    filled(store, slide_id, key).commit({})
    filled(store, "ünï 1", key).commit({})
    before = set(tmp_path.iterdir())
    for tool in ("clam", "trident", "stamp", "torchmil"):
        done = export(store, tmp_path / "out", tool, her2_scores={slide_id: 1, "ünï 1": 1})
        assert {one.slide_id: one.status for one in done} == {slide_id: "failed", "ünï 1": "done"}
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out"}
    assert all("ünï 1" in name for name in files_under(tmp_path / "out"))


def test_what_is_not_there_cannot_be_exported(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no features of 's9'"):
        export(store, tmp_path, "stamp", "s0", "s9")
    with pytest.raises(ConfigError, match="views 0 to 1, not 2"):
        export(store, tmp_path, "stamp", view=2)


def test_a_damaged_slide_fails_alone(store: FeatureStore, tmp_path: Path) -> None:
    from tests.stores import attempt_folder, flip_bit

    flip_bit(attempt_folder(store, "s0", space(views=2).key) / "features/c/0/0/0")
    one, other = export(store, tmp_path / "out", "stamp")
    assert (one.status, other.status) == ("failed", "done")
    assert sorted(files_under(tmp_path / "out")) == ["s1.h5"]


def test_hand_made_files_are_as_expected() -> None:
    """The order that the tests above start from is not raster order, so that sorting shows."""
    order = np.lexsort((grid()[:, 0], grid()[:, 1]))
    assert order.tolist() != list(range(N))
    assert not np.array_equal(features().astype(np.float16), features())
