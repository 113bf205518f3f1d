"""`her2cache embedders`, and `embed` with embedders of every kind, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cluster.batching import fixed_batching
from cluster.cli.main import main
from cluster.demo import ready_made
from cluster.embed_job import precision_warnings
from her2cache.backbones.registry import load_recipe
from her2cache.embedder import FeatureSpace
from her2cache.store.reader import FeatureStore
from her2cache.store.writer import SlideShape
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from tests.commands import command
from tests.embedders import THIRD_PARTY, trained
from tests.slides import texture, write_slide
from tests.stores import filled, space


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slides") / "s.tif", texture(960, 672))


@pytest.mark.slow
def test_a_third_party_and_one_trained_at_another_scale(slide: Path, tmp_path: Path) -> None:
    """A package beside ours, found by its entry point, embeds in Ray's processes; the scale of PCam is warned of."""
    store, weights = tmp_path / "store", trained(tmp_path / "w.safetensors", "pcam")
    asked = ("--embedder", "colour-moments", "--embedder", f"alexnet-pcam={weights}", "--views", 2)
    run = command("embed", slide, "--store", store, *asked, "--json", PYTHONPATH=str(THIRD_PARTY))
    assert run.returncode == 0, run.stderr + run.stdout
    document = json.loads(run.stdout)
    assert document["passes"] == {"colour-moments": 140, "alexnet-pcam": 140}
    (warning,) = document["warnings"]
    assert warning == (
        "alexnet-pcam was trained on patches of 0.97 um/px and is given 0.5: nuclei are 1.9 times larger than those it"
        " knows; --mpp 0.97 would match"
    )
    opened = FeatureStore.open(store)
    moments, pcam = opened.find_space("colour-moments"), opened.find_space("alexnet-pcam")
    assert (pcam.card is not None, moments.card) == (True, None)
    for one in (moments, pcam):
        made = opened.record("s", one.key).made
        assert 0 < made["embed_seconds"] < document["seconds"]
        assert made["batching"]["precision"] == "float32"

    pixels = texture(960, 672)
    for (x, y), features in zip(
        opened.coords("s", moments.key), opened.features("s", moments.key).astype(np.float64), strict=True
    ):
        patch = pixels[y : y + 96, x : x + 96] / 255
        expected = np.concatenate([patch.mean((0, 1)), patch.std((0, 1))])
        assert np.abs(features - expected).max() < 0.02  # float16, and the slide is a JPEG

    again = command("embed", slide, "--store", store, *asked, PYTHONPATH=str(THIRD_PARTY))
    assert (again.returncode, again.stderr) == (0, "")
    assert f"warning {warning}" in again.stdout.splitlines()


@pytest.mark.slow
def test_networks_that_see_another_side_than_the_patches(slide: Path, tmp_path: Path) -> None:
    import timm
    from torchvision.models import resnet18

    torch.save(resnet18(weights=None).state_dict(), tmp_path / "r.pth")
    torch.save(timm.create_model("resnet10t", pretrained=False).state_dict(), tmp_path / "t.pth")
    names = (f"torchvision:resnet18={tmp_path / 'r.pth'}", f"timm:resnet10t={tmp_path / 't.pth'}", "alexnet-random")
    store = tmp_path / "store"
    asked = [word for name in names for word in ("--embedder", name)]
    run = command("embed", slide, "--store", store, *asked, "--json")
    assert run.returncode == 0, run.stderr + run.stdout
    opened = FeatureStore.open(store)
    found = {space.name: space for space in opened.spaces()}
    assert {name: space.dim for name, space in found.items()} == {
        "torchvision:resnet18": 512,
        "timm:resnet10t": 512,
        "alexnet-random": 1024,
    }
    resnet = found["torchvision:resnet18"].document["embedder"]
    assert resnet["resize"] == {"side": 256, "crop": 224, "interpolation": "bilinear", "antialias": True}
    assert "resize" not in found["alexnet-random"].document["embedder"]
    rows = {len(opened.features("s", space.key)) for space in found.values()}
    assert rows == {70}
    repaired = command("store", "verify", store, "--json")
    assert repaired.returncode == 0, repaired.stdout


HALF = {"device": "cuda", "precision": "float16"}


