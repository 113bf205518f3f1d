from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from her2cache.cohort import read_cohort
from her2cache.embedder import EmbedderSpec, FeatureSpace
from her2cache.errors import CohortError, ConfigError, StoreError, TrainingError
from her2cache.store.reader import FeatureStore
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from tests.planted import DIM, PATCHES, VIEWS, planted_store
from tests.sweeps import study_of
from trainers.config import Experiment, SplitsSection, read_experiment
from trainers.features import stored_features
from trainers.splits import kept, make_splits, write_splits
from trainers.stack import Configuration
from trainers.study import open_study
from trainers.tasks import find_task

EXPERIMENT = """\
[data]
cohort = "cohort.csv"
store = "store"
embedders = ["first", "second"]
[splits]
folds = 2
test_slides = 4
[bags]
size = 20
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    planted_store(folder, {"first": 1.0, "second": 0.0})
    return folder


def experiment(project: Path, cohort: str = "cohort.csv") -> Experiment:
    (project / "experiment.toml").write_text(EXPERIMENT.replace("cohort.csv", cohort))
    return read_experiment(project / "experiment.toml")


def test_every_configuration_meets_every_fold_and_space(project: Path) -> None:
    study = open_study(experiment(project))
    whole, stacked, single = study.plans(), study.plans(stack=8), study.plans(stack=1)
    assert [len(p.configurations) for p in whole] == [20] * 4
    assert [len(p.configurations) for p in stacked] == [8, 8, 4] * 4
    assert [len(p.configurations) for p in single] == [1] * 80
    ids = [[i for plan in plans for i in plan.run_ids()] for plans in (whole, stacked, single)]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0])) == 80


def test_rounds_are_the_fixed_test_set_and_the_outer_folds(project: Path) -> None:
    (project / "nested.toml").write_text(EXPERIMENT.replace("folds = 2", "folds = 2\nnested = 3"))
    study = open_study(read_experiment(project / "nested.toml"))
    assert [of.outer for of in study.rounds] == [None, 0, 1, 2]
    plans = study.plans()
    places = [(p.outer, p.embedder, p.fold) for p in plans]
    assert places == [(o, e, f) for o in (None, 0, 1, 2) for e in ("first", "second") for f in (0, 1)]
    assert len({i for plan in plans for i in plan.run_ids()}) == 20 * len(plans)
    for plan in plans:
        splits = study.rounds[0 if plan.outer is None else plan.outer + 1].splits
        assert (plan.training, plan.validation) == (splits.training(plan.fold), splits.validation(plan.fold))
    assert study.warnings == study.splits.warnings
    (project / "many.toml").write_text(EXPERIMENT.replace("folds = 2", "folds = 3\nnested = 4"))
    many = open_study(read_experiment(project / "many.toml"))
    lacking = replace(
        many, nested=(replace(many.nested[0], warnings=("fold 0 of outer fold 0 validates without 3+",)),)
    )
    assert lacking.warnings[-1].startswith("1 of 3 inner folds lack a class: fold 0 of outer fold 0")
    drawn = [Configuration(2e-3, 1e-5), Configuration(7e-4, 1e-4), Configuration(1e-4, 1e-6)]
    assert [len(p.configurations) for p in study.plans(2, drawn)] == [2, 1] * len(plans)
    assert [c for p in study.plans(1, drawn)[:3] for c in p.configurations] == drawn


def test_a_fraction_holds_in_training_and_in_testing(project: Path) -> None:
    study = replace(open_study(experiment(project)), fraction=0.5)
    assert {plan.fraction for plan in study.plans()} == {0.5}
    key = study.spaces["first"].key
    assert [len(study.features(key, study.splits.test)[s.slide_id][0]) for s in study.splits.test] == [PATCHES // 2] * 4


class TestSeedsOfTheUntrainedEmbedder:
    TEXT = EXPERIMENT.replace(
        '["first", "second"]', '["alexnet-random", "first"]\nrandom_seeds = 3\nseeds_a_fold = "all"'
    )

    def test_each_fold_has_its_seed_as_in_the_original(self, tmp_path: Path) -> None:
        planted_store(
            tmp_path, {"alexnet-random": 0.0, "first": 1.0, "alexnet-random-s1": 0.0, "alexnet-random-s2": 0.0}
        )
        text = (
            self.TEXT.replace('seeds_a_fold = "all"', "")
            .replace("random_seeds = 3", "random_seeds = 2")
            .replace("folds = 2", "folds = 3")
        )
        plans = [p for p in study_of(tmp_path, text).plans() if p.embedder == "alexnet-random"]
        assert [(p.fold, p.embedder_seed) for p in sorted(plans, key=lambda p: p.fold)] == [(0, 0), (1, 1), (2, 0)]

    def test_they_count_as_one_embedder(self, tmp_path: Path) -> None:
        planted_store(
            tmp_path, {"alexnet-random": 0.0, "first": 1.0, "alexnet-random-s1": 0.0, "alexnet-random-s2": 0.0}
        )
        study = study_of(tmp_path, self.TEXT)
        assert list(study.spaces) == ["alexnet-random", "first", "alexnet-random-s1", "alexnet-random-s2"]
        made = {(p.embedder, p.embedder_seed): p.space_key for p in study.plans()}
        assert made == {
            ("alexnet-random", 0): study.spaces["alexnet-random"].key,
            ("first", 0): study.spaces["first"].key,
            ("alexnet-random", 1): study.spaces["alexnet-random-s1"].key,
            ("alexnet-random", 2): study.spaces["alexnet-random-s2"].key,
        }
        assert len({i for plan in study.plans() for i in plan.run_ids()}) == 4 * 2 * 20
        alone = study_of(tmp_path, EXPERIMENT.replace('["first", "second"]', '["alexnet-random", "alexnet-random-s1"]'))
        assert {(p.embedder, p.embedder_seed) for p in alone.plans()} == {
            ("alexnet-random", 0),
            ("alexnet-random-s1", 0),
        }

    def test_a_missing_one_is_told_with_the_command_that_makes_it(self, tmp_path: Path) -> None:
        planted_store(tmp_path, {"alexnet-random": 0.0, "first": 1.0, "alexnet-random-s1": 0.0})
        with pytest.raises(
            StoreError, match=r"no features of alexnet-random-s2 .*--embedder alexnet-random=2 --views 2"
        ):
            study_of(tmp_path, self.TEXT)

    def test_one_of_other_patches_does_not_count(self, tmp_path: Path) -> None:
        planted_store(tmp_path, {"alexnet-random": 0.0, "first": 1.0, "alexnet-random-s1": 0.0})
        spec = EmbedderSpec("alexnet-random-s2", DIM, 96, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "9" * 64)
        space = FeatureSpace(PatchSpec(mpp=1.0), preset("HE"), spec, views=VIEWS)
        FeatureStore.open(tmp_path / "store").add_space(space)
        with pytest.raises(StoreError, match=r"alexnet-random-s2 with the patches and views of alexnet-random"):
            study_of(tmp_path, self.TEXT)

    def test_named_twice(self, tmp_path: Path) -> None:
        planted_store(tmp_path, {"alexnet-random": 0.0, "alexnet-random-s1": 0.0})
        text = EXPERIMENT.replace('["first", "second"]', '["alexnet-random", "alexnet-random-s1"]\nrandom_seeds = 2')
        with pytest.raises(ConfigError, match="names a feature space twice"):
            study_of(tmp_path, text)


def test_the_space_must_hold_the_views_that_are_asked_for(project: Path) -> None:
    (project / "views.toml").write_text(EXPERIMENT.replace("[splits]", f"views = {VIEWS}\n[splits]"))
    assert {s.views for s in open_study(read_experiment(project / "views.toml")).spaces.values()} == {VIEWS}
    (project / "views.toml").write_text(EXPERIMENT.replace("[splits]", "views = 8\n[splits]"))
    with pytest.raises(StoreError, match=r"not with views = 8: .*\(views: 2\).*embed --views 8"):
        open_study(read_experiment(project / "views.toml"))


def test_slides_that_cannot_be_used_are_named_and_left_out_of_every_space(project: Path) -> None:
    text = (project / "cohort.csv").read_text()
    added = "new,newcase,new.svs,HE,2,,\nnewer,newercase,newer.svs,HE,3,,\nblank,blankcase,blank.svs,HE,,,\n"
    (project / "more.csv").write_text(text + added)
    study = open_study(experiment(project, "more.csv"))
    assert study.left_out.keys() == {"new", "newer", "blank"}
    assert "not embedded with first" in study.left_out["new"]
    assert "no her2_score" in study.left_out["blank"]
    everything = [s for s in read_cohort(project / "more.csv").slides if s.her2_score is not None]
    dealt = make_splits(everything, study.experiment.classification, study.experiment.splits)
    assert len(dealt.slides) == 18
    assert study.splits.slides == tuple(s for s in dealt.slides if not s.slide_id.startswith("new"))
    write_splits(study.splits, project / "splits.csv")  # a file of splits need not name what the store lacks
    text = EXPERIMENT.replace("cohort.csv", "more.csv").replace("folds = 2\ntest_slides = 4", 'file = "splits.csv"')
    assert study_of(project, text).splits.slides == study.splits.slides


def test_a_fold_of_which_nothing_is_embedded_is_told(tmp_path: Path) -> None:
    slides = planted_store(tmp_path, {"first": 1.0, "second": 0.0})
    dealt = make_splits(slides, find_task("four"), SplitsSection(folds=2, test_slides=4))
    with pytest.raises(TrainingError, match=r"no slide of the test set can be used"):
        kept(dealt, {s.slide_id for s in dealt.slides if s.split == "train"}, find_task("four"))
    with pytest.raises(TrainingError, match=r"no slide of class .* is left to train fold 0"):
        kept(dealt, {s.slide_id for s in dealt.slides if s.fold != 1}, find_task("four"))


def test_a_cohort_without_a_usable_slide_is_told(project: Path) -> None:
    (project / "ihc.csv").write_text((project / "cohort.csv").read_text().replace(",HE,", ",IHC,"))
    with pytest.raises(CohortError, match=r"no HE slide of .* can be used"):
        open_study(experiment(project, "ihc.csv"))


def test_stored_features_are_maps_of_every_view(project: Path) -> None:
    study = open_study(experiment(project))
    features = stored_features(str(project / "store"), study.spaces["first"].key, ["s00", "s01"])
    assert features.keys() == {"s00", "s01"}
    assert [view.shape for view in features["s00"]] == [(PATCHES, DIM)] * VIEWS
    assert not features["s00"][0].flags.writeable
