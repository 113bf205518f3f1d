"""The end of a small nested sweep with two seeds of the untrained embedder: its files, and what they rest on."""

from __future__ import annotations

import csv
import re
import shutil
from collections import Counter
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn.metrics import confusion_matrix, roc_auc_score

from her2cache.errors import CorruptFeaturesError, SweepError
from her2cache.store.reader import FeatureStore
from her2cache.store.writer import SlideShape
from tests.planted import DIM, PATCHES, VIEWS, planted_features, planted_store
from tests.sweeps import study_of, train
from trainers.cases import pool_cases
from trainers.conclusion import conclude_sweep
from trainers.fit import failed_runs
from trainers.ledger import Run
from trainers.report import table
from trainers.selection import select
from trainers.study import Study

EXPERIMENT = """\
[data]
cohort = "cohort.csv"
store = "store"
embedders = ["alexnet-random", "good"]
random_seeds = 2
seeds_a_fold = "all"
[splits]
folds = 2
test_slides = 4
nested = 3
[bags]
size = 10
per_epoch = 96
validation = 40
test = 200
[model]
attention_units = 8
[training]
epochs = 2
batch_bags = 16
learning_rate = [1e-2, 1e-5]
weight_decay = [1e-4]
[testing]
configurations = "all"
"""
PLAIN = (
    EXPERIMENT.replace("nested = 3", "nested = 0")
    .replace('"alexnet-random", ', "")
    .replace('random_seeds = 2\nseeds_a_fold = "all"\n', "")
)
CASES, FOLDS, OUTER = 24, 2, 3
RANDOM, GOOD = "alexnet-random", "good"


class Sweep(NamedTuple):
    study: Study
    runs: list[Run]
    out: Path
    written: dict[str, Path]


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    planted_store(folder, {RANDOM: 0.5, f"{RANDOM}-s1": 1.5, GOOD: 6.0}, CASES)
    return folder


@pytest.fixture(scope="module")
def swept(project: Path) -> Sweep:
    study, out = study_of(project, EXPERIMENT), project / "sweep"
    runs = train(study, out)
    return Sweep(study, runs, out, conclude_sweep(study, runs, out))


def test_the_files(swept: Sweep) -> None:
    names = {
        *("runs.parquet", "results.parquet", "predictions.parquet", "selection.csv", "nested_splits.csv"),
        *("table1.csv", "table2.csv", "metrics.csv", "nested.csv", "comparison.csv", "baselines.csv"),
        *("confusion.csv", "roc.csv", "roc.png", "confusion.png", "learning_curves.png", "grid.png"),
        "report.html",
    }
    assert swept.written == {name: swept.out / name for name in names}
    assert names <= {path.name for path in swept.out.iterdir()}
    assert not [path.name for path in swept.out.iterdir() if path.name.startswith(".")]


def test_every_configuration_is_tested_and_the_selected_ones_are_marked(swept: Sweep) -> None:
    results = rows_of(swept.out / "results.parquet")
    assert {r["run_id"] for r in results} == {run.run_id for run in swept.runs}
    marked = {r["run_id"] for r in results if r["selected"]}
    assert marked == {run.run_id for c in select(swept.runs) if c.is_selected for run in c.runs}
    places = Counter((r["outer"], r["embedder"]) for r in results if r["selected"])
    rounds = (None, *range(OUTER))
    assert places == {(o, e): FOLDS * n for o in rounds for e, n in ((RANDOM, 2), (GOOD, 1))}
    for place in places:  # one configuration a place
        own = [r for r in results if r["selected"] and (r["outer"], r["embedder"]) == place]
        assert len({(r["learning_rate"], r["weight_decay"]) for r in own}) == 1
    chosen = {(r["outer"], r["embedder"], r["learning_rate"]) for r in rows_of(swept.out / "selection.csv")
              if r["selected"] == "True"}  # fmt: skip
    assert chosen == {
        ("" if r["outer"] is None else str(r["outer"]), r["embedder"], str(r["learning_rate"]))
        for r in results
        if r["selected"]
    }


