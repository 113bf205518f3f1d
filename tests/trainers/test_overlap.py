"""Rule 2.1: no label of a test case reaches an embedder, and validation cases that did are told in every table."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from her2cache.cohort import Slide, write_cohort
from her2cache.errors import CohortError, ConfigError, StoreError
from her2cache.store.reader import FeatureStore
from her2cache.weights import WeightsCard
from tests.planted import planted_slides, planted_space
from tests.sweeps import study_of, train
from trainers.baselines import POOLED
from trainers.conclusion import conclude_sweep, fit_baselines
from trainers.config import read_experiment
from trainers.overlap import gravest
from trainers.report import table
from trainers.results import read_csv
from trainers.study import Study, open_study

TEXT = """\
[data]
cohort = "cohort.csv"
store = "store"
embedders = ["clean", "alexnet-ihc"]
[splits]
folds = 2
test_slides = 8
nested = 3
[bags]
size = 20
per_epoch = 64
validation = 32
test = 32
[training]
epochs = 1
learning_rate = [1e-3]
weight_decay = [1e-3]
"""
N = 32


def card(cases: Iterable[str]) -> WeightsCard:
    return WeightsCard(
        architecture="alexnet",
        source_task="ihc",
        classes=("0", "1+", "2+", "3+"),
        source_mpp=0.5,
        input_px=224,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        data_digest="0" * 64,
        case_ids=tuple(cases),
    )


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[FeatureStore, list[Slide]]:
    slides = planted_slides(tmp_path, N)
    write_cohort(slides, tmp_path / "cohort.csv")
    store = FeatureStore.create(tmp_path / "store")
    planted_space(store, slides, "clean", "1" * 64)
    return store, slides


def add(cohort: tuple[FeatureStore, list[Slide]], digit: str, cases: Iterable[str]) -> str:
    store, slides = cohort
    return planted_space(store, slides, "alexnet-ihc", digit * 64, card=card(cases))


def sides(folder: Path, cohort: tuple[FeatureStore, list[Slide]]) -> Study:
    """The splits, which no embedder changes."""
    return study_of(folder, TEXT.replace(', "alexnet-ihc"', ""))


def printed(sweep_dir: Path) -> str:
    """The tables of the terminal, in one line."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(sweep_dir))
    return " ".join(console.export_text().split())


def test_weights_that_have_seen_test_cases_are_refused(
    tmp_path: Path, cohort: tuple[FeatureStore, list[Slide]]
) -> None:
    test = sorted(s.case_id for s in sides(tmp_path, cohort).splits.test)
    add(cohort, "2", [test[1], test[0], "someone else"])
    with pytest.raises(CohortError) as caught:
        study_of(tmp_path, TEXT)
    said = str(caught.value)
    assert f"alexnet-ihc (2222.safetensors) have seen the labels of 2 test cases ({test[0]}, {test[1]})" in said
    assert "pretrain ihc --experiment" in said
    assert "--allow-embedder-overlap" in said
    study = open_study(read_experiment(tmp_path / "experiment.toml"), allow_overlap=True)
    assert any(w.startswith("alexnet-ihc: its weights have seen labels of test cases") for w in study.warnings)
    assert {p.embedder_overlap for p in study.plans() if p.embedder == "alexnet-ihc" and p.outer is None} == {"test"}


def test_an_embedder_takes_no_part_in_outer_folds_that_it_has_seen(
    tmp_path: Path, cohort: tuple[FeatureStore, list[Slide]]
) -> None:
    bare = sides(tmp_path, cohort)
    seen = sorted({s.case_id for s in bare.nested[1].test} - {s.case_id for s in bare.splits.test})
    add(cohort, "2", seen)
    study = study_of(tmp_path, TEXT)
    part = {(p.embedder, p.outer) for p in study.plans()}
    assert part == {("clean", o) for o in (None, 0, 1, 2)} | {("alexnet-ihc", o) for o in (None, 0, 2)}
    assert any("alexnet-ihc takes no part in the nested cross-validation" in w for w in study.warnings)
    everywhere = open_study(read_experiment(tmp_path / "experiment.toml"), allow_overlap=True)
    assert {(p.embedder, p.outer) for p in everywhere.plans()} == part | {("alexnet-ihc", 1)}


def test_seen_validation_cases_are_told_in_every_table(
    tmp_path: Path, cohort: tuple[FeatureStore, list[Slide]]
) -> None:
    text = TEXT.replace("nested = 3\n", "")
    bare = study_of(tmp_path, text.replace(', "alexnet-ihc"', ""))
    add(cohort, "2", {s.case_id for s in bare.splits.validation(0)})
    study = study_of(tmp_path, text)
    assert {(p.embedder, p.fold): p.embedder_overlap for p in study.plans()} == {
        ("clean", 0): "",
        ("clean", 1): "",
        ("alexnet-ihc", 0): "validation",
        ("alexnet-ihc", 1): "",
    }
    out = tmp_path / "sweep"
    conclude_sweep(study, train(study, out), out)
    for name in ("selection.csv", "table2.csv", "metrics.csv", "baselines.csv", "roc.csv", "confusion.csv"):
        told = {row["embedder"]: row["embedder_overlap"] for row in read_csv(out, name)}
        assert told.pop("", "") == ""  # the baseline of colours
        assert told == {"clean": "", "alexnet-ihc": "validation"}, name
    (compared,) = read_csv(out, "comparison.csv")
    assert {compared["embedder_overlap"], compared["best_overlap"]} == {"", "validation"}
    for name in ("runs.parquet", "results.parquet", "predictions.parquet"):
        rows = pq.read_table(out / name).to_pylist()
        assert {(r["embedder"], r["fold"], r["embedder_overlap"]) for r in rows} == {
            ("clean", 0, ""),
            ("clean", 1, ""),
            ("alexnet-ihc", 0, "validation"),
            ("alexnet-ihc", 1, ""),
        }, name
    assert "alexnet-ihc: its weights have seen labels of validation cases" in printed(out)


