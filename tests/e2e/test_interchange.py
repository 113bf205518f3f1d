"""`her2cache store import` and `export` as a user runs them, and training on what was imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from cluster.cli.main import main
from her2cache.cohort import write_cohort
from her2cache.store.reader import FeatureStore
from tests.commands import command
from tests.her2cache.interchange.handmade import clam_slide, stamp_slide, trident_slide
from tests.planted import PATCHES, planted_features, planted_slides
from tests.sweeps import study_of, train

EXPERIMENT = """\
[data]
cohort = "cohort.csv"
store = "store"
embedders = ["uni"]
views = 1
[splits]
folds = 2
test_slides = 4
[bags]
size = 20
per_epoch = 64
validation = 8
test = 8
[training]
learning_rate = [1e-3]
weight_decay = [1e-5]
epochs = 2
"""


def run(*arguments: object, code: int = 0) -> dict[str, Any]:
    """A verb in this process: the command itself takes a second to start, and each is started once below."""
    done = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def statuses(result: dict[str, Any]) -> dict[str, str]:
    return {item["id"]: item["status"] for item in result["items"]}


def test_trident_through_a_store_to_torchmil(tmp_path: Path) -> None:
    job, store = tmp_path / "job", tmp_path / "store"
    for k in range(3):
        trident_slide(job, f"s{k}", seed=k)
    whole = (bad := trident_slide(job, "s3")).read_bytes()
    bad.write_bytes(whole[:2000])
    given = ("store", "import", job, "--store", store, "--from", "trident", "--embedder", "uni")
    begun = command(*given, "--json")
    assert begun.returncode == 1, begun.stderr
    first = json.loads(begun.stdout)
    assert statuses(first) == {"s0": "done", "s1": "done", "s2": "done", "s3": "failed"}
    assert "truncated" in first["items"][3]["reason"]
    assert (first["space"]["imported"], first["ok"]) == ({"tool": "trident", "made_by": "uni_v1"}, False)
    bad.write_bytes(whole)
    second = run(*given)
    assert statuses(second) == {"s0": "skipped", "s1": "skipped", "s2": "skipped", "s3": "done"}

    assert run("store", "verify", store)["ok"]
    (space,) = run("store", "info", store)["spaces"]
    assert (space["name"], space["slides"], space["failed"], space["dim"]) == ("uni", 4, 0, 6)
    assert len(run("store", "ls", store)["slides"]) == 4

    (tmp_path / "cohort.csv").write_text(
        "slide_id,case_id,path,stain,her2_score\n" + "".join(f"s{k},c{k},s{k}.svs,HE,{k}\n" for k in range(3))
    )
    arguments = ("store", "export", store, "--space", "uni", "--to", "torchmil", "--out", tmp_path / "bags")
    assert "--cohort" in run(*arguments, code=2)["error"]
    cohort = ("--cohort", tmp_path / "cohort.csv")
    found = run(*arguments, *cohort, "--slide", "s2", "--slide", "s1")
    assert found["patch_size"] == {"s2": 512, "s1": 512}
    assert np.load(tmp_path / "bags" / "labels" / "s2.npy").tolist() == [2]
    assert statuses(run(*arguments, *cohort, code=1)) == {
        "s0": "done",
        "s1": "skipped",
        "s2": "skipped",
        "s3": "failed",
    }
    told = command(*arguments, *cohort, "--slide", "s0")
    assert "WSIDataset(patch_size=512), ProcessedMILDataset(dist_thr=768)" in told.stdout


def test_clam_and_stamp(tmp_path: Path) -> None:
    store = tmp_path / "store"
    clam_slide(tmp_path / "clam", "s0")
    stamp_slide(tmp_path / "stamp", "s0")
    given = ("store", "import", tmp_path / "clam", "--store", store, "--from", "clam", "--embedder", "resnet50")
    assert "--patches DIR" in run(*given, code=1)["items"][0]["reason"]
    assert not store.exists()
    done = command(*given, "--patches", tmp_path / "clam" / "patches", "--mpp", 0.5)
    assert done.returncode == 0, done.stderr
    assert "1 slide imported, 12 patches" in done.stdout
    assert "no slide files are known" in done.stdout
    (tmp_path / "cohort.csv").write_text(
        "slide_id,case_id,path,stain,her2_score,mpp\ns0,c,gone.svs,HE,1,0.25\ns1,d,x.svs,HE,0,0.25\n"
    )
    given = ("store", "import", tmp_path / "stamp", "--store", store, "--from", "stamp", "--embedder", "uni2")
    found = run(*given, "--cohort", tmp_path / "cohort.csv", "--dtype", "float32")
    assert found["space"]["dtype"] == "float32"
    assert "does not exist" in found["items"][0]["reason"]
    for tool in ("clam", "trident", "stamp"):
        assert run("store", "export", store, "--space", "uni2", "--to", tool, "--out", tmp_path / tool / "out")["ok"]
    with h5py.File(tmp_path / "stamp" / "s0.h5") as before, h5py.File(tmp_path / "stamp" / "out" / "s0.h5") as after:
        coords = before["coords"][()]
        order = np.lexsort((coords[:, 0], coords[:, 1]))
        assert np.array_equal(after["feats"][()], before["feats"][()][order])
        assert np.array_equal(after["coords"][()], coords[order])
    assert run("store", "verify", store)["ok"]


@pytest.mark.usefixtures("torch_threads")
def test_training_needs_no_slide_files(tmp_path: Path) -> None:
    slides = planted_slides(tmp_path)  # their files are nowhere
    write_cohort(slides, tmp_path / "cohort.csv")
    places = np.stack([np.arange(PATCHES) % 8, np.arange(PATCHES) // 8], axis=1)
    for k, slide in enumerate(slides):
        path = trident_slide(tmp_path / "job", slide.slide_id)
        with h5py.File(path, "r+") as file:
            described = dict(file["coords"].attrs)
            del file["features"], file["coords"]
            file["features"] = planted_features(slide.her2_score or 0, k)[0].astype(np.float32)
            file.create_dataset("coords", data=places * 512).attrs.update(described)
    store = tmp_path / "store"
    given = ("store", "import", tmp_path / "job", "--store", store, "--from", "trident", "--embedder", "uni")
    assert run(*given, "--cohort", tmp_path / "cohort.csv")["ok"]
    study = study_of(tmp_path, EXPERIMENT)
    assert not study.left_out
    runs = train(study, tmp_path / "out")
    assert len(runs) == 2
    assert all(run.best is not None and not run.reason for run in runs)
    (space,) = FeatureStore.open(store).spaces()
    assert space.dtype == "float32"
