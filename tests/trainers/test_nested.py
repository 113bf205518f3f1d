"""Nested cross-validation: every case is tested once, by models that have not seen it."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2cache.errors import CohortError, TrainingError
from tests.planted import planted_slides
from trainers.config import SplitsSection
from trainers.splits import Splits, make_splits, nested_splits, proven, write_nested_splits
from trainers.tasks import find_task

FOUR = find_task("four")
HERE = Path()


@settings(max_examples=15)
@given(st.integers(40, 70), st.integers(3, 6), st.sampled_from([3, 5, "paper"]), st.integers(0, 50))
def test_outer_and_inner_folds_do_not_leak(n: int, outer: int, folds: int, seed: int) -> None:
    slides = [replace(s, slide_id=f"{s.slide_id}{side}") for s in planted_slides(HERE, n) for side in "ab"]
    nested = nested_splits(slides, FOUR, SplitsSection(nested=outer, folds=folds, seed=seed))
    assert len(nested) == outer
    tested = [s.case_id for splits in nested for s in splits.test]
    assert Counter(tested) == {s.case_id: 2 for s in slides}  # both slides of each case, once each
    for splits in nested:
        assert splits.folds == (5 if folds == "paper" else folds)
        held: list[str] = []
        for fold in range(splits.folds):
            parts = (splits.training(fold), splits.validation(fold), splits.test)
            cases = [{s.case_id for s in part} for part in parts]
            assert sum(map(len, cases)) == len(set.union(*cases)) == n
            held += [s.slide_id for s in splits.validation(fold)]
        assert sorted(held + [s.slide_id for s in splits.test]) == sorted(s.slide_id for s in slides)


def test_outer_folds_are_stratified_by_score() -> None:
    for splits in nested_splits(planted_slides(HERE, 52), FOUR, SplitsSection(nested=5)):
        n = Counter(s.label for s in splits.test)
        assert set(n) == {0, 1, 2, 3}
        assert max(n.values()) - min(n.values()) <= 1


def test_the_fixed_test_set_takes_part_and_stays_as_it_is() -> None:
    slides = planted_slides(HERE, 52)
    nested = nested_splits(slides, FOUR, SplitsSection(nested=5))
    assert nested == nested_splits(slides, FOUR, SplitsSection(nested=5))
    assert nested != nested_splits(slides, FOUR, SplitsSection(nested=5, seed=7))
    assert make_splits(slides, FOUR, SplitsSection(nested=5)) == make_splits(slides, FOUR, SplitsSection())
    marked = [replace(s, split="test" if i < 8 else "train") for i, s in enumerate(slides)]
    assert nested_splits(marked, FOUR, SplitsSection(nested=5)) == nested
    assert nested_splits(slides, FOUR, SplitsSection()) == ()


def test_what_cannot_be_nested_is_told() -> None:
    slides = planted_slides(HERE, 40)
    few = [s for s in slides if s.her2_score != 3 or s.slide_id == "s03"]
    with pytest.raises(
        TrainingError, match=r"class 3\+ is left to train fold \d of outer fold \d: .* lower \[splits\] nest"
    ):
        nested_splits(few, FOUR, SplitsSection(nested=3, folds=3))
    with pytest.raises(TrainingError, match=r"4 cases cannot make 5 folds: lower \[splits\] nested, or add"):
        nested_splits(planted_slides(HERE, 4), FOUR, SplitsSection(nested=5))
    two = [s for s in slides if s.her2_score != 3 or s.slide_id in {"s03", "s07", "s11"}]
    found = nested_splits(two, FOUR, SplitsSection(nested=3, folds=3))
    assert any("of outer fold 0 validates without class" in w for splits in found for w in splits.warnings)


def test_a_leak_is_an_error() -> None:
    """The proof does not rest on whoever dealt the folds."""
    (splits, *_) = nested_splits(planted_slides(HERE, 40), FOUR, SplitsSection(nested=3, folds=3))
    test, train = splits.test[0], splits.training(0)[0]

    def moved(slide_id: str, case_id: str) -> Splits:
        slides = (replace(s, case_id=case_id) if s.slide_id == slide_id else s for s in splits.slides)
        return replace(splits, slides=tuple(slides))

    assert proven(splits, FOUR) == splits
    with pytest.raises(
        CohortError, match=rf"{train.case_id} have slides both in training of outer fold 0 and in the test"
    ):
        proven(moved(test.slide_id, train.case_id), FOUR, " of outer fold 0")
    held = splits.validation(0)[0]
    with pytest.raises(CohortError, match="both in training of fold 0 of outer fold 0 and in its validation"):
        proven(moved(held.slide_id, train.case_id), FOUR, " of outer fold 0")


def test_nested_splits_csv(tmp_path: Path) -> None:
    nested = nested_splits(planted_slides(HERE, 24), FOUR, SplitsSection(nested=3, folds=2))
    write_nested_splits(nested, tmp_path / "nested_splits.csv")
    with (tmp_path / "nested_splits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["outer", "slide_id", "case_id", "her2_score", "label", "split", "fold"]
    assert len(rows) == 3 * 24
    for outer, splits in enumerate(nested):
        test = {row["slide_id"] for row in rows if row["outer"] == str(outer) and row["split"] == "test"}
        assert test == {s.slide_id for s in splits.test}
        assert all(row["fold"] == "" for row in rows if row["outer"] == str(outer) and row["slide_id"] in test)
