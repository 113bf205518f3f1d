"""Stack sizes and shares of a GPU from what there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.capacity import Capacity, Terms, choose_terms
from her2cache.errors import ConfigError
from tests.planted import planted_store
from trainers.config import read_experiment
from trainers.sizing import run_bytes
from trainers.study import Study, open_study

GIB = 1 << 30


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One space, 2 folds."""
    folder = tmp_path_factory.mktemp("capacity")
    planted_store(folder, {"net": 1.0})
    text = '[data]\ncohort = "cohort.csv"\nstore = "store"\nembedders = ["net"]\n'
    text += "[splits]\nfolds = 2\ntest_slides = 4\n[bags]\nsize = 20\n"
    (folder / "experiment.toml").write_text(text)
    return open_study(read_experiment(folder / "experiment.toml"))


def one_run(study: Study) -> int:
    e = study.experiment
    (space,) = study.spaces.values()
    return run_bytes(space.dim, 4, e.model, e.bags)


@pytest.mark.parametrize(
    ("cpus", "runs_in_memory", "configurations", "stack"),
    [
        (2, 1000, 20, 20),  # two folds keep two cores busy
        (2, 20, 20, 20),
        (2, 19, 20, 10),  # equal halves, not 19 and 1
        (2, 7, 20, 7),  # 7, 7, 6
        (2, 1, 20, 1),
        (2, 0.1, 20, 1),  # it must try
        (8, 1000, 20, 5),  # 4 stacks x 2 folds for 8 cores
        (64, 1000, 20, 1),
        (2, 1000, 1, 1),
    ],
)
def test_on_processors(study: Study, cpus: int, runs_in_memory: float, configurations: int, stack: int) -> None:
    capacity = Capacity(cpus, memory=int(runs_in_memory * one_run(study)))
    assert choose_terms(study, capacity, configurations, None) == Terms(stack)


def test_no_memory_at_all_still_trains_one_by_one(study: Study) -> None:
    assert choose_terms(study, Capacity(2, memory=-1), 20, None) == Terms(1)


def test_on_a_gpu(study: Study) -> None:
    capacity = Capacity(16, gpus=1, memory=GIB, gpu_memory=80 * GIB)
    assert choose_terms(study, capacity, 20, None) == Terms(20, 1 / 2)  # cores do not split the stack here
    assert choose_terms(study, capacity, 20, 0.5) == Terms(20, 0.5)
    assert choose_terms(study, capacity, 20, 0) == choose_terms(study, replace(capacity, gpu_memory=0), 20, None)
    small = choose_terms(study, replace(capacity, gpu_memory=int(0.76 * GIB)), 20, None)
    assert small.gpus == 1
    assert 1 <= small.stack < 20


def test_a_gpu_that_is_not_there(study: Study) -> None:
    with pytest.raises(ConfigError, match="needs a GPU"):
        choose_terms(study, Capacity(2, memory=GIB), 20, 0.5)
