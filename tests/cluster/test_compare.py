"""`her2cache compare` as a user runs it: two embedders at two scales, twice, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster.cli.main import main
from cluster.compare import CompareOptions, without_data
from her2cache.store.reader import FeatureStore
from her2cache.synthetic.cohort import write_synthetic_cohort
from trainers.results import read_csv

SHORT = """\
[data]
cohort = "elsewhere.csv"   # the comparison has its own
store = "elsewhere"
embedders = ["x"]

[splits]
folds = 2
test_slides = 4
nested = 3

[bags]
size = 10
per_epoch = 64
validation = 30
test = 30

[training]
epochs = 1
learning_rate = [1e-3]
weight_decay = [1e-5]
"""


def call(*args: object) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(main, [*map(str, args), "--json"])
    return result.exit_code, json.loads(result.stdout)


def test_the_sections_of_an_experiment_are_taken_over_but_for_its_data() -> None:
    assert without_data(SHORT) == SHORT[SHORT.index("[splits]") :]
    assert CompareOptions().experiment is None


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_embedders_and_scales_are_ranked(tmp_path: Path) -> None:
    table = write_synthetic_cohort(tmp_path, slides=16, width_px=768)
    (tmp_path / "short.toml").write_text(SHORT)
    out = tmp_path / "compared"
    command = ("compare", table, "--out", out, "--experiment", tmp_path / "short.toml", "--mpp", 0.5, "--mpp", 1.0)
    both = ("--embedder", "alexnet-random", "--embedder", "alexnet-random=1")
    code, said = call(*command, *both)
    assert code == 0, said
    rows = said["leaderboard"]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert {(row["embedder"], row["mpp"]) for row in rows} == {
        (name, mpp) for name in ("alexnet-random", "alexnet-random-s1") for mpp in (0.5, 1.0)
    }
    assert rows[0]["against_best"] == "best"
    assert all(row["n_cases"] == 16 and row["patches_per_second"] > 0 for row in rows)
    store = FeatureStore.open(out / "store")
    for row in rows:
        records = [store.record(slide_id, row["space_key"]) for slide_id in store.slides(row["space_key"])]
        assert row["bytes_a_slide"] == round(sum(r.bytes for r in records) / len(records))
        assert row["dim"] == 1024
    written = {name: Path(path) for name, path in said["outputs"].items()}
    assert [row["space_key"] for row in read_csv(out, "leaderboard.csv")] == [row["space_key"] for row in rows]
    assert written["leaderboard.png"].stat().st_size > 10_000

    code, again = call(*command, *both)
    assert (code, again["leaderboard"]) == (0, rows)
    code, other = call(*command, "--embedder", "alexnet-random")
    assert code == 2
    assert "holds a comparison of other embedders" in other["error"]
    (tmp_path / "plain.toml").write_text(SHORT.replace("nested = 3\n", ""))
    code, plain = call(*command[:3], tmp_path / "plain", "--experiment", tmp_path / "plain.toml", *both[:2])
    assert code == 2
    assert "has no nested cross-validation" in plain["error"]
