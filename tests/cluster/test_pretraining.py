"""`her2cache pretrain` as a user runs it: an epoch or two on small data, bad slides, and processes that die."""

from __future__ import annotations

import csv
import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cluster.cli.main import main
from cluster.pretraining import train_network
from her2cache.cohort import read_cohort
from her2cache.errors import ConfigError, TrainingError
from her2cache.synthetic.cohort import write_synthetic_cohort
from her2cache.weights import read_card, read_weights
from tests.processes import actors, kill
from trainers.pretraining.heldout import held_out_cases
from trainers.pretraining.loop import PretrainEpoch, PretrainSettings
from trainers.pretraining.patches import SourceData
from trainers.pretraining.pcam import open_pcam

pytestmark = pytest.mark.usefixtures("local_ray")

SPLIT = '[data]\ncohort = "cohort.csv"\nstore = "store"\nembedders = ["x"]\n[splits]\ntest_slides = 4\nfolds = 2\n'


def call(*args: object) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(main, [*map(str, args), "--json"])
    return result.exit_code, json.loads(result.stdout)


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches whose centre is dark where they are labelled 1."""
    rng = np.random.default_rng(0)
    x = rng.integers(120, 256, (120, 96, 96, 3), dtype=np.uint8)
    y = np.arange(120) % 2
    x[y == 1, 32:64, 32:64] //= 3
    path = tmp_path_factory.mktemp("pcam") / "patches.npz"
    np.savez(path, x=x, y=y)
    return path


@pytest.mark.slow
def test_pcam_from_patches_to_weights_and_a_row_of_table_1(npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "pcam.safetensors"
    command = ("pretrain", "pcam", npz, "--out", out, "--epochs", 2, "--batch", 16, "--seed", 3)
    code, said = call(*command)
    assert (code, said["ok"], said["items"][0]["status"]) == (0, True, "done")
    tensors, card = read_weights(out)
    assert card is not None
    assert (card.source_task, card.source_mpp, card.classes) == ("pcam", 0.97, ("normal", "tumour"))
    assert card.case_ids == ()
    assert tensors["classifier.6.weight"].shape == (2, 4096)
    assert said["metrics"] == pytest.approx(dict(card.metrics))
    (imagenet, row) = csv.DictReader((out.parent / "table1.csv").open())
    assert imagenet["measured"].startswith("cited")
    assert (row["embedder"], row["measured"]) == ("alexnet-pcam", "here")
    assert float(row["auc_roc"]) == card.metrics["auc_roc"]
    assert not [p for p in out.parent.iterdir() if p.name not in {"pcam.safetensors", "table1.csv"}]

    written = out.stat().st_mtime_ns
    code, said = call(*command)
    assert (code, said["items"][0]["status"]) == (0, "skipped")
    assert out.stat().st_mtime_ns == written
    code, said = call(*command[:-1], 4)
    assert code == 2
    assert "is there already, and was not trained on these data with these settings" in said["error"]
    assert out.stat().st_mtime_ns == written


def test_options_that_cannot_be_are_told(npz: Path, tmp_path: Path) -> None:
    for options, told in {
        ("--out", tmp_path / "w.pt"): "must end in .safetensors",
        ("--out", tmp_path / "w.safetensors", "--init", "inception"): "--init inception is not known",
        ("--out", tmp_path / "w.safetensors", "--init", f"imagenet={npz}"): "is not a weights file",
    }.items():
        code, said = call("pretrain", "pcam", npz, "--epochs", 1, *options)
        assert code == 2, told
        assert told in said["error"]
    code, said = call("pretrain", "pcam", tmp_path / "none", "--out", tmp_path / "w.safetensors")
    assert code == 2
    assert "none does not exist" in said["error"]


@pytest.mark.slow
def test_ihc_leaves_out_the_cases_that_the_sweep_tests_on(tmp_path: Path) -> None:
    table = write_synthetic_cohort(tmp_path, slides=20, width_px=512)
    (tmp_path / "e.toml").write_text(SPLIT)
    slides = read_cohort(table).with_stain("IHC").slides
    held_out = held_out_cases(table, tmp_path / "e.toml").cases
    broken = next(s for s in slides if s.case_id not in held_out and s.her2_score == 2)
    broken.path.write_bytes(broken.path.read_bytes()[:2000])
    out = tmp_path / "w" / "ihc.safetensors"
    options = ("--experiment", tmp_path / "e.toml", "--patch-px", 96, "--max-patches", 8, "--epochs", 1, "--batch", 16)
    code, said = call("pretrain", "ihc", table, "--out", out, *options)
    assert code == 1, said
    assert {i["id"]: i["status"] for i in said["items"]} == {"ihc.safetensors": "done", broken.slide_id: "failed"}
    assert set(said["held_out_cases"]) == held_out
    card = read_card(out)
    assert card is not None
    assert len(card.case_ids) >= 11
    assert not set(card.case_ids) & {*held_out, broken.case_id}
    assert set(card.case_ids) < {s.case_id for s in slides}
    assert (card.source_task, card.input_px, card.classes) == ("ihc", 96, ("0", "1+", "2+", "3+"))
    cut = Path(said["outputs"]["patches"])
    assert {p.name.partition(".")[0] for p in cut.glob("*.json")} == {
        s.slide_id for s in slides if s.case_id not in {*held_out, broken.case_id}
    }
    code, said = call("pretrain", "ihc", table, "--out", out.with_name("all.safetensors"), *options[2:])
    assert code == 2
    assert "[splits]" in said["error"]  # the default split wants more cases than there are


@pytest.mark.slow
def test_a_killed_training_goes_on_and_gives_the_same_bits(npz: Path, tmp_path: Path) -> None:
    settings, load = PretrainSettings(epochs=4, batch=16, patience=0), partial(open_pcam, npz)
    train_network(load, settings, tmp_path / "whole.safetensors")
    told: list[int] = []

    def strike(epoch: PretrainEpoch) -> None:
        told.append(epoch.epoch)
        if epoch.epoch == 2 and told.count(2) == 1:
            (pid,) = actors("Trainer")
            kill(pid)

    train_network(load, settings, tmp_path / "struck.safetensors", watch=strike, save_every=0)
    assert told[:2] == [1, 2]
    assert told[-1] == 4
    whole, struck = (read_weights(tmp_path / f"{name}.safetensors") for name in ("whole", "struck"))
    assert whole[1] == struck[1]
    assert all(np.array_equal(tensor, struck[0][name]) for name, tensor in whole[0].items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["struck.safetensors", "whole.safetensors"]


def dying() -> SourceData:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.slow
def test_a_process_that_always_dies_ends_it_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"w\.safetensors died 3 times in one epoch .* lower --batch"):
        train_network(dying, PretrainSettings(epochs=1), tmp_path / "w.safetensors")


def test_a_name_that_is_no_safetensors_is_refused_before_anything(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.safetensors"):
        train_network(dying, PretrainSettings(), tmp_path / "w.bin")
