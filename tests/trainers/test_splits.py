from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from sklearn.model_selection import KFold

from her2cache.cohort import Slide
from her2cache.errors import CohortError, TrainingError
from tests.planted import planted_slides
from trainers.config import SplitsSection
from trainers.splits import Splits, make_splits, write_splits
from trainers.tasks import find_task

FOUR = find_task("four")
HERE = Path()


def cases(slides: object) -> set[str]:
    return {s.case_id for s in slides}  # type: ignore[attr-defined]


def assert_no_leak(splits: Splits) -> None:
    for fold in range(splits.folds):
        training, validation = splits.training(fold), splits.validation(fold)
        assert not cases(training) & cases(validation)
        assert not cases(training + validation) & cases(splits.test)
        assert len(training) + len(validation) + len(splits.test) == len(splits.slides)


def test_the_papers_numbers_stratified_by_score() -> None:
    splits = make_splits(planted_slides(HERE, 52), FOUR, SplitsSection())
    assert_no_leak(splits)
    assert Counter(s.label for s in splits.test) == {0: 2, 1: 2, 2: 2, 3: 2}
    for fold in range(5):
        n = Counter(s.label for s in splits.validation(fold))
        assert len(n) == 4
        assert max(n.values()) - min(n.values()) <= 1
    assert splits.warnings == ()


def test_two_slides_of_a_case_stay_together() -> None:
    twins = [replace(s, slide_id=f"{s.slide_id}{side}") for s in planted_slides(HERE, 24) for side in ("left", "right")]
    splits = make_splits(twins, FOUR, SplitsSection(folds=3))
    assert_no_leak(splits)
    assert len(splits.test) == 8


def test_the_same_seed_gives_the_same_splits() -> None:
    slides = planted_slides(HERE, 40)
    assert make_splits(slides, FOUR, SplitsSection()) == make_splits(slides, FOUR, SplitsSection())
    other = make_splits(slides, FOUR, SplitsSection(seed=7))
    assert cases(other.test) != cases(make_splits(slides, FOUR, SplitsSection()).test)


def test_the_column_split_decides_where_it_is_given() -> None:
    slides = [replace(s, split="test" if i >= 20 else "train") for i, s in enumerate(planted_slides(HERE, 24))]
    splits = make_splits(slides, FOUR, SplitsSection(folds=3, test_slides=2))
    assert [s.slide_id for s in splits.test] == ["s20", "s21", "s22", "s23"]
    with pytest.raises(CohortError, match="the column split is empty for s03"):
        make_splits([*slides[:3], replace(slides[3], split=None), *slides[4:]], FOUR, SplitsSection(folds=3))
    with pytest.raises(CohortError, match="no slide in test"):
        make_splits([replace(s, split="train") for s in slides], FOUR, SplitsSection(folds=3))


def test_the_papers_folds_are_its_kfold() -> None:
    slides = planted_slides(HERE, 52)
    splits = make_splits(slides, FOUR, SplitsSection(folds="paper"))
    rest = [s.slide_id for s in splits.slides if s.split == "train"]
    expected = [{rest[i] for i in held} for _, held in KFold(5, shuffle=True, random_state=123).split(rest)]
    assert [{s.slide_id for s in splits.validation(k)} for k in range(5)] == expected


def test_a_leak_is_an_error() -> None:
    twins = [replace(s, slide_id=f"{s.slide_id}{side}") for s in planted_slides(HERE, 24) for side in "ab"]
    with pytest.raises(CohortError, match=r"cases .*case\d+.* have slides both in training of fold 0 and in its valid"):
        make_splits(twins, FOUR, SplitsSection(folds="paper"))
    marked = [replace(s, split="test" if s.slide_id in {"s00a", "s05b"} else "train") for s in twins]
    with pytest.raises(CohortError, match="cases case00, case05 have slides both in training and in the test set"):
        make_splits(marked, FOUR, SplitsSection(folds=3))


