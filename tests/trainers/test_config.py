from __future__ import annotations

import re
from pathlib import Path

import pytest

from her2cache.errors import ConfigError
from trainers.config import Experiment, read_experiment
from trainers.presets import PAPER, QUICK
from trainers.stack import Configuration

DATA = '[data]\ncohort = "cohort.csv"\nstore = "store"\nembedders = ["alexnet-imagenet"]\n'


def read(folder: Path, text: str) -> Experiment:
    path = folder / "experiment.toml"
    path.write_text(text)
    return read_experiment(path)


def test_what_is_left_out_is_the_papers(tmp_path: Path) -> None:
    short, paper = read(tmp_path, DATA), read(tmp_path, PAPER)
    ours = {"data": True, "splits": {"nested"}}  # the paper has no nested cross-validation
    assert short.model_dump(exclude=ours) == paper.model_dump(exclude=ours)
    assert (short.splits.nested, paper.splits.nested) == (0, 5)
    assert (paper.training.epochs, paper.training.batch_bags, paper.splits.folds) == (50, 64, 5)
    assert (paper.bags.size, paper.bags.per_epoch, paper.bags.validation, paper.bags.test) == (100, 6400, 2500, 2500)
    grid = paper.training.grid()
    assert len(set(grid)) == 20
    assert grid[0] == Configuration(1e-3, 1e-3)
    assert grid[-1] == Configuration(1e-6, 1e-7)
    assert len(paper.data.embedders) == 4


def test_the_quick_preset_is_quick(tmp_path: Path) -> None:
    quick = read(tmp_path, QUICK)
    runs = len(quick.data.embedders) * len(quick.training.grid())
    assert (runs, quick.splits.folds, quick.training.epochs, quick.bags.per_epoch) == (8, 3, 8, 640)


@pytest.mark.parametrize("preset", [PAPER, QUICK])
def test_presets_explain_every_key(preset: str) -> None:
    """Each with a comment beside it, or above it and the keys that it shares one with."""
    _, *parts = re.split(r"^\[(\w+)\].*\n", preset, flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert sections.keys() == Experiment.model_fields.keys()
    for section, field in Experiment.model_fields.items():
        for key in field.annotation.model_fields:  # pyright: ignore[reportOptionalMemberAccess]
            # what is off by default is commented out
            explained = rf"^(# )?{key} = .*[^ ] +# \S|^# [^\n]+:\n([^#\n]+\n)*{key} = "
            assert re.search(explained, sections[section], re.MULTILINE), f"[{section}] {key}"


def test_relative_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    data = read(tmp_path, DATA).data
    assert data.cohort == str(tmp_path / "cohort.csv")
    assert data.store == str(tmp_path / "store")
    assert read(tmp_path, DATA.replace('"store"', '"s3://bucket/x"')).data.store == "s3://bucket/x"
    assert read(tmp_path, DATA.replace('"store"', '"/data/store"')).data.store == "/data/store"


def test_the_digest_tells_experiments_apart_but_not_places(tmp_path: Path) -> None:
    here, there = read(tmp_path, DATA), read(tmp_path, DATA.replace("cohort.csv", "copy/cohort.csv"))
    assert here.digest() == there.digest()
    assert here.digest() != read(tmp_path, DATA + "[training]\nepochs = 49\n").digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DATA + "[training]\nepoch = 3\n", r"toml:6: \[training\] epoch is not known.*There are epochs"),
        (DATA + "[train]\nepochs = 3\n", r"toml:5: \[train\] is not known.*There are data, task"),
        (DATA + '[training]\n# rates\nlearning_rate = [1e-3, "x"]\n', r"toml:7: \[training\] learning_rate is 'x'"),
        (DATA + "[training]\nlearning_rate = [-1.0]\n", r"toml:6: .*greater than or equal to 0"),
        (DATA + "[training]\nlearning_rate = []\n", r"toml:6: .*at least 1 item"),
        (DATA + "[training]\nlearning_rate = [inf]\n", r"toml:6: .*finite"),
        (DATA + "[bags]\nsize = 0\n", r"toml:6: \[bags\] size is '0'"),
        (DATA + "[bags]\nsize = 2.5\n", r"toml:6: \[bags\] size is '2.5'.*integer"),
        (DATA + "[bags]\nbalanced = 1\n", r"toml:6: \[bags\] balanced is '1'.*boolean"),
        (DATA + '[splits]\nfolds = "papr"\n', r"toml:6: \[splits\] folds is 'papr'.*integer, or .*'paper'"),
        (
            DATA + '[task]\npreset = "five"\n',
            r"toml:6: \[task\] preset is 'five'.*'four', 'paper-binary' or 'her2-low'",
        ),
        (DATA + "[splits]\nnested = 2\n", r"toml:6: \[splits\] nested is '2'"),
        (DATA + "[training]\nbatch_bags = 7\n[bags]\nper_epoch = 6\n", r"toml:6: \[training\] batch_bags is 7.*6 bags"),
        (DATA + "[training]\nepochs = 3\npatience = 3\n", r"toml:7: \[training\] patience is 3.*3 epochs"),
        (
            DATA + '[training]\nweight_decay = [0.0, 1e-3]\n[search]\nmethod = "random"\n',
            r"toml:6: \[training\] weight_decay has 0.*'random' cannot draw",
        ),
        (
            DATA + '[training]\nweight_decay = [1e-3]\nlearning_rate = [1e-3]\n[search]\nmethod = "asha"\n',
            r"toml:9: \[search\] method has nothing to draw from",
        ),
        (DATA + "random_seeds = 5\n", r"toml:5: \[data\] random_seeds.*embedders does not name"),
        ('[data]\ncohort = "c"\nstore = "s"\n', r"toml:1: \[data\] embedders is missing"),
        ("[bags]\nsize = 10\n", r"toml: \[data\] is missing"),
        ("[data\n", r"is no TOML .*line 1"),
        ("data = 3\n", r"toml:1: \[data\] is '3'"),
    ],
)
def test_a_fault_names_its_line_and_the_remedy(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


def test_every_fault_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"toml:6: .*; .*toml:8: "):
        read(tmp_path, DATA + "[bags]\nsize = 0\n[splits]\nfolds = 1\n")


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_experiment(path)
