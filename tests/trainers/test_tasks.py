"""Tasks map scores, and ISH where it counts, to classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from her2cache.cohort import Slide, read_cohort, write_cohort
from her2cache.errors import CohortError, ConfigError
from tests.planted import planted_slides, planted_store
from trainers.config import SplitsSection, read_experiment
from trainers.model import AttentionMIL, Origin, TrainedModel
from trainers.splits import make_splits
from trainers.study import open_study
from trainers.tasks import PRESETS, find_task, mapped_task

SCORES = [(0, None), (1, None), (2, False), (2, True), (2, None), (3, None)]


@pytest.mark.parametrize(
    ("name", "labels", "positive"),
    [
        ("four", [0, 1, 2, 2, 2, 3], (2, 3)),
        ("paper-binary", [0, 0, 1, 1, 1, 1], (1,)),
        ("her2-low", [0, 1, 1, 2, None, 2], (2,)),
    ],
)
def test_presets(name: str, labels: list[int | None], positive: tuple[int, ...]) -> None:
    task = find_task(name)
    assert [task.label(score, ish) for score, ish in SCORES] == labels
    assert task.positive_classes() == positive
    assert {label for label in labels if label is not None} == set(range(len(task.classes)))


def test_an_unknown_task() -> None:
    with pytest.raises(ConfigError, match="her2-low"):
        find_task("five")


def test_a_cohort_carries_ish(tmp_path: Path) -> None:
    slides = (
        Slide("a", "a", tmp_path / "a.svs", "HE", 2, ish=True),
        Slide("b", "b", tmp_path / "b.svs", "HE", 2, ish=False),
    )
    write_cohort(slides, tmp_path / "cohort.csv")
    assert read_cohort(tmp_path / "cohort.csv").slides == slides
    table = tmp_path / "other.csv"
    table.write_text(
        "slide_id,case_id,path,stain,label,ISH\na,c,a.svs,HE,2,Positive\nb,c,b.svs,HE,2,-\nc,d,c.svs,HE,2,?\n"
    )
    with pytest.raises(CohortError, match=r"no result of in situ(.|\n)*") as error:
        read_cohort(table)
    assert "case 'c' is False here but True in row 2: a case has one result" in str(error.value)


def test_splits_take_ish_and_refuse_its_absence(tmp_path: Path) -> None:
    task = find_task("her2-low")
    plain = planted_slides(Path(), 32)
    slides = [replace(s, ish=i % 8 == 2) if s.her2_score == 2 else s for i, s in enumerate(plain)]
    splits = make_splits(slides, task, SplitsSection(folds=2, test_slides=8))
    assert {s.label for s in splits.slides if s.her2_score == 2} == {1, 2}
    with pytest.raises(CohortError, match="column ish"):
        make_splits(planted_slides(Path(), 32), task, SplitsSection(folds=2, test_slides=8))


def test_a_study_leaves_out_what_it_cannot_class(tmp_path: Path) -> None:
    planted_store(tmp_path, {"first": 1.0}, 32)
    text = (tmp_path / "cohort.csv").read_text().splitlines()
    rows = [f"{line},{'ish' if k == 0 else '+' if k == 3 else ''}" for k, line in enumerate(text)]
    (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "experiment.toml").write_text(
        '[data]\ncohort = "cohort.csv"\nstore = "store"\nembedders = ["first"]\n[task]\npreset = "her2-low"\n'
        "[splits]\nfolds = 2\n[bags]\nsize = 20\n"
    )
    study = open_study(read_experiment(tmp_path / "experiment.toml"))
    assert len(study.left_out) == 7  # of eight 2+, one has a result
    assert all("column ish" in why for why in study.left_out.values())
    assert {s.slide_id: s.label for s in study.splits.slides}["s02"] == 2


@pytest.mark.parametrize("name", PRESETS)
def test_a_checkpoint_keeps_its_task(tmp_path: Path, name: str) -> None:
    task = find_task(name)
    model = AttentionMIL.seeded(4, len(task.classes), 3, seed=0)
    TrainedModel(model, Origin("run", "key", "net", "digest", 0, 0, task)).save(tmp_path / "model.safetensors")
    assert TrainedModel.load(tmp_path / "model.safetensors").origin.task == task


def test_a_task_of_ones_own() -> None:
    task = mapped_task([0, 1, 1, 2])
    assert task.classes == ("0", "1+, 2+", "3+")
    assert [task.label(score) for score in range(4)] == [0, 1, 1, 2]
    assert task.positive_classes() == (1, 2)
    assert find_task(task.name) == task
    assert mapped_task([0, 0, 1, 1]).classes == find_task("paper-binary").classes


@pytest.mark.parametrize("classes", [[0, 0, 0, 0], [1, 1, 2, 2], [0, 2, 2, 3], [0, 1, 0, 1], [0, 1, 2], [0, 0, 1, 3]])
def test_classes_that_are_no_task(classes: list[int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rising with the score"):
        mapped_task(classes)
    path = tmp_path / "experiment.toml"
    path.write_text(f'[data]\ncohort = "c"\nstore = "s"\nembedders = ["a"]\n[task]\nclass_of_score = {classes}\n')
    with pytest.raises(ConfigError, match=r"toml:6: \[task\] class_of_score = "):
        read_experiment(path)


def test_a_mapped_task_in_an_experiment(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text('[data]\ncohort = "c"\nstore = "s"\nembedders = ["a"]\n[task]\nclass_of_score = [0, 1, 1, 1]\n')
    assert read_experiment(path).classification == find_task("map-0111")