def test_a_class_that_training_lacks_is_an_error_elsewhere_a_warning() -> None:
    few = [s for s in planted_slides(HERE, 40) if s.her2_score != 3 or s.slide_id in {"s03", "s07"}]
    splits = make_splits(few, FOUR, SplitsSection(folds=3, test_slides=4))
    assert "fold" in splits.warnings[0]
    assert "validates without class 3+" in splits.warnings[0]
    none = [s for s in few if s.her2_score != 3]
    with pytest.raises(TrainingError, match=r"no slide of class 3\+ is left to train fold 0"):
        make_splits(none, FOUR, SplitsSection(folds=3))


def test_the_binary_task_labels_as_the_paper_did() -> None:
    splits = make_splits(planted_slides(HERE, 40), find_task("paper-binary"), SplitsSection())
    assert {(s.her2_score, s.label) for s in splits.slides} == {(0, 0), (1, 0), (2, 1), (3, 1)}


@pytest.mark.parametrize("folds", [5, "paper"])
def test_too_few_cases_are_told(folds: object) -> None:
    with pytest.raises(TrainingError, match="cannot"):
        make_splits(planted_slides(HERE, 8), FOUR, SplitsSection(folds=folds, test_slides=4))  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="leaves nothing to train on"):
        make_splits(planted_slides(HERE, 8), FOUR, SplitsSection(test_slides=8))


def test_splits_csv(tmp_path: Path) -> None:
    slides = [
        Slide(s.slide_id, s.case_id, s.path, "HE", s.her2_score, "test" if s.slide_id == "s01" else "train")
        for s in planted_slides(HERE, 16)
    ]
    write_splits(make_splits(slides, FOUR, SplitsSection(folds=2)), tmp_path / "splits.csv")
    lines = (tmp_path / "splits.csv").read_text().splitlines()
    assert lines[0] == "slide_id,case_id,her2_score,label,split,fold"
    assert lines[2] == "s01,case01,1,1,test,"
    assert len(lines) == 17


class TestFile:
    def test_a_split_that_was_written_is_read_back(self, tmp_path: Path) -> None:
        slides = planted_slides(HERE, 24)
        splits = make_splits(slides, FOUR, SplitsSection(folds=3, seed=7))
        write_splits(splits, tmp_path / "splits.csv")
        again = make_splits(slides, FOUR, SplitsSection(file=str(tmp_path / "splits.csv")))
        assert again == splits
        fewer = make_splits(slides[:-1], FOUR, SplitsSection(file=str(tmp_path / "splits.csv")))
        assert fewer.slides == splits.slides[:-1]

    def test_three_columns_are_enough_and_cases_are_the_cohorts(self, tmp_path: Path) -> None:
        slides = planted_slides(HERE, 16)
        rows = [
            f"{s.slide_id},{'test' if k < 4 else 'train'},{'' if k < 4 else k // 4 - 1}" for k, s in enumerate(slides)
        ]
        path = tmp_path / "mine.csv"
        path.write_text("\n".join(["slide_id,split,fold", *rows]))
        splits = make_splits(slides, FOUR, SplitsSection(file=str(path)))
        assert_no_leak(splits)
        assert [s.fold for s in splits.slides] == [None] * 4 + [0] * 4 + [1] * 4 + [2] * 4
        twins = [replace(s, case_id="one") if k in {0, 15} else s for k, s in enumerate(slides)]
        with pytest.raises(CohortError, match="cases one have slides both in"):
            make_splits(twins, FOUR, SplitsSection(file=str(path)))

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("slide_id,split\ns00,train\n", "no column 'fold'"),
            ("slide_id,split,fold\ns00,train,0\n", "does not say where s01"),
            ("slide_id,split,fold\ns00,train,0\ns01,valid,1\n", "split 'valid' and fold '1'"),
            ("slide_id,split,fold\ns00,train,0\ns01,test,1\n", "split 'test' and fold '1'"),
            ("slide_id,split,fold\ns00,train,0\ns01,train,2\n", "folds \\[0, 2\\]"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path: Path, text: str, says: str) -> None:
        path = tmp_path / "splits.csv"
        path.write_text(text)
        with pytest.raises(CohortError, match=says):
            make_splits(planted_slides(HERE, 2), FOUR, SplitsSection(file=str(path)))
        with pytest.raises(CohortError, match="cannot be read"):
            make_splits(planted_slides(HERE, 2), FOUR, SplitsSection(file=str(tmp_path / "none.csv")))
