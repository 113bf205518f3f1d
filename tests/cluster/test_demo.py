"""`her2cache demo`: the whole path in small, and what it says where the ImageNet weights are missing."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from cluster import demo
from cluster.cli.demo import _Steps
from cluster.cli.main import main
from her2cache.errors import EmbedderError
from her2cache.store.reader import FeatureStore
from trainers.results import read_csv

TINY = demo.DemoSize(
    16,
    """\
[splits]
folds = 2
test_slides = 4

[bags]
size = 10
per_epoch = 64
validation = 50
test = 50

[training]
epochs = 2
learning_rate = [1e-3]
weight_decay = [1e-3, 1e-5]
""",
    pcam=32,
    ihc=6,
    epochs=1,
    width_px=768,
)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_it_goes_from_slides_to_a_heatmap_and_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(demo.SIZES, "small", TINY)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no weights here"))
    call = ["demo", "--out", str(tmp_path / "out"), "--offline"]
    result = CliRunner().invoke(main, [*call, "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert "alexnet-imagenet=FILE" in said["without"]
    assert said["left_out"] == {}
    assert all(Path(path).exists() for path in said["outputs"].values())
    tested = {row["slide_id"] for row in read_csv(tmp_path / "out", "scores.csv")}
    assert len(tested) == 4
    assert set(said["truth_auc"]) <= tested
    assert said["truth_auc"], "no truth map was found"
    index = read_csv(tmp_path / "out" / "sweep" / "heatmaps", "index.csv")
    assert {row["slide_id"] for row in index if row["has_ihc"] == "True"} == tested
    assert (tmp_path / "out" / "sweep" / "report.html").is_file()
    with Image.open(said["outputs"]["heatmap.png"]) as picture:
        assert min(picture.size) > 300
    results = pq.read_table(said["outputs"]["results.parquet"]).to_pylist()
    embedders = ["alexnet-random", "alexnet-pcam", "alexnet-ihc"]
    assert [(row["embedder"], row["fold"]) for row in results] == [(e, fold) for e in embedders for fold in (0, 1)]
    store = FeatureStore.open(tmp_path / "out" / "store")
    assert [len(store.slides(e)) for e in embedders] == [16] * 3
    table1 = {row["embedder"]: row for row in read_csv(tmp_path / "out" / "sweep", "table1.csv")}
    assert [table1[e]["measured"] for e in embedders] == ["", "here", "here"]
    card = store.find_space("alexnet-ihc").card
    splits = read_csv(tmp_path / "out" / "sweep", "splits.csv")
    assert card is not None
    assert not set(card.case_ids) & {row["case_id"] for row in splits if row["split"] == "test"}

    again = CliRunner().invoke(main, call)
    assert again.exit_code == 0, again.output
    assert "without alexnet-imagenet" in " ".join(again.output.split())
    assert "AUC-ROC" in again.stdout
    for name in said["outputs"]:
        assert name in again.stdout
    assert pq.read_table(said["outputs"]["results.parquet"]).to_pylist() == results


def test_weights_that_were_named_must_be_weights(tmp_path: Path) -> None:
    with pytest.raises(EmbedderError, match="does not exist"):
        demo.ready_made(tmp_path / "missing.pth", offline=True)


def test_steps_are_told_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    steps = _Steps(1)
    with steps.step("cutting"):
        steps.note("half of it")
    assert capsys.readouterr() == ("", "")
