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
from her2cache.backbones import load_trunk
from her2cache.store.reader import FeatureStore
from her2cache.store.schema import CommitRecord, attempt_path
from tests.slides import texture, write_slide

pytestmark = pytest.mark.usefixtures("local_ray")


def run(*arguments: object, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def embed(folder: Path, *more: object, code: int = 0) -> dict[str, Any]:
    slides = sorted(folder.glob("*.tif"))
    return run("embed", *slides, "--store", folder / "store", "--embedder", "alexnet-random", *more, code=code)


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


def chunk_of(folder: Path, record: CommitRecord) -> Path:
    attempt = attempt_path(record.slide_id, record.space_key, record.attempt)
    return folder / "store" / attempt / "features/c/0/0/0"


def test_info_and_ls_say_what_is_there(folder: Path) -> None:
    (space,) = run("store", "info", folder / "store")["spaces"]
    assert (space["name"], space["slides"], space["patches"], space["failed"]) == ("alexnet-random", 3, 150, 0)
    assert space["bytes"] == 150 * (1024 * 2 + 8)
    slides = run("store", "ls", folder / "store")["slides"]
    assert [slide["slide_id"] for slide in slides] == ["s0", "s1", "s2"]
    assert slides[0]["record"]["slide"]["mpp_source"] == "file"


def test_repair_embeds_exactly_the_damaged_slides_to_the_same_bytes(folder: Path) -> None:
    before = records(folder)
    assert run("store", "verify", folder / "store")["ok"]
    chunk = chunk_of(folder, before["s1"])
    data = bytearray(chunk.read_bytes())
    data[1000] ^= 4
    chunk.write_bytes(data)
    found = run("store", "verify", folder / "store", code=1)["items"]
    assert [item["id"].split("/")[1] for item in found if item["status"] == "failed"] == ["s1"]

    mended = run("store", "repair", folder / "store")["items"]
    assert [(item["id"].split("/")[1], item["status"]) for item in mended] == [("s1", "done")]
    after = records(folder)
    assert run("store", "verify", folder / "store")["ok"]
    assert {s: r.digest for s, r in after.items()} == {s: r.digest for s, r in before.items()}
    assert [s for s in after if after[s].attempt != before[s].attempt] == ["s1"]
    (gone,) = run("store", "gc", folder / "store", "--older-than", 0)["items"]
    assert before["s1"].attempt in gone["id"]
    assert run("store", "verify", folder / "store")["ok"]


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


def test_several_embedders_and_views_share_one_decode(folder: Path) -> None:
    weights = folder / "half.pth"
    tensors = load_trunk("alexnet-random", 96).tensors
    torch.save({name: torch.from_numpy(value * 0.5) for name, value in tensors.items()}, weights)
    store = folder / "other"
    slides = sorted(folder.glob("*.tif"))
    request = ("--embedder", "alexnet-random", "--embedder", f"alexnet-imagenet={weights}", "--views", 3)
    result = run("embed", *slides, "--store", store, *request)
    assert result["passes"] == {"alexnet-random": 450, "alexnet-imagenet": 450}  # 150 patches x 3 views
    assert result["segments_decoded"] == 3 * (960 // 64) * -(-480 // 64)  # each segment of each slide once
