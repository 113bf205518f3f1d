"""`her2cache embed` over hundreds of damaged slides: it ends by itself, and says of each what became of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from her2cache.store.reader import FeatureStore
from tests.commands import COMMAND, command
from tests.mutants import mutants, write_healthy

COUNT = 520


@pytest.mark.slow
def test_a_cohort_of_mutants(tmp_path: Path) -> None:
    healthy = write_healthy(tmp_path / "healthy")
    rows, expected = ["slide_id,case_id,path,stain,her2_score"], set[str]()
    for made in mutants(healthy, seed=3, count=COUNT):
        folder = tmp_path / "mutants" / f"{made.number:03}"  # a DICOM file has its series around it
        folder.mkdir(parents=True)
        (folder / f"m{made.suffix}").write_bytes(made.content)
        rows.append(f"m{made.number:03},m{made.number:03},mutants/{made.number:03}/m{made.suffix},HE,0")
    for k, (name, path) in enumerate(healthy.items()):  # among the others
        rows.insert(1 + 37 * k, f"{name},{name},{path.relative_to(tmp_path)},HE,0")
        expected.add(name)
    (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")

    options = ("--store", tmp_path / "store", "--embedder", "alexnet-random", "--patch-px", "64", "--json")
    arguments = [COMMAND, "embed", tmp_path / "cohort.csv", *options, "--max-bad-patches", "0.5"]
    run = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=900)
    assert (run.returncode, run.stderr) == (1, "")
    items = {item["id"]: item for item in json.loads(run.stdout)["items"]}
    assert len(items) == COUNT + len(healthy)
    assert {item["status"] for item in items.values()} == {"done", "failed"}

    store = FeatureStore.open(tmp_path / "store")
    (space,) = store.spaces()
    done = set(store.slides(space.key))
    failures = {failure.slide_id: failure for failure in store.failures(space.key)}
    assert done == {name for name, item in items.items() if item["status"] == "done"}
    assert set(failures) == items.keys() - done
    assert expected <= done
    assert 150 < len(failures) < 450
    for name, failure in failures.items():
        assert failure.reason == items[name]["reason"]
        assert not failure.reason.startswith("not expected"), failure
        assert "\n" not in failure.reason
        assert ";" in failure.reason, failure  # what to do about it
    left_out = [store.record(name, space.key).made["left_out"]["undecodable"] for name in done]
    assert sum(left_out) == json.loads(run.stdout)["left_out"]["undecodable"] > 0
    plain, strips = (_in_raster_order(store, name, space.key) for name in ("tiff-plain", "strips-lzw"))
    assert np.array_equal(plain, strips)  # the same pixels without loss

    audit = command("store", "verify", tmp_path / "store", "--json")
    assert audit.returncode == 0, audit.stdout


def _in_raster_order(store: FeatureStore, slide_id: str, space_key: str) -> np.ndarray:
    return store.features(slide_id, space_key)[np.lexsort(store.coords(slide_id, space_key).T)]
