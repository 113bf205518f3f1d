from __future__ import annotations

from pathlib import Path

import pytest

from her2cache.errors import CohortError, StoreError
from tests.planted import DIM, PATCHES, VIEWS, planted_store
from trainers.config import Experiment, read_experiment
from trainers.features import stored_features
from trainers.study import open_study

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


def test_the_space_must_hold_the_views_that_are_asked_for(project: Path) -> None:
    (project / "views.toml").write_text(EXPERIMENT.replace("[splits]", f"views = {VIEWS}\n[splits]"))
    assert {s.views for s in open_study(read_experiment(project / "views.toml")).spaces.values()} == {VIEWS}
    (project / "views.toml").write_text(EXPERIMENT.replace("[splits]", "views = 8\n[splits]"))
    with pytest.raises(StoreError, match=r"not with views = 8: .*\(views: 2\).*embed --views 8"):
        open_study(read_experiment(project / "views.toml"))


def test_slides_that_cannot_be_used_are_named_and_left_out_of_every_space(project: Path) -> None:
    text = (project / "cohort.csv").read_text()
    (project / "more.csv").write_text(text + "new,newcase,new.svs,HE,2,,\nblank,blankcase,blank.svs,HE,,,\n")
    study = open_study(experiment(project, "more.csv"))
    assert study.left_out.keys() == {"new", "blank"}
    assert "not embedded with first" in study.left_out["new"]
    assert "no her2_score" in study.left_out["blank"]
    assert study.splits == open_study(experiment(project)).splits


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
