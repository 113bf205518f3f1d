"""`her2cache embedders`, and `embed` with embedders of every kind, as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cluster.cli.main import main
from her2cache.store.reader import FeatureStore
from tests.embedders import THIRD_PARTY, trained
from tests.slides import texture, write_slide

COMMAND = Path(sys.executable).with_name("her2cache")


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


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
    for space in (moments, pcam):
        made = opened.record("s", space.key).made
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
