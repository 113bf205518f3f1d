"""Random search, ASHA and Optuna over a real store under a real Ray, small; and how they are resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import searches
from cluster.capacity import Capacity, Terms
from cluster.fits import Fits
from cluster.progress import SweepProgress
from cluster.resources import ray_session
from cluster.searches import asked_for, name_search
from cluster.sweep import SweepOptions, run_sweep
from her2cache.errors import ConfigError
from tests.plans import plan_of
from tests.planted import planted_experiment, planted_store
from trainers.candidates import draw_configurations
from trainers.config import SearchSection, TrainingSection, read_experiment
from trainers.ledger import Run, read_run
from trainers.stack import Configuration
from trainers.study import open_study


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with ray_session():
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searches")
    planted_store(folder, {"good": 6.0, "poor": 0.0})
    for method, samples, epochs in (("random", 3, 2), ("asha", 6, 9), ("optuna", 4, 2)):
        search = f'method = "{method}"\nsamples = {samples}\n'
        rates = "[1e-1, 1e-6]"
        text = planted_experiment(
            per_epoch=96, fixed=(60, 60), units=8, epochs=epochs, learning_rate=rates, search=search
        )
        (folder / f"{method}.toml").write_text(text)
    return folder


def train(project: Path, method: str, out: Path, stack: int = 1, at_once: int = 2) -> list[Run]:
    """All runs of an experiment, those trained that the ledger of `out` does not have."""
    study = open_study(read_experiment(project / f"{method}.toml"))
    fits = Fits(study, stack, out)
    failures = fits.train(Terms(stack), Capacity(at_once), progress := SweepProgress())
    assert progress.running == 0
    assert progress.epochs_done == progress.epochs
    assert not failures
    runs = fits.runs(failures)
    assert fits.complete()
    return runs


def by_embedder(runs: list[Run]) -> dict[str, dict[Configuration, list[Run]]]:
    found: dict[str, dict[Configuration, list[Run]]] = {}
    for r in runs:
        found.setdefault(r.embedder, {}).setdefault(r.configuration, []).append(r)
    return found


def stamps(out: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (out / "ledger").iterdir()}


@pytest.mark.slow
def test_random_trains_every_draw_in_stacks(project: Path, tmp_path: Path) -> None:
    runs = train(project, "random", tmp_path, stack=3)
    drawn = draw_configurations(
        TrainingSection(learning_rate=(1e-1, 1e-6), weight_decay=(1e-4,)), SearchSection(samples=3)
    )
    for tried in by_embedder(runs).values():
        assert tuple(tried) == drawn
        assert all(len(r.epochs) == 2 and not r.stopped for runs in tried.values() for r in runs)


@pytest.mark.slow
def test_asha_ends_the_worse_ones_early(project: Path, tmp_path: Path) -> None:
    out = tmp_path
    found = by_embedder(train(project, "asha", out))
    assert {name: len(tried) for name, tried in found.items()} == {"good": 6, "poor": 6}
    for tried in found.values():
        for runs in tried.values():
            assert len({len(r.epochs) for r in runs}) == 1  # a configuration is ended on all folds at once
            assert {r.stopped for r in runs} == ({""} if len(runs[0].epochs) == 9 else {"asha"})
            assert all(r.best is not None for r in runs)
        lengths = [len(runs[0].epochs) for runs in tried.values()]
        assert set(lengths) <= {1, 3, 9}
        assert min(lengths) < 9 == max(lengths)
    assert not (out / "state").exists()

    # what was lost is done again, and nothing else; the rungs are filled by what the ledger has
    lost = next(runs for runs in found["good"].values() if len(runs[0].epochs) == 9)
    before = stamps(out)
    (out / "ledger" / f"{lost[0].run_id}.json").unlink()
    assert len(train(project, "asha", out)) == 24
    now = stamps(out)
    assert {name for name in before if now[name] != before[name]} == {f"{lost[0].run_id}.json"}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "asha", "optuna"])
def test_a_whole_sweep_and_its_resumption(project: Path, tmp_path: Path, method: str) -> None:
    first = run_sweep(project / f"{method}.toml", tmp_path / "sweep", SweepOptions())
    again = run_sweep(project / f"{method}.toml", tmp_path / "sweep", SweepOptions(resume=True))
    assert again.resumed == {r.run_id for r in first.runs}
    assert again.runs == first.runs
    stack = json.loads((tmp_path / "sweep" / "environment.json").read_text())["stack"]
    assert stack == (3 if method == "random" else 1)


def without_times(runs: list[Run]) -> list[Run]:
    return [replace(r, epochs=tuple(replace(e, seconds=0.0) for e in r.epochs)) for r in runs]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["asha", "optuna"])
def test_what_a_search_tries_does_not_follow_timing(project: Path, tmp_path: Path, method: str) -> None:
    """One trial at a time, or two."""
    runs = [without_times(train(project, method, tmp_path / str(n), at_once=n)) for n in (1, 2)]
    assert runs[0] == runs[1]


@pytest.mark.slow
def test_optuna_goes_on_with_what_it_had_asked_for(project: Path, tmp_path: Path) -> None:
    out = tmp_path
    found = by_embedder(train(project, "optuna", out))
    assert {name: len(tried) for name, tried in found.items()} == {"good": 4, "poor": 4}
    for name, tried in found.items():
        assert asked_for(name, out) == tuple(tried)
        assert all(len(runs) == 2 and all(len(r.epochs) == 2 for r in runs) for runs in tried.values())

    lost = list(found["good"].values())[1]
    for r in lost:
        (out / "ledger" / f"{r.run_id}.json").unlink()
    before = stamps(out)
    again = train(project, "optuna", out)
    assert [list(tried) for tried in by_embedder(again).values()] == [list(tried) for tried in found.values()]
    now = stamps(out)
    assert {name: now[name] for name in before} == before
    for r in lost:  # the same configuration, and the same bits
        assert [e.val_loss for e in read_run(r.run_id, out / "ledger").epochs] == [e.val_loss for e in r.epochs]


def test_optuna_that_is_missing(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'her2cache\[optuna\]'"):
        run_sweep(project / "optuna.toml", tmp_path / "sweep", SweepOptions())
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("method", ["asha", "optuna"])
def test_searches_that_judge_single_configurations_take_no_stack(project: Path, tmp_path: Path, method: str) -> None:
    with pytest.raises(ConfigError, match="--stack 2 does not go with"):
        run_sweep(project / f"{method}.toml", tmp_path / "sweep", SweepOptions(stack=2))


def test_a_search_is_of_one_embedder_in_one_round() -> None:
    plans = [
        replace(plan_of(embedder, fold), outer=outer, embedder_seed=seed)
        for outer in (None, 0)
        for embedder, seed in (("a", 0), ("a", 1), ("b", 0))
        for fold in range(2)
    ]
    assert {name_search(p) for p in plans} == {"a", "b", "a-o0", "b-o0"}
    assert set(searches.searches_of(plans)) == {"a", "b", "a-o0", "b-o0"}
