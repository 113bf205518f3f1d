from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from her2cache.cohort import write_cohort
from her2cache.store.reader import FeatureStore
from tests.planted import DIM, PATCHES, VIEWS, planted_slides, planted_space
from tests.sweeps import study_of, train
from trainers.conclusion import conclude_sweep
from trainers.leaderboard import (
    BEHIND,
    BEST,
    LIKE_BEST,
    Cost,
    cost_of,
    draw_leaderboard,
    leaderboard_rows,
    leaderboard_table,
    plainly_named,
)
from trainers.results import read_csv
from trainers.study import Study

TEXT = """\
[data]
cohort = "cohort.csv"
store = "store"
embedders = ["good", "alike", "noise", "seen"]
[splits]
folds = 2
test_slides = 8
nested = 3
[bags]
size = 20
per_epoch = 320
validation = 60
test = 60
[training]
epochs = 4
learning_rate = [3e-3]
weight_decay = [1e-5]
feature_norm = "standardize"
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    from tests.trainers.test_overlap import card

    folder = tmp_path_factory.mktemp("leaderboard")
    slides = planted_slides(folder, 32)
    write_cohort(slides, folder / "cohort.csv")
    store = FeatureStore.create(folder / "store")
    for k, (name, signal) in enumerate({"good": 6.0, "alike": 6.0, "noise": 0.0}.items()):
        planted_space(store, slides, name, str(k) * 64, signal=signal)
    text = TEXT.replace(', "seen"', "")
    outer = study_of(folder, text)
    seen = {s.case_id for s in outer.nested[0].test} - {s.case_id for s in outer.splits.test}
    planted_space(store, slides, "seen", "9" * 64, card=card(seen))
    study = study_of(folder, TEXT)
    conclude_sweep(study, train(study, folder / "sweep"), folder / "sweep")
    return study, folder / "sweep"


def costs(study: Study) -> dict[str, Cost]:
    rates = dict(zip(study.spaces, (600.0, None, 400.0, 10.0), strict=True))
    return {name: Cost(rate, 2e6, DIM, 0.5, 96) for name, rate in rates.items()}


@pytest.mark.slow
def test_it_ranks_by_the_headline_and_marks_what_cannot_be_told_apart(
    sweep: tuple[Study, Path], tmp_path: Path
) -> None:
    study, out = sweep
    rows = leaderboard_rows(out, costs(study))
    assert [row["rank"] for row in rows] == [1, 2, 3, None]
    assert {rows[0]["embedder"], rows[1]["embedder"]} == {"good", "alike"}
    assert [row["against_best"] for row in rows[:3]] == [BEST, LIKE_BEST, BEHIND]
    nested = {row["embedder"]: row for row in read_csv(out, "nested.csv")}
    for row in rows[:3]:
        assert row["auc"] == pytest.approx(float(nested[row["embedder"]]["auc"]))
        assert row["auc_low"] <= row["auc"] <= row["auc_high"]
        assert row["n_cases"] == 32
        assert row["space_key"] == study.spaces[row["embedder"]].key
    assert rows[2]["chance_low"] < rows[2]["auc"] < rows[0]["auc"]
    assert rows[2]["behind_best_low"] > 0
    assert rows[3]["embedder"] == "seen"
    assert "has seen labels" in rows[3]["note"] or "have seen labels" in rows[3]["note"]
    assert (rows[3]["auc"], rows[3]["dim"]) == (None, DIM)

    console = Console(width=110, record=True, file=io.StringIO())
    console.print(leaderboard_table(rows))
    said = console.export_text()
    assert said.index("●") < said.index("○")
    assert "600" in said
    assert "seen: its weights have seen labels of cases that outer folds test" in " ".join(said.split())
    draw_leaderboard(rows, tmp_path / "leaderboard.png")
    with Image.open(tmp_path / "leaderboard.png") as picture:
        assert min(picture.size) > 300


def test_spaces_that_their_scale_tells_apart_go_without_a_key() -> None:
    one, two, three = (
        {"embedder": f"alexnet@{k * 4}", "mpp": mpp, "patch_px": 96}
        for k, mpp in (("a1", 0.5), ("b2", 1.0), ("c3", 1.0))
    )
    assert [row["embedder"] for row in plainly_named([one, two])] == ["alexnet", "alexnet"]
    assert [row["embedder"] for row in plainly_named([one, two, three])] == [
        "alexnet",
        "alexnet@b2b2b2b2",
        "alexnet@c3c3c3c3",
    ]
    tagged = {"embedder": "timm:hf-hub:org/net@v2", "mpp": 0.5, "patch_px": 96}
    assert plainly_named([tagged]) == [tagged]


def test_costs_are_read_off_the_commit_records(sweep: tuple[Study, Path]) -> None:
    study, _ = sweep
    store = FeatureStore.open(study.experiment.data.store)
    space = study.spaces["good"]
    cost = cost_of(store, space, ["s00", "s01"])
    assert cost.patches_per_second is None  # these were not made by an embedder
    assert cost.bytes_a_slide == PATCHES * (VIEWS * DIM * 2 + 8)
    assert (cost.dim, cost.mpp, cost.patch_px) == (DIM, 0.5, 96)
