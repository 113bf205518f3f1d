"""A sweep over a real store under a real Ray, small: 2 embedders x 2 folds x 2 configurations."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from cluster.cli.files import SWEEP_FILES
from cluster.cli.sweep import init, sweep
from cluster.directory import locked
from cluster.resources import ray_session
from cluster.sweep import SweepOptions, SweepReport, run_sweep
from her2cache.errors import Her2CacheError, SweepError
from her2cache.store.reader import FeatureStore
from tests.cluster.test_events import scalars
from tests.planted import planted_experiment, planted_store
from trainers.config import read_experiment
from trainers.model import TrainedModel
from trainers.study import open_study

EXPERIMENT = planted_experiment(per_epoch=192, fixed=(60, 60), units=16, epochs=3, learning_rate="[1e-2, 1e-5]")


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with ray_session():
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    planted_store(folder, {"good": 6.0, "poor": 0.0})
    (folder / "experiment.toml").write_text(EXPERIMENT)
    return folder


@pytest.fixture(scope="module")
def done(project: Path) -> SweepReport:
    return run_sweep(project / "experiment.toml", project / "sweep", SweepOptions())


def copy_of(project: Path, to: Path) -> Path:
    for name in ("store", "sweep"):
        shutil.copytree(project / name, to / name)
    for name in ("experiment.toml", "cohort.csv"):
        shutil.copyfile(project / name, to / name)
    return to


def command(*arguments: object) -> Result:
    return CliRunner().invoke(sweep, [str(a) for a in arguments])


def tables(out: Path) -> dict[str, bytes]:
    """Everything that must not depend on how a sweep came about; times do."""
    runs = pq.read_table(out / "runs.parquet").drop_columns(["seconds"])
    names = ["results.parquet", "predictions.parquet", *sorted(path.name for path in out.glob("*.csv"))]
    return {name: (out / name).read_bytes() for name in names} | {"runs": str(runs.to_pylist()).encode()}


def test_the_files_of_a_sweep(done: SweepReport, project: Path) -> None:
    out = project / "sweep"
    names = {"experiment.toml", "environment.json", "splits.csv", "runs.parquet", "results.parquet"}
    names |= {"predictions.parquet", "baselines.csv", "table2.csv", "roc.csv", "roc.png"}
    assert names <= set(done.written) <= set(SWEEP_FILES)
    assert {p.name for p in out.iterdir()} == {*done.written, "ledger", "checkpoints", "tensorboard"}
    assert (out / "experiment.toml").read_text() == EXPERIMENT

    runs = pq.read_table(out / "runs.parquet").to_pylist()
    assert len(runs) == 2 * 2 * 2 * 3
    assert sum(r["best"] for r in runs) == len(done.runs) == 8
    results = pq.read_table(out / "results.parquet").to_pylist()
    assert [(r["embedder"], r["fold"]) for r in results] == [("good", 0), ("good", 1), ("poor", 0), ("poor", 1)]
    for r in results:
        assert (r["task"], r["n_bags"], r["n_slides"], r["n_cases"]) == ("four", 60, 4, 4)
        best = [x for x in runs if x["run_id"] == r["run_id"] and x["best"]]
        assert [(x["epoch"], x["val_loss"]) for x in best] == [(r["epoch"], r["val_loss"])]
    predictions = pq.read_table(out / "predictions.parquet").to_pylist()
    assert len(predictions) == 4 * 60
    assert all(sum(row[f"p_{c}"] for c in range(4)) == pytest.approx(1) for row in predictions)


def test_the_signal_is_found_where_it_is(done: SweepReport, project: Path) -> None:
    auc: dict[str, list[float]] = {"good": [], "poor": []}
    for row in pq.read_table(project / "sweep" / "results.parquet").to_pylist():
        auc[row["embedder"]].append(row["bag_auc"])
    assert np.mean(auc["good"]) > 0.75
    assert 0.2 < np.mean(auc["poor"]) < 0.8


def test_baselines_stand_beside_it(done: SweepReport, project: Path) -> None:
    with (project / "sweep" / "baselines.csv").open() as file:
        rows = {(row["baseline"], row["embedder"]): row for row in csv.DictReader(file)}
    assert set(rows) == {(name, e) for name in ("mean-pooled features", "permuted labels") for e in ("good", "poor")}
    assert {(row["test_cases"], row["cv_cases"]) for row in rows.values()} == {("4", "12")}


def test_only_the_chosen_configuration_is_tested(done: SweepReport, project: Path) -> None:
    tested = {r["run_id"] for r in pq.read_table(project / "sweep" / "results.parquet").to_pylist()}
    for embedder in ("good", "poor"):
        losses: dict[float, list[float]] = {}
        for run in done.runs:
            if run.embedder == embedder:
                losses.setdefault(run.configuration.learning_rate, []).append(run.val_loss)
        chosen = min(losses, key=lambda rate: float(np.mean(losses[rate])))
        own = {r.run_id for r in done.runs if r.embedder == embedder and r.configuration.learning_rate == chosen}
        assert own == {i for i in tested if i.startswith(embedder)}


def test_checkpoints_name_experiment_and_space(done: SweepReport, project: Path) -> None:
    experiment = read_experiment(project / "experiment.toml").digest()
    keys = {s.name: s.key for s in FeatureStore.open(project / "store").spaces()}
    for run in done.runs:
        path = project / "sweep" / "checkpoints" / f"{run.run_id}.safetensors"
        origin = TrainedModel.load(path, space_key=keys[run.embedder]).origin
        assert (origin.experiment, origin.run_id, origin.epoch) == (experiment, run.run_id, run.best)


def test_resuming_does_only_what_is_missing(done: SweepReport, project: Path, tmp_path: Path) -> None:
    copy = copy_of(project, tmp_path)
    out, file = copy / "sweep", copy / "experiment.toml"
    before = tables(out)
    with pytest.raises(SweepError, match="add --resume"):
        run_sweep(file, out, SweepOptions())

    lost = done.runs[0].run_id
    (out / "ledger" / f"{lost}.json").unlink()
    stamps = {p.name: p.stat().st_mtime_ns for p in (out / "ledger").iterdir()}
    for name in ("results.parquet", "predictions.parquet", "table2.csv"):
        (out / name).unlink()
    report = run_sweep(file, out, SweepOptions(resume=True))
    assert report.resumed == {r.run_id for r in done.runs} - {lost}
    assert tables(out) == before
    touched = {p.name for p in (out / "ledger").iterdir() if p.stat().st_mtime_ns != stamps.get(p.name)}
    assert touched == {f"{r.run_id}.json" for r in done.runs[:2]}  # the whole stack of the lost run, and no other

    again = run_sweep(file, out, SweepOptions(resume=True))
    assert again.resumed == {r.run_id for r in done.runs}
    assert tables(out) == before


@pytest.mark.slow
def test_the_stack_is_recorded_and_kept(done: SweepReport, project: Path, tmp_path: Path) -> None:
    """It is the unit of resume: another size would give other bits."""
    assert json.loads((project / "sweep" / "environment.json").read_text())["stack"] == 2
    copy = copy_of(project, tmp_path)
    out, file = copy / "sweep", copy / "experiment.toml"
    for run in done.runs[:2]:
        (out / "ledger" / f"{run.run_id}.json").unlink()
    with pytest.raises(SweepError, match="begun with --stack 2"):
        run_sweep(file, out, SweepOptions(resume=True, stack=1))
    environment = json.loads((out / "environment.json").read_text()) | {"stack": 1}  # as if it had begun so
    (out / "environment.json").write_text(json.dumps(environment))
    shutil.rmtree(out / "tensorboard")
    run_sweep(file, out, SweepOptions(resume=True))
    assert {p.name for p in (out / "tensorboard").iterdir()} == {run.run_id for run in done.runs[:2]}
    assert json.loads((out / "environment.json").read_text())["stack"] == 1


def test_one_sweep_at_a_time_in_a_directory(done: SweepReport, project: Path) -> None:
    with locked(project / "sweep"), pytest.raises(SweepError, match="another process sweeps in"):
        run_sweep(project / "experiment.toml", project / "sweep", SweepOptions(resume=True))


def test_it_goes_on_on_the_device_it_was_begun_on(done: SweepReport, project: Path, tmp_path: Path) -> None:
    copy = copy_of(project, tmp_path)
    out = copy / "sweep"
    (out / "ledger" / f"{done.runs[0].run_id}.json").unlink()
    environment = json.loads((out / "environment.json").read_text()) | {"gpus_per_fit": 0.5}  # as if it had begun so
    (out / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(SweepError, match="was begun on GPUs and would go on on processors"):
        run_sweep(copy / "experiment.toml", out, SweepOptions(resume=True))


@pytest.mark.slow
def test_a_run_whose_checkpoint_is_lost_is_trained_again(done: SweepReport, project: Path, tmp_path: Path) -> None:
    copy = copy_of(project, tmp_path)
    lost = copy / "sweep" / "checkpoints" / f"{done.runs[0].run_id}.safetensors"
    before = lost.read_bytes()
    lost.unlink()
    began = json.loads((copy / "sweep" / "environment.json").read_text())["started"]
    report = run_sweep(copy / "experiment.toml", copy / "sweep", SweepOptions(resume=True))
    assert report.resumed == {r.run_id for r in done.runs} - {done.runs[0].run_id}
    assert lost.read_bytes() == before
    assert json.loads((copy / "sweep" / "environment.json").read_text())["started"] == began


def test_slides_embedded_anew_do_not_mix_in(done: SweepReport, project: Path, tmp_path: Path) -> None:
    copy = copy_of(project, tmp_path)
    (record, *_) = sorted((copy / "store" / "commits").rglob("*.json"))
    document = json.loads(record.read_text())
    record.write_text(json.dumps(document | {"digest": "0" * 64}))
    with pytest.raises(SweepError, match="cohort or store"):
        run_sweep(copy / "experiment.toml", copy / "sweep", SweepOptions(resume=True))


def test_losses_stream_to_tensorboard(done: SweepReport, project: Path) -> None:
    for run in done.runs:
        losses = scalars(project / "sweep" / "tensorboard" / run.run_id)
        assert [step for step, _ in losses["val_loss"]] == [1, 2, 3]
        assert [loss for _, loss in losses["val_loss"]] == pytest.approx([e.val_loss for e in run.epochs])


def test_a_screening_is_no_part_of_another_sweep(done: SweepReport, project: Path, tmp_path: Path) -> None:
    file = project / "experiment.toml"
    with pytest.raises(SweepError, match=r"begun with --fraction 1, and this is 0\.5"):
        run_sweep(file, project / "sweep", SweepOptions(resume=True, fraction=0.5))
    copy = copy_of(project, tmp_path)
    before = tables(copy / "sweep")
    # as if it had begun so: what was trained stays, and all that comes after is done on half of the rows
    environment = json.loads((copy / "sweep" / "environment.json").read_text()) | {"fraction": 0.5}
    (copy / "sweep" / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(SweepError, match="begun with --fraction"):
        run_sweep(copy / "experiment.toml", copy / "sweep", SweepOptions(resume=True))
    result = command(copy / "experiment.toml", "--out", copy / "sweep", "--resume", "--fraction", "0.5", "--json")
    assert result.exit_code == 0, result.output
    assert "a screening: of each slide only the first 0.5" in json.loads(result.stdout)["warnings"][0]
    after = tables(copy / "sweep")
    changed = {name for name in before if after[name] != before[name]}
    assert {"predictions.parquet", "baselines.csv"} <= changed
    assert not {"runs", "selection.csv", "splits.csv"} & changed


def test_another_experiment_does_not_mix_in(done: SweepReport, project: Path, tmp_path: Path) -> None:
    copy = copy_of(project, tmp_path)
    file = copy / "experiment.toml"
    file.write_text(EXPERIMENT.replace("epochs = 3", "epochs = 4"))
    with pytest.raises(SweepError, match="of another experiment"):
        run_sweep(file, copy / "sweep", SweepOptions(resume=True))
    file.write_text(EXPERIMENT)
    cohort = (copy / "cohort.csv").read_text().splitlines()
    (copy / "cohort.csv").write_text("\n".join(cohort[:-1]))
    with pytest.raises(SweepError, match="cohort or store"):
        run_sweep(file, copy / "sweep", SweepOptions(resume=True))
    with pytest.raises(SweepError, match="not empty and holds no sweep"):
        run_sweep(file, copy / "store", SweepOptions(resume=True))


@pytest.mark.slow
def test_the_test_set_is_not_read_before_selection(done: SweepReport, project: Path, tmp_path: Path) -> None:
    """With the features of every test slide gone, all training and selection still happens."""
    copy = copy_of(project, tmp_path)
    shutil.rmtree(copy / "sweep")
    splits = [line.split(",") for line in (project / "sweep" / "splits.csv").read_text().splitlines()[1:]]
    for slide in (row[0] for row in splits if row[4] == "test"):
        (copy / "store" / "attempts" / slide).rename(copy / f"hidden-{slide}")
    with pytest.raises(Her2CacheError, match="is gone"):
        run_sweep(copy / "experiment.toml", copy / "sweep", SweepOptions())
    assert len(list((copy / "sweep" / "ledger").iterdir())) == 8
    assert not (copy / "sweep" / "results.parquet").exists()

    for hidden in copy.glob("hidden-*"):
        hidden.rename(copy / "store" / "attempts" / hidden.name.removeprefix("hidden-"))
    run_sweep(copy / "experiment.toml", copy / "sweep", SweepOptions(resume=True))
    assert tables(copy / "sweep") == tables(project / "sweep")


@pytest.mark.slow
def test_a_fit_that_fails_is_told_and_the_others_go_on(done: SweepReport, project: Path, tmp_path: Path) -> None:
    copy = copy_of(project, tmp_path)
    shutil.rmtree(copy / "sweep")
    bad = FeatureStore.open(copy / "store").find_space("poor")
    splits = open_study(read_experiment(copy / "experiment.toml")).splits
    attempts = copy / "store" / "attempts" / splits.training(0)[0].slide_id / bad.key
    (damaged,) = attempts.glob("*/features/c/0/0/0")
    with damaged.open("r+b") as file:
        file.write(b"\xff\xff")
    result = command(copy / "experiment.toml", "--out", copy / "sweep", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1, result.output
    assert {i["id"].split("-")[0]: i["status"] for i in found["items"]} == {"good": "done", "poor": "failed"}
    assert all("does not match its crc32c" in i["reason"] for i in found["items"] if i["status"] == "failed")
    ledger = {path.name for path in (copy / "sweep" / "ledger").iterdir()}
    assert ledger == {f"{i['id']}{'.failed' if i['status'] == 'failed' else ''}.json" for i in found["items"]}
    assert {r["embedder"] for r in pq.read_table(copy / "sweep" / "results.parquet").to_pylist()} == {"good"}
    reasons = {r["embedder"]: r["reason"] for r in pq.read_table(copy / "sweep" / "runs.parquet").to_pylist()}
    assert "crc32c" in reasons["poor"]
    assert reasons["good"] == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("epochs = 3", "epoch = 3"), "[training] epoch is not known"),
        (('"good", "poor"', '"unknown"'), "no feature space 'unknown'"),
        (('"good", "poor"', '"good", "good"'), "names a feature space twice"),
        (('"store"', '"nowhere"'), "is not a feature store"),
        (('"cohort.csv"', '"nowhere.csv"'), "nowhere.csv"),
        (("size = 20", "size = 61"), "has 60 patches, a bag needs 61"),
        (("folds = 2", "folds = 50"), "cannot make 50 folds"),
    ],
)
def test_what_cannot_run_is_told_in_one_line(change: tuple[str, str], message: str, project: Path) -> None:
    (project / "bad.toml").write_text(EXPERIMENT.replace(*change))
    result = command(project / "bad.toml", "--out", project / "bad")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (project / "bad").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fraction", "0"), "--fraction"),
        (("--fraction", "1.5"), "--fraction"),
        (("--gpus-per-fit", "1"), "needs a GPU"),
        (("--stack", "0"), "--stack"),
    ],
)
def test_options_that_make_no_sense(options: tuple[str, str], message: str, project: Path, tmp_path: Path) -> None:
    result = command(project / "experiment.toml", "--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_init_writes_files_that_can_be_read(tmp_path: Path) -> None:
    result = CliRunner().invoke(init, [str(tmp_path / "new")])
    assert result.exit_code == 0
    for name in ("paper.toml", "quick.toml"):
        read_experiment(tmp_path / "new" / name)
    (tmp_path / "new" / "quick.toml").write_text("mine")
    again = json.loads(CliRunner().invoke(init, [str(tmp_path / "new"), "--json"]).stdout)
    assert {i["id"]: i["status"] for i in again["items"]} == {"paper.toml": "skipped", "quick.toml": "skipped"}
    assert (tmp_path / "new" / "quick.toml").read_text() == "mine"