@pytest.mark.parametrize(
    ("device", "precision", "batching", "said"),
    [
        ("cpu", "auto", HALF, ("float32", "float16", "on a GPU")),
        ("cuda", "float32", HALF, ("float32", "float16", "without --precision float32")),
        ("cuda", "auto", {"device": "cpu", "precision": "float32"}, ("float16", "float32", "with --precision float32")),
        ("cuda", "auto", None, ("float16", "float32", "with --precision float32")),
        ("cuda", "auto", HALF, None),
        ("cuda", "float32", None, None),
        ("cpu", "auto", {"device": "cuda", "precision": "float32"}, None),
    ],
)
def test_a_job_of_another_precision_is_warned_of(
    tmp_path: Path, device: str, precision: str, batching: dict[str, str] | None, said: tuple[str, str, str] | None
) -> None:
    store = FeatureStore.create(tmp_path)
    key = store.add_space(space("net"))
    filled(store, "r", key).commit({} if batching is None else {"batching": batching})
    wanted = fixed_batching(96, device, precision)
    found = precision_warnings("net", store, key, ["r"], wanted)
    assert found == [
        f"net: this job computes in {now}, and the slides that its feature space has were computed in {before}: one"
        f" space would mix both; embed {remedy}, or into another store"
        for now, before, remedy in ([said] if said else [])
    ]
    assert precision_warnings("net", store, key, [], wanted) == []
    (tmp_path / "commits" / key / "damaged.json").write_text("{")
    assert precision_warnings("net", store, key, ["damaged", "r"], wanted) == found  # another one says it, too


@pytest.mark.slow
def test_one_space_with_two_precisions_is_warned_of_by_the_command(slide: Path, tmp_path: Path) -> None:
    spec = load_recipe("alexnet-random", 96).spec
    store = FeatureStore.create(tmp_path / "store")
    key = store.add_space(FeatureSpace(PatchSpec(), preset("HE"), spec))
    writer = store.writer(SlideShape("r", key, np.zeros((1, 2), np.int32), 1, spec.dim, "float16", 96.0, {}))
    writer.write(0, np.zeros((1, 1, spec.dim), np.float16), np.ones(1, np.bool_))
    writer.commit({"batching": {"device": "cuda", "precision": "float16"}})
    asked = ("embed", slide, "--store", store.uri, "--embedder", "alexnet-random", "--precision", "float32")
    run = command(*asked, "--json")
    assert run.returncode == 0, run.stderr + run.stdout
    document = json.loads(run.stdout)
    assert document["spaces"] == {"alexnet-random": key}
    (warning,) = document["warnings"]
    assert "this job computes in float32" in warning
    assert "were computed in float16" in warning
    assert document["items"][0]["status"] == "done"
    again = command(*asked)  # nothing is computed, nothing mixes
    assert "warning" not in again.stdout
    assert store.slides(key) == ["r", "s"]


def test_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(THIRD_PARTY))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    lines = CliRunner().invoke(main, ["embedders"]).stdout.splitlines()
    assert max(map(len, lines)) <= 100
    (moments,) = [line.split() for line in lines if line.startswith("colour-moments")]
    assert moments[:6] == ["colour-moments", "6", "96", "px", "MIT", "yes"]

    document = json.loads(CliRunner().invoke(main, ["embedders", "--json", "--patch-px", "224"]).stdout)
    assert document["ok"]
    found = {one["name"]: one for one in document["embedders"]}
    assert (found["alexnet-random"]["dim"], found["alexnet-random"]["usable"]) == (9216, True)
    assert not found["alexnet-imagenet"]["usable"]
    assert "alexnet-imagenet=FILE" in found["alexnet-imagenet"]["why"]
    assert set(found["alexnet-pcam"]) == {"name", "dim", "input_px", "licence", "usable", "why"}


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x02}q\x00."])
def test_a_damaged_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """`embedders` and `embed` say which file to delete, and the demo goes on without it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub/checkpoints/alexnet-owt-7be5be79.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    document = json.loads(CliRunner().invoke(main, ["embedders", "--json"]).stdout)
    (imagenet,) = [one for one in document["embedders"] if one["name"] == "alexnet-imagenet"]
    assert not imagenet["usable"]
    assert f"{path} is damaged" in imagenet["why"]
    slide = write_slide(tmp_path / "s.tif", texture(96, 96))
    embed = ["embed", str(slide), "--store", str(tmp_path / "store"), "--embedder", "alexnet-imagenet", "--json"]
    run = CliRunner().invoke(main, embed)
    assert run.exit_code == 2
    assert f"{path} is damaged" in json.loads(run.stdout)["error"]
    recipes, missing = ready_made(None, offline=False)
    assert [recipe.spec.name for recipe in recipes] == ["alexnet-random"]
    assert f"{path} is damaged" in missing