def test_each_round_is_tested_on_its_own_slides(swept: Sweep) -> None:
    predictions = rows_of(swept.out / "predictions.parquet")
    for of in swept.study.rounds:
        tested = {p["slide_id"] for p in predictions if p["outer"] == of.outer}
        assert tested == {s.slide_id for s in of.splits.test}
        trained = {s.slide_id for fold in range(FOLDS) for s in of.splits.training(fold) + of.splits.validation(fold)}
        assert not tested & trained
    by_outer = Counter(p["case_id"] for p in predictions if p["outer"] is not None and p["bag"] == 0)
    assert len({p["case_id"] for p in predictions if p["outer"] is not None}) == CASES
    assert by_outer.total() == OUTER * FOLDS * 3 * 2  # bag 0 of every run: folds x spaces x configurations


def chosen_only(study: Study) -> Study:
    testing = study.experiment.testing.model_copy(update={"configurations": "chosen"})
    return replace(study, experiment=study.experiment.model_copy(update={"testing": testing}))


def test_testing_all_changes_no_table(swept: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    shutil.copytree(swept.out / "checkpoints", out / "checkpoints")
    written = conclude_sweep(chosen_only(swept.study), swept.runs, out)
    for name in (name for name in written if name.endswith(".csv")):
        assert written[name].read_bytes() == swept.written[name].read_bytes(), name
    every, some = (rows_of(folder / "results.parquet") for folder in (swept.out, out))
    assert some == [r for r in every if r["selected"]]
    assert len(some) < len(every)


def by_hand(swept: Sweep, embedder: str, seed: int, nested: bool) -> tuple[np.ndarray, np.ndarray]:
    """Classes and probabilities of the cases, one case after the other."""
    results = rows_of(swept.out / "results.parquet")
    runs = {r["run_id"] for r in results if r["selected"] and (r["embedder"], r["embedder_seed"]) == (embedder, seed)}
    bags = [p for p in rows_of(swept.out / "predictions.parquet")
            if p["run_id"] in runs and (p["outer"] is not None) == nested]  # fmt: skip
    y, p = [], []
    for case in sorted({b["case_id"] for b in bags}):
        own = [b for b in bags if b["case_id"] == case]
        of_runs = [
            np.mean([[b[f"p_{c}"] for c in range(4)] for b in own if b["run_id"] == run], axis=0)
            for run in {b["run_id"] for b in own}
        ]
        assert len(of_runs) == FOLDS  # the inner folds of one round: a case is tested once
        y.append(own[0]["label"])
        p.append(np.mean(of_runs, axis=0))
    return np.array(y), np.array(p)


def macro(y: np.ndarray, p: np.ndarray) -> float:
    return float(np.mean([roc_auc_score(y == c, p[:, c]) for c in range(4)]))


def test_the_headline_by_hand(swept: Sweep) -> None:
    rows = {row["embedder"]: row for row in rows_of(swept.out / "nested.csv")}
    assert list(rows) == [GOOD, RANDOM]
    y, good = by_hand(swept, GOOD, 0, nested=True)
    assert len(y) == CASES
    assert float(rows[GOOD]["auc"]) == pytest.approx(macro(y, good))
    of_seeds = [by_hand(swept, RANDOM, seed, nested=True)[1] for seed in (0, 1)]
    mean = np.mean([macro(y, p) for p in of_seeds])
    assert float(rows[RANDOM]["auc"]) == pytest.approx(mean)
    assert macro(y, np.mean(of_seeds, axis=0)) != pytest.approx(mean)  # an ensemble over seeds would be another thing
    assert float(rows[GOOD]["auc_ge_2"]) == pytest.approx(roc_auc_score(y >= 2, good[:, 2:].sum(axis=1)))
    assert float(rows[GOOD]["accuracy"]) == pytest.approx(np.mean(good.argmax(axis=1) == y))
    for row in rows.values():
        assert (row["outer_folds"], row["n_cases"], row["cases_per_class"]) == (str(OUTER), str(CASES), "6/6/6/6")
        assert float(row["auc_low"]) <= float(row["auc"]) <= float(row["auc_high"])
        assert float(row["chance_auc_low"]) < 0.5 < float(row["chance_auc_high"])
    assert float(rows[GOOD]["auc"]) > 0.8


def test_with_a_seed_for_each_fold_the_folds_models_count_together(swept: Sweep) -> None:
    """Seeds on their own would be single models, and compared with the several of every other embedder."""
    rows = [p for p in rows_of(swept.out / "predictions.parquet")
            if p["selected"] and p["embedder"] == RANDOM and p["outer"] is None]  # fmt: skip
    own = [p for p in rows if p["fold"] == p["embedder_seed"]]
    cases, every = pool_cases(pa.Table.from_pylist(own), 4), pool_cases(pa.Table.from_pylist(rows), 4)
    assert (len(cases.p), len(every.p)) == (1, 2)
    for k, case in enumerate(cases.ids):
        of_runs = [
            np.mean(
                [[p[f"p_{c}"] for c in range(4)] for p in own if (p["run_id"], p["case_id"]) == (run, case)], axis=0
            )
            for run in {p["run_id"] for p in own}
        ]
        assert len(of_runs) == FOLDS
        np.testing.assert_allclose(cases.p[0, k], np.mean(of_runs, axis=0))


def test_every_metric_has_its_cases_beside_it(swept: Sweep) -> None:
    rows = {(r["embedder"], r["metric"], r["class"]): r for r in rows_of(swept.out / "metrics.csv")}
    assert len(rows) == 2 * (4 + 5 + 3 + 4 * 4)
    y, p = by_hand(swept, GOOD, 0, nested=False)
    row = rows[GOOD, "auc", "2+"]
    assert float(row["case_level"]) == pytest.approx(roc_auc_score(y == 2, p[:, 2]))
    assert (row["case_level_cases"], row["nested_cases"]) == ("1", "6")
    assert row["case_level_reliable"] == "False"
    results = [r for r in rows_of(swept.out / "results.parquet") if r["selected"] and r["outer"] is None]
    for embedder in (GOOD, RANDOM):
        folds = [[r["bag_auc_2"] for r in results if (r["embedder"], r["fold"]) == (embedder, f)] for f in range(FOLDS)]
        means = [np.mean(fold) for fold in folds]  # over seeds first
        row = rows[embedder, "auc", "2+"]
        assert float(row["paper_protocol"]) == pytest.approx(np.mean(means))
        assert float(row["paper_protocol_ci95"]) == pytest.approx(1.96 * np.std(means, ddof=1) / FOLDS**0.5)
    macro_row = rows[GOOD, "quadratic_kappa", ""]
    assert macro_row["case_level_cases"] == "4"
    assert float(macro_row["nested_low"]) <= float(macro_row["nested"]) <= float(macro_row["nested_high"])


def test_confusion_is_scikit_learns(swept: Sweep) -> None:
    rows = rows_of(swept.out / "confusion.csv")
    names = ("0", "1+", "2+", "3+")

    def matrix(embedder: str, level: str) -> np.ndarray:
        own = {(r["true"], r["predicted"]): int(r["count"]) for r in rows
               if (r["embedder"], r["level"]) == (embedder, level)}  # fmt: skip
        return np.array([[own[i, j] for j in names] for i in names])

    for level, nested in (("cases (fixed test set)", False), ("cases (nested)", True)):
        expected = np.zeros((4, 4), int)
        for seed in (0, 1):
            y, p = by_hand(swept, RANDOM, seed, nested)
            expected += confusion_matrix(y, p.argmax(axis=1), labels=range(4))
        assert (matrix(RANDOM, level) == expected).all()
    bags = [p for p in rows_of(swept.out / "predictions.parquet")
            if p["selected"] and p["outer"] is None and p["embedder"] == GOOD]  # fmt: skip
    predicted = [int(np.argmax([b[f"p_{c}"] for c in range(4)])) for b in bags]
    expected = confusion_matrix([b["label"] for b in bags], predicted, labels=range(4))
    assert (matrix(GOOD, "bags (paper protocol)") == expected).all()


def test_an_outer_fold_that_failed_leaves_no_headline(swept: Sweep, tmp_path: Path) -> None:
    shutil.copytree(swept.out / "checkpoints", tmp_path / "checkpoints")
    lost = [plan for plan in swept.study.plans() if (plan.outer, plan.embedder) == (1, RANDOM)]
    failed = {run.run_id: run for plan in lost for run in failed_runs(plan, "out of memory")}
    conclude_sweep(chosen_only(swept.study), [failed.get(run.run_id, run) for run in swept.runs], tmp_path)
    rows = {row["embedder"]: row for row in rows_of(tmp_path / "nested.csv")}
    assert (rows[RANDOM]["auc"], rows[RANDOM]["n_cases"]) == ("", "")
    assert float(rows[GOOD]["auc"]) > 0.8
    assert rows_of(tmp_path / "comparison.csv") == []
    assert {r["reason"] for r in rows_of(tmp_path / "runs.parquet") if r["run_id"] in failed} == {"out of memory"}
    shown = StringIO()
    Console(width=100, file=shown).print(table(tmp_path))
    assert re.search(r"alexnet-random +undefined", shown.getvalue())


@pytest.mark.slow
def test_a_seed_that_lost_an_outer_fold_leaves_no_headline(swept: Sweep, tmp_path: Path) -> None:
    """Rather than a headline on fewer cases, or on fewer seeds."""
    shutil.copytree(swept.out / "checkpoints", tmp_path / "checkpoints")
    for outers in ({1}, set(range(OUTER))):
        lost = [p for p in swept.study.plans() if (p.embedder, p.embedder_seed) == (RANDOM, 1) and p.outer in outers]
        failed = {run.run_id: run for plan in lost for run in failed_runs(plan, "out of memory")}
        conclude_sweep(chosen_only(swept.study), [failed.get(run.run_id, run) for run in swept.runs], tmp_path)
        rows = {row["embedder"]: row for row in rows_of(tmp_path / "nested.csv")}
        assert (rows[RANDOM]["auc"], rows[RANDOM]["n_cases"]) == ("", "")
        assert rows[GOOD]["n_cases"] == str(CASES)
        assert rows_of(tmp_path / "comparison.csv") == []
    shown = StringIO()
    Console(width=100, file=shown).print(table(tmp_path))
    assert "No headline for alexnet-random" in shown.getvalue()


def test_a_screening_is_told_in_every_table(swept: Sweep, tmp_path: Path) -> None:
    shutil.copytree(swept.out / "checkpoints", tmp_path / "checkpoints")
    study = replace(chosen_only(swept.study), fraction=0.5, left_out={"s99": "not embedded"})
    conclude_sweep(study, swept.runs, tmp_path)
    for name in ("results.parquet", "table2.csv", "nested.csv"):
        rows = rows_of(tmp_path / name)
        assert {(float(row["fraction"]), int(row["n_left_out"])) for row in rows} == {(0.5, 1)}, name
    shown = StringIO()
    Console(width=100, file=shown).print(table(tmp_path))
    text = " ".join(shown.getvalue().split())
    assert text.count("A screening: only 50 % of each slide's patches") == 2
    assert text.count("1 slide of the cohort took no part") == 2


def test_without_a_trained_run_there_is_nothing_to_conclude(swept: Sweep, tmp_path: Path) -> None:
    runs = [run for plan in swept.study.plans() for run in failed_runs(plan, "the loss was no longer finite")]
    with pytest.raises(SweepError, match="not one run could be trained: the loss was no longer finite"):
        conclude_sweep(swept.study, runs, tmp_path)
    assert len(rows_of(tmp_path / "runs.parquet")) == len(runs)


@pytest.fixture(scope="module")
def plain(project: Path) -> Sweep:
    study, out = study_of(project, PLAIN), project / "plain"
    runs = train(study, out)
    return Sweep(study, runs, out, conclude_sweep(study, runs, out))


class TestTheTestSetIsNotReadBeforeSelection:
    def copy_of(self, project: Path, to: Path) -> FeatureStore:
        shutil.copytree(project / "store", to / "store")
        shutil.copyfile(project / "cohort.csv", to / "cohort.csv")
        return FeatureStore.open(to / "store")

    def test_other_features_there_change_neither_runs_nor_selection(
        self, project: Path, plain: Sweep, tmp_path: Path
    ) -> None:
        store = self.copy_of(project, tmp_path)
        for slide in plain.study.splits.test:
            for space in plain.study.spaces.values():
                before = store.record(slide.slide_id, space)
                (tmp_path / "store" / "commits" / space.key / f"{slide.slide_id}.json").unlink()
                coords = np.stack([np.arange(PATCHES) * 96, np.zeros(PATCHES)], axis=1).astype(np.int32)
                writer = store.writer(
                    SlideShape(slide.slide_id, space.key, coords, VIEWS, DIM, "float16", 96.0, before.slide)
                )
                writer.write(0, planted_features((slide.her2_score + 1) % 4, 99), np.ones(PATCHES, np.bool_))
                assert writer.commit({}) == "committed"
                assert store.record(slide.slide_id, space).digest != before.digest
        study, out = study_of(tmp_path, PLAIN), tmp_path / "sweep"
        runs = train(study, out)
        conclude_sweep(study, runs, out)
        assert (out / "selection.csv").read_bytes() == (plain.out / "selection.csv").read_bytes()
        mine, theirs = (pq.read_table(o / "runs.parquet").drop_columns(["seconds"]) for o in (out, plain.out))
        assert mine.equals(theirs, check_metadata=True)
        for run in runs:
            name = f"checkpoints/{run.run_id}.safetensors"
            assert (out / name).read_bytes() == (plain.out / name).read_bytes()
        assert rows_of(out / "results.parquet") != rows_of(plain.out / "results.parquet")

    def test_without_features_there_only_the_test_fails(self, project: Path, plain: Sweep, tmp_path: Path) -> None:
        self.copy_of(project, tmp_path)
        for slide in plain.study.splits.test:
            shutil.rmtree(tmp_path / "store" / "attempts" / slide.slide_id)
        study, out = study_of(tmp_path, PLAIN), tmp_path / "sweep"
        runs = train(study, out)
        assert [run.reason for run in runs] == [""] * len(runs)
        with pytest.raises(CorruptFeaturesError, match=rf"{plain.study.splits.test[0].slide_id}.* is gone"):
            conclude_sweep(study, runs, out)
        assert (out / "selection.csv").read_bytes() == (plain.out / "selection.csv").read_bytes()
        assert len(rows_of(out / "runs.parquet")) == len(rows_of(plain.out / "runs.parquet"))
        assert not {"results.parquet", "predictions.parquet", "table2.csv"} & {path.name for path in out.iterdir()}

    def test_an_outer_fold_is_not_read_by_its_own_models(self, swept: Sweep, project: Path, tmp_path: Path) -> None:
        """The models of an outer fold are the same bits without the features of its slides."""
        self.copy_of(project, tmp_path)
        of = swept.study.rounds[2]
        for slide in of.splits.test:
            shutil.rmtree(tmp_path / "store" / "attempts" / slide.slide_id)
        study = study_of(tmp_path, EXPERIMENT)
        runs = train(study, tmp_path / "sweep", [plan for plan in study.plans() if plan.outer == of.outer])
        assert len(runs) == 3 * FOLDS * 2
        for run in runs:
            name = f"checkpoints/{run.run_id}.safetensors"
            assert (tmp_path / "sweep" / name).read_bytes() == (swept.out / name).read_bytes()
