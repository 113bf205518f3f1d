"""`her2cache synth`: files, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from cluster.cli.synth import synth
from her2cache.cohort import read_cohort
from trainers.pretraining.pcam import open_pcam


def test_synth_writes_a_cohort_and_lists_it(tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    result = CliRunner().invoke(synth, [str(out), "--slides", "1", "--width", "400", "--seed", "3", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["ok"]
    assert [item["id"] for item in document["items"]] == ["case-001-HE", "case-001-IHC"]
    cohort = read_cohort(Path(document["outputs"]["cohort"]), check_files=True)
    assert all(slide.path.is_relative_to(out / "slides") for slide in cohort.slides)
    assert (Path(document["outputs"]["truth"]) / "case-001-HE.npz").is_file()


def test_synth_says_what_a_cohort_is_worth(tmp_path: Path) -> None:
    result = CliRunner().invoke(synth, [str(tmp_path), "--slides", "1", "--width", "800", "--mpp", "0.25"])
    assert result.exit_code == 0, result.output
    assert "say nothing about real tissue" in result.stdout
    assert "0.25 um/px" in result.stdout


def test_synth_writes_pcam_when_asked_to(tmp_path: Path) -> None:
    arguments = [str(tmp_path), "--slides", "1", "--width", "400", "--pcam", "16", "--json"]
    result = CliRunner().invoke(synth, arguments)
    assert result.exit_code == 0, result.output
    data = open_pcam(Path(json.loads(result.stdout)["outputs"]["pcam"]))
    assert (data.train.size, data.valid.size, data.test.size) == (16, 2, 2)


def test_a_number_of_patches_that_cannot_be_is_said_before_anything_is_written(tmp_path: Path) -> None:
    result = CliRunner().invoke(synth, [str(tmp_path / "out"), "--pcam", "100"])
    assert result.exit_code == 2
    assert "multiple of 16" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_slide_too_small_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(synth, [str(tmp_path / "out"), "--width", "100"])
    assert result.exit_code == 2
    assert "too small" in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