def test_the_headline_says_who_is_not_in_it(tmp_path: Path, cohort: tuple[FeatureStore, list[Slide]]) -> None:
    bare = sides(tmp_path, cohort)
    add(cohort, "2", {s.case_id for s in bare.nested[0].test} - {s.case_id for s in bare.splits.test})
    study = study_of(tmp_path, TEXT)
    out = tmp_path / "sweep"
    conclude_sweep(study, train(study, out), out)
    rows = {row["embedder"]: row for row in read_csv(out, "nested.csv")}
    assert rows["clean"]["auc"] != ""
    assert rows["alexnet-ihc"]["auc"] == ""
    pooled = {
        r["embedder"]: r["nested_auc"] for r in read_csv(out, "baselines.csv") if r["baseline"].startswith("mean")
    }
    assert pooled["clean"] != ""
    assert pooled["alexnet-ihc"] == ""
    assert "No headline for alexnet-ihc: its weights have seen labels of cases that outer folds test" in printed(out)


def test_each_fold_takes_the_weights_that_have_seen_none_of_it(
    tmp_path: Path, cohort: tuple[FeatureStore, list[Slide]]
) -> None:
    bare = sides(tmp_path, cohort)
    training = {(of.outer, f): {s.case_id for s in of.splits.training(f)} for of in bare.rounds for f in (0, 1)}
    keys = {place: add(cohort, "23456789"[k], cases) for k, (place, cases) in enumerate(training.items())}
    study = study_of(tmp_path, TEXT)
    assert study.embedders == ("clean", "alexnet-ihc")
    made = [p for p in study.plans() if p.embedder == "alexnet-ihc"]
    assert {(p.outer, p.fold): p.space_key for p in made} == keys
    assert {p.embedder_overlap for p in made} == {""}
    assert not [w for w in study.warnings if "alexnet-ihc" in w]
    assert [study.embedder_of(name)[0] for name in study.pooled_spaces()] == ["clean", "alexnet-ihc"]
    # one space stands for the embedder in baselines, and its weights have seen cases of the other folds
    pooled = [b for b in fit_baselines(study) if b.name == POOLED]
    assert {b.embedder: b.nested is None for b in pooled} == {"clean": False, "alexnet-ihc": True}
    assert study.pooled_overlap("alexnet-ihc", nested=False) == "validation"
    assert study.pooled_overlap("alexnet-ihc", nested=True) == "test"
    joined = study_of(tmp_path, TEXT.replace("alexnet-ihc", "+".join(key[:16] for key in keys.values())))
    of = [{(p.embedder, p.outer, p.fold): p.space_key for p in each.plans()} for each in (study, joined)]
    assert of[0] == of[1]


def test_spaces_of_different_making_are_not_joined(tmp_path: Path, cohort: tuple[FeatureStore, list[Slide]]) -> None:
    store, slides = cohort
    bare = sides(tmp_path, cohort)
    halves = [sorted(s.case_id for s in bare.splits.training(fold)) for fold in (0, 1)]
    cards = [card(halves[0]), replace(card(halves[1]), settings={"epochs": 3, "best_epoch": 2})]
    keys = [planted_space(store, slides, "alexnet-ihc", d * 64, card=c) for d, c in zip("23", cards, strict=True)]
    with pytest.raises(StoreError, match="2 feature spaces are called 'alexnet-ihc'"):
        study_of(tmp_path, TEXT)
    with pytest.raises(ConfigError, match="joins spaces that are not of one embedder"):
        study_of(tmp_path, TEXT.replace("alexnet-ihc", "+".join(keys)))
    trained = replace(card(halves[0]), settings={"epochs": 3, "best_epoch": 1})
    planted_space(store, slides, "alexnet-ihc", "4" * 64, card=trained)
    chosen = study_of(tmp_path, TEXT.replace("alexnet-ihc", "+".join([keys[1], _key(store, "4" * 64)])))
    assert {p.embedder_overlap for p in chosen.plans() if p.embedder == "alexnet-ihc" and p.outer is None} == {""}


def _key(store: FeatureStore, weights: str) -> str:
    return next(s.key for s in store.spaces() if s.document["embedder"]["weights_sha256"] == weights)


def test_weights_that_have_seen_the_same_cases_are_not_chosen_from(
    tmp_path: Path, cohort: tuple[FeatureStore, list[Slide]]
) -> None:
    cases = [s.case_id for s in sides(tmp_path, cohort).splits.training(0)]
    keys = [add(cohort, digit, cases) for digit in "23"]
    with pytest.raises(StoreError, match=r"2 feature spaces are called 'alexnet-ihc'; name one by its key"):
        study_of(tmp_path, TEXT)
    study = study_of(tmp_path, TEXT.replace("alexnet-ihc", keys[0][:12]))
    assert {p.space_key for p in study.plans() if p.embedder == "alexnet-ihc"} == {keys[0]}


def test_gravest() -> None:
    assert gravest([]) == ""
    assert gravest(["", "validation"]) == "validation"
    assert gravest(["validation", "test", ""]) == "test"
