"""How cases are dealt: to the test set, and to folds. Stratified by score, and a case always goes as a whole."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from her2cache.cohort import Slide
from her2cache.errors import CohortError, TrainingError

PAPER_FOLDS = 5


def draw_test_set(slides: Sequence[Slide], n_test: int, seed: int) -> set[str]:
    """Ids of the test slides: whole cases, drawn at random until each score has its share.

    Raises:
        TrainingError: nothing would be left to train on.
    """
    if n_test >= len(slides):
        raise TrainingError(
            f"[splits] test_slides = {n_test} leaves nothing to train on: there are {len(slides)} labelled slides with "
            "features; lower it, or add slides"
        )
    rng = np.random.default_rng(seed)
    cases: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for s in slides:
        cases[score_of(s)][s.case_id].append(s.slide_id)
    share = _shares({score: sum(map(len, own.values())) for score, own in cases.items()}, n_test)
    test: set[str] = set()
    for score in sorted(cases):
        taken: list[str] = []
        for case in rng.permutation(sorted(cases[score])).tolist():
            if len(taken) >= share[score]:
                break
            taken += cases[score][case]
        test.update(taken)
    return test


def _shares(sizes: dict[int, int], total: int) -> dict[int, int]:
    """Divides `total` in proportion to the sizes, by largest remainder."""
    exact = {key: total * size / sum(sizes.values()) for key, size in sizes.items()}
    shares = {key: int(value) for key, value in exact.items()}
    by_remainder = sorted(exact, key=lambda key: (shares[key] - exact[key], key))
    for key in by_remainder[: total - sum(shares.values())]:
        shares[key] += 1
    return shares


def plain_folds(slides: Sequence[Slide], seed: int) -> dict[str, int]:
    """Slide -> fold, as the original dealt them: slides shuffled, without regard to case or score.

    Raises:
        TrainingError: there are too few slides.
    """
    from sklearn.model_selection import KFold  # slow to import, and fits need only `Assignment`

    _need_cases(len(slides), PAPER_FOLDS)
    parts = KFold(PAPER_FOLDS, shuffle=True, random_state=seed).split(slides)
    return {slides[i].slide_id: fold for fold, (_, held_out) in enumerate(parts) for i in held_out}


def grouped_folds(slides: Sequence[Slide], folds: int, seed: int, key: str = "folds") -> dict[str, int]:
    """Slide -> fold; `key` is the one of [splits] that asks for so many.

    Raises:
        TrainingError: there are too few cases.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    scores, cases = [score_of(s) for s in slides], [s.case_id for s in slides]
    _need_cases(len(set(cases)), folds, key)
    with warnings.catch_warnings():  # scikit-learn warns of rare scores; `trainers.splits` says what follows
        warnings.simplefilter("ignore", UserWarning)
        try:
            splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
            parts = list(splitter.split(scores, scores, cases))
        except ValueError:
            parts = []
    if not parts or not all(len(held_out) for _, held_out in parts):
        raise TrainingError(
            f"{folds} folds cannot be made, no score has that many slides for training: "
            f"lower [splits] {key}, or add slides"
        )
    return {slides[i].slide_id: fold for fold, (_, held_out) in enumerate(parts) for i in held_out}


def score_of(slide: Slide) -> int:
    """Its HER2 score.

    Raises:
        CohortError: it has none.
    """
    if slide.her2_score is None:
        raise CohortError(f"slide {slide.slide_id} has no her2_score: fill it in, or leave the slide out")
    return slide.her2_score


def _need_cases(n: int, folds: int, key: str = "folds") -> None:
    if n < folds:
        raise TrainingError(
            f"{n} cases cannot make {folds} folds: lower [splits] {key}"
            f"{' or test_slides' if key == 'folds' else ''}, or add cases"
        )
