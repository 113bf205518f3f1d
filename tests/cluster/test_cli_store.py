"""`her2cache store` on a store of real features: info, ls, verify, repair, gc; and --replace of `embed`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from cluster.cli.main import main
from her2cache.backbones.registry import load_recipe
from her2cache.store.reader import FeatureStore
from her2cache.store.schema import CommitRecord, attempt_path, commit_path
from tests.slides import texture, write_slide

pytestmark = pytest.mark.usefixtures("local_ray")


def run(*arguments: object, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def embed(folder: Path, *more: object, code: int = 0) -> dict[str, Any]:
    slides = sorted(folder.glob("*.tif"))
    request = ("--embedder", "alexnet-random", "--views", 2)
    return run("embed", *slides, "--store", folder / "store", *request, *more, code=code)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """Three slides and their store, made once; tests work on copies."""
    folder = tmp_path_factory.mktemp("made")
    for k in range(3):
        write_slide(folder / f"s{k}.tif", texture(960, 480, seed=k))
    embed(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def records(folder: Path) -> dict[str, CommitRecord]:
    store = FeatureStore.open(folder / "store")
    (space,) = store.spaces()
    return {slide: store.record(slide, space.key) for slide in store.slides(space.key)}


def chunk_of(folder: Path, record: CommitRecord, chunk: str) -> Path:
    return folder / "store" / attempt_path(record.slide_id, record.space_key, record.attempt) / chunk


def printed(*arguments: object, code: int = 0) -> str:
    """What a person sees, stdout and stderr, on one line."""
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_info_and_ls_say_what_is_there(folder: Path) -> None:
    (space,) = run("store", "info", folder / "store")["spaces"]
    assert (space["name"], space["slides"], space["patches"], space["failed"]) == ("alexnet-random", 3, 150, 0)
    assert space["bytes"] == 150 * (2 * 1024 * 2 + 8)
    slides = run("store", "ls", folder / "store")["slides"]
    assert [slide["slide_id"] for slide in slides] == ["s0", "s1", "s2"]
    assert slides[0]["record"]["slide"]["mpp_source"] == "file"
    table = printed("store", "ls", folder / "store")
    assert "slide embedder space patches left out MB mpp mpp by made (UTC) her2cache ─" in table
    assert f"s1 alexnet-random {space['key'][:12]} 50 0 0.21 0.5 file 20" in table
    assert "nothing to remove" in printed("store", "gc", folder / "store")
    assert "3 commits verified, 150 patches: nothing is damaged" in printed("store", "verify", folder / "store")


@pytest.mark.slow
def test_repair_embeds_exactly_the_damaged_slides_to_the_same_bytes(folder: Path) -> None:
    """A flipped bit of a view and a chunk that is gone; a record that says nothing, whose file must be named."""
    store, before = folder / "store", records(folder)
    (key,) = {record.space_key for record in before.values()}
    chunk = chunk_of(folder, before["s0"], "features/c/1/0/0")
    data = bytearray(chunk.read_bytes())
    data[1000] ^= 4
    chunk.write_bytes(data)
    chunk_of(folder, before["s0"], "coords/c/0/0").unlink()
    (store / commit_path("s2", key)).write_text("")
    found = run("store", "verify", store, code=1)["items"]
    assert [item["id"].split("/")[1] for item in found if item["status"] == "failed"] == ["s0", "s2"]

    mended = {item["id"]: item for item in run("store", "repair", store, code=1)["items"]}
    assert (mended[f"{key[:12]}/s0"]["status"], mended[f"{key[:12]}/s0"]["reason"]) == ("done", "")
    assert "--cohort" in mended[f"{key[:12]}/s2"]["reason"]
    assert len(mended) == 2
    table = folder / "cohort.csv"
    table.write_text("slide_id,case_id,path,stain,her2_score\ns2,c,s2.tif,HE,\n")
    told = printed("store", "repair", store, "--cohort", table)
    assert f"1 of 1 damaged record mended {key[:12]}/s2" in told

    after = records(folder)
    assert run("store", "verify", store)["ok"]
    assert {s: r.digest for s, r in after.items()} == {s: r.digest for s, r in before.items()}
    assert [s for s in after if after[s].attempt != before[s].attempt] == ["s0", "s2"]
    gone = run("store", "gc", store, "--older-than", 0)["items"]
    assert {Path(item["id"]).name for item in gone} == {before[s].attempt for s in ("s0", "s2")}
    assert run("store", "verify", store)["ok"]
    assert len(list((store / "retired" / key).iterdir())) == 2


def test_repair_says_what_it_cannot_mend(folder: Path) -> None:
    """Nothing is embedded here, and nothing retired: the files are gone, or others; or a space is unknown."""
    store, before = folder / "store", records(folder)
    (key,) = {record.space_key for record in before.values()}
    for slide in ("s0", "s1"):
        chunk_of(folder, before[slide], "features/c/0/0/0").unlink()
    write_slide(folder / "s1.tif", texture(960, 480, seed=9))
    table = folder / "cohort.csv"
    table.write_text("slide_id,case_id,path,stain,her2_score\ns0,c,gone/s0.tif,HE,\ns1,d,s1.tif,HE,\n")
    found = run("store", "repair", store, "--cohort", table, code=1)["items"]
    items = {item["id"]: item["reason"] for item in found}
    assert "s0.tif is gone" in items[f"{key[:12]}/s0"]
    assert "embed --replace" in items[f"{key[:12]}/s1"]
    assert records(folder) == before
    (store / f"spaces/{key}.json").unlink()
    found = run("store", "repair", store, code=1)["items"]
    assert [item["id"] for item in found] == [f"spaces/{key[:12]}", f"{key[:12]}/s0", f"{key[:12]}/s1"]
    assert "is gone" in found[0]["reason"]


@pytest.mark.parametrize("name", ["cohort.csv", "cohort.parquet"])
def test_a_table_instead_of_the_store_gets_the_right_call(folder: Path, name: str) -> None:
    assert f"her2cache store repair STORE --cohort {name}" in printed("store", "repair", name, code=2)


@pytest.mark.slow
def test_a_slide_that_changed_is_noticed_and_replaced_on_request(folder: Path) -> None:
    before = records(folder)
    write_slide(folder / "s2.tif", texture(960, 480, seed=9))
    touched = folder / "s0.tif"
    os.utime(touched, (1, 1))  # another time, the same bytes
    items = {item["id"]: item for item in embed(folder, code=1)["items"]}
    assert {k: v["status"] for k, v in items.items()} == {"s0": "skipped", "s1": "skipped", "s2": "failed"}
    assert "--replace" in items["s2"]["reason"]
    assert records(folder) == before
    items = {item["id"]: item["status"] for item in embed(folder, "--replace")["items"]}
    assert items == {"s0": "skipped", "s1": "skipped", "s2": "done"}
    after = records(folder)
    assert after["s2"].digest != before["s2"].digest
    assert {s: after[s] for s in ("s0", "s1")} == {s: before[s] for s in ("s0", "s1")}


@pytest.mark.slow
def test_several_embedders_and_views_share_one_decode(folder: Path) -> None:
    weights = folder / "half.pth"
    tensors = load_recipe("alexnet-random", 96).tensors
    torch.save({name: torch.from_numpy(value * 0.5) for name, value in tensors.items()}, weights)
    store = folder / "other"
    slides = sorted(folder.glob("*.tif"))
    request = ("--embedder", "alexnet-random", "--embedder", f"alexnet-imagenet={weights}", "--views", 3)
    result = run("embed", *slides, "--store", store, *request)
    assert result["passes"] == {"alexnet-random": 450, "alexnet-imagenet": 450}  # 150 patches x 3 views
    assert result["segments_decoded"] == 3 * (960 // 64) * -(-480 // 64)  # each segment of each slide once
