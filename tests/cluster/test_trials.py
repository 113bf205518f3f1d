"""A trial by itself: what it reports, and that an error ends it with a reason and spares its process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.trials import Ground, Jobs, _Trial
from tests.planted import planted_store
from trainers.config import read_experiment
from trainers.ledger import has_run
from trainers.plan import FitPlan
from trainers.stack import Configuration
from trainers.study import open_study

EXPERIMENT = """\
[data]
cohort = "cohort.csv"
store = "store"
embedders = ["net"]
[splits]
folds = 2
test_slides = 4
[bags]
size = 20
per_epoch = 96
validation = 60
[model]
attention_units = 8
[training]
epochs = 3
batch_bags = 16
learning_rate = [1e-2, 1e-4]
weight_decay = [1e-5]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trials")
    planted_store(folder, {"net": 6.0})
    (folder / "experiment.toml").write_text(EXPERIMENT)
    return folder


@pytest.fixture(scope="module")
def plans(project: Path) -> list[FitPlan]:
    return open_study(read_experiment(project / "experiment.toml")).plans()


def trial_of(jobs: Jobs, project: Path, out: Path, **config: Any) -> _Trial:
    """As Tune makes one in its process."""
    trial = _Trial.__new__(_Trial)
    trial.config = config
    ground = Ground(str(project / "store"), out)
    trial.setup(config, jobs=jobs, ground=ground, save_every=0.0, report_every=0.0)
    return trial


@pytest.mark.usefixtures("local_ray")
class TestTrial:
    def test_it_reports_every_epoch_and_is_used_again(
        self, project: Path, plans: list[FitPlan], tmp_path: Path
    ) -> None:
        jobs = Jobs(tuple((plan,) for plan in plans))
        trial = trial_of(jobs, project, tmp_path, job=0)
        results = [trial.step() for _ in range(3)]
        assert [step.epoch for r in results for step in r["steps"]] == [1, 1, 2, 2, 3, 3]
        assert [r["done"] for r in results] == [False, False, True]
        assert [len(r["steps"]) for r in results] == [2, 2, 2]  # of two runs
        assert results[2]["val_loss"] <= results[0]["val_loss"]
        assert all(has_run(run_id, tmp_path / "ledger") for run_id in plans[0].run_ids())
        trial.config = {"job": 1}
        assert trial.reset_config(trial.config)
        assert trial.step()["steps"][0].run_id == plans[1].run_ids()[0]

    def test_a_configuration_that_a_search_asks_for(self, project: Path, plans: list[FitPlan], tmp_path: Path) -> None:
        jobs = Jobs(templates={"net": tuple(plans)})
        trial = trial_of(jobs, project, tmp_path, search="net", learning_rate=0.0012345, weight_decay=1e-5, until=2)
        assert [(r["done"], r["over"]) for r in (trial.step(), trial.step())] == [(False, False), (True, False)]
        assert not (tmp_path / "ledger").exists()
        trial.config["until"] = 1  # as a sweep that was killed asks for again: it is told, not trained
        assert trial.reset_config(trial.config)
        again = trial.step()
        assert (again["done"], again["over"], {step.is_new for step in again["steps"]}) == (True, False, {False})
        trial.config["until"] = 3
        assert trial.reset_config(trial.config)
        result = trial.step()
        assert (result["done"], result["over"]) == (True, True)
        assert result["val_loss"] <= again["val_loss"]
        for plan in plans:
            (run_id,) = replace(plan, configurations=(Configuration(0.00123, 1e-5),)).run_ids()
            assert has_run(run_id, tmp_path / "ledger")

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            # no machine has the memory for it, and the processor's allocator says so
            ({"model": {"attention_units": 10**13}}, "out of memory: its stack is too large"),
            ({"bags": {"size": 61}}, "has 60 patches, a bag needs 61"),
            ({"settings": {"feature_norm": "unheard-of", "seed": None}}, "TypeError: "),
        ],
    )
    def test_an_error_is_a_reason(
        self, project: Path, plans: list[FitPlan], tmp_path: Path, change: dict[str, dict[str, Any]], reason: str
    ) -> None:
        (name, update), *_ = change.items()
        bad = replace(plans[0], **{name: getattr(plans[0], name).model_copy(update=update)})
        trial = trial_of(Jobs(((bad,), (plans[1],))), project, tmp_path, job=0)
        result = trial.step()
        assert reason in result["reason"]
        assert result["done"]
        assert result["val_loss"] == float("inf")
        assert not (tmp_path / "ledger").exists()
        trial.config = {"job": 1}
        trial.reset_config(trial.config)
        assert trial.step()["reason"] == ""
