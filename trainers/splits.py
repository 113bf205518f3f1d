"""The fixed test set and the folds. The case is the unit: no case is ever on two sides."""

from __future__ import annotations

import csv
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from her2cache.cohort import Slide
from her2cache.errors import CohortError, TrainingError
from trainers.config import SplitsSection
from trainers.tasks import Task

PAPER_FOLDS = 5


@dataclass(frozen=True)
class Assignment:
    """Where one slide belongs.

    Attributes:
        slide_id, case_id: of the slide.
        her2_score: 0 to 3.
        label: its class in the task.
        split: "train" or "test".
        fold: the fold it validates; None for a test slide.
    """

    slide_id: str
    case_id: str
    her2_score: int
    label: int
    split: Literal["train", "test"]
    fold: int | None


@dataclass(frozen=True)
class Splits:
    """A test set and folds without a leak.

    Attributes:
        slides: in the order of the cohort.
        folds: how many.
        warnings: what a reader of the results should know.
    """

    slides: tuple[Assignment, ...]
    folds: int
    warnings: tuple[str, ...]

    @property
    def test(self) -> tuple[Assignment, ...]:
        return tuple(s for s in self.slides if s.split == "test")

    def training(self, fold: int) -> tuple[Assignment, ...]:
        """Slides that train a model of this fold."""
        return tuple(s for s in self.slides if s.split == "train" and s.fold != fold)

    def validation(self, fold: int) -> tuple[Assignment, ...]:
        """Slides that choose among the models of this fold."""
        return tuple(s for s in self.slides if s.fold == fold)


def make_splits(slides: Sequence[Slide], task: Task, settings: SplitsSection) -> Splits:
    """Splits labelled slides.

    The cohort's column `split` decides the test set where it is given; else cases are drawn score by score.

    Args:
        slides: every one with a score.
        task: gives the classes.
        settings: of the experiment.

    Raises:
        CohortError: a case would be on two sides, the column `split` is half filled, or the given file does not fit.
        TrainingError: too few cases, or a class is missing in the training slides of a fold.
    """
    if settings.file is not None:
        assigned, folds = _read_splits(Path(settings.file), slides, task)
        return _proven(Splits(assigned, folds, ()), task)
    test = _given_test_set(slides) or _draw_test_set(slides, settings.test_slides, settings.seed)
    rest = [s for s in slides if s.slide_id not in test]
    fold_of = _plain_folds(rest, settings.seed) if settings.folds == "paper" else _grouped_folds(rest, settings)
    assigned = tuple(
        Assignment(
            slide_id=s.slide_id,
            case_id=s.case_id,
            her2_score=_score(s),
            label=_label(s, task),
            split="test" if s.slide_id in test else "train",
            fold=fold_of.get(s.slide_id),
        )
        for s in slides
    )
    folds = PAPER_FOLDS if settings.folds == "paper" else settings.folds
    return _proven(Splits(assigned, folds, ()), task)


def _proven(bare: Splits, task: Task) -> Splits:
    """Splits without a leak, with their warnings."""
    _prove_no_leak(bare)
    return Splits(bare.slides, bare.folds, tuple(_missing_classes(bare, task)))


def write_splits(splits: Splits, path: Path) -> None:
    """Writes splits.csv; a test slide's fold is empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([f.name for f in fields(Assignment)])
        writer.writerows(astuple(s) for s in splits.slides)


def _read_splits(path: Path, slides: Sequence[Slide], task: Task) -> tuple[tuple[Assignment, ...], int]:
    """The split in a file with the columns slide_id, split and fold, and its number of folds.

    Cases, scores and classes are the cohort's. A slide that only the file has is passed over: it was left out here.

    Raises:
        CohortError: the file cannot be read, lacks a slide, or does not number its folds from 0.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = {row["slide_id"]: (row["split"], row["fold"]) for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError(f"[splits] file {path} cannot be read ({error}): name a splits.csv") from error
    except KeyError as error:
        raise CohortError(
            f"[splits] file {path} has no column {error}: it needs slide_id, split (train or test) and fold"
        ) from error
    missing = [s.slide_id for s in slides if s.slide_id not in rows]
    if missing:
        raise CohortError(
            f"[splits] file {path} does not say where {', '.join(missing[:5])} belongs ({len(missing)} slides are not"
            " in it): add them, or leave them out of the cohort"
        )
    assigned: list[Assignment] = []
    for s in slides:
        split, fold = rows[s.slide_id]
        fits = (split == "test" and not fold) or (split == "train" and fold.isdecimal())
        if not fits:
            raise CohortError(
                f"[splits] file {path}: slide {s.slide_id} has split {split!r} and fold {fold!r}; write train with a"
                " fold from 0, or test with an empty fold"
            )
        label = _label(s, task)
        number = int(fold) if fold else None
        assigned.append(Assignment(s.slide_id, s.case_id, _score(s), label, "test" if not fold else "train", number))
    found = {s.fold for s in assigned if s.fold is not None}
    if len(found) < 2 or found != set(range(len(found))):
        raise CohortError(
            f"[splits] file {path} has folds {sorted(found)}: number at least two, from 0 and without a gap"
        )
    return tuple(assigned), len(found)


def _label(slide: Slide, task: Task) -> int:
    label = task.label(_score(slide), slide.ish)
    if label is None:
        raise CohortError(
            f"slide {slide.slide_id} is 2+ without a result of in situ hybridisation, which the task {task.name} needs:"
            " fill in the column ish, or leave the slide out"
        )
    return label


def _score(slide: Slide) -> int:
    if slide.her2_score is None:
        raise CohortError(f"slide {slide.slide_id} has no her2_score: fill it in, or leave the slide out")
    return slide.her2_score


def _given_test_set(slides: Sequence[Slide]) -> set[str]:
    given = [s for s in slides if s.split is not None]
    if not given:
        return set()
    if len(given) < len(slides):
        blank = ", ".join(s.slide_id for s in slides if s.split is None)
        raise CohortError(f"the column split is empty for {blank} but filled for others: fill it for all or for none")
    test = {s.slide_id for s in slides if s.split == "test"}
    if not test:
        raise CohortError("the column split has no slide in test: mark some, or empty the column to have them drawn")
    return test


def _draw_test_set(slides: Sequence[Slide], n_test: int, seed: int) -> set[str]:
    """Whole cases, drawn at random until each score has its share of the test slides."""
    if n_test >= len(slides):
        raise TrainingError(
            f"[splits] test_slides = {n_test} leaves nothing to train on: there are {len(slides)} labelled slides with "
            "features; lower it, or add slides"
        )
    rng = np.random.default_rng(seed)
    cases: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for s in slides:
        cases[_score(s)][s.case_id].append(s.slide_id)
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


def _plain_folds(slides: Sequence[Slide], seed: int) -> dict[str, int]:
    """The original's folds: slides shuffled, without regard to case or score."""
    from sklearn.model_selection import KFold  # slow to import, and fits need only `Assignment`

    _need_cases(len(slides), PAPER_FOLDS)
    parts = KFold(PAPER_FOLDS, shuffle=True, random_state=seed).split(slides)
    return {slides[i].slide_id: fold for fold, (_, held_out) in enumerate(parts) for i in held_out}


def _grouped_folds(slides: Sequence[Slide], settings: SplitsSection) -> dict[str, int]:
    from sklearn.model_selection import StratifiedGroupKFold

    folds = int(settings.folds)
    scores, cases = [_score(s) for s in slides], [s.case_id for s in slides]
    _need_cases(len(set(cases)), folds)
    with warnings.catch_warnings():  # scikit-learn warns of rare scores; `_missing_classes` says what follows
        warnings.simplefilter("ignore", UserWarning)
        try:
            splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=settings.seed)
            parts = list(splitter.split(scores, scores, cases))
        except ValueError as error:
            raise TrainingError(
                f"{folds} folds cannot be made, no score has that many slides for training: "
                "lower [splits] folds, or add slides"
            ) from error
    return {slides[i].slide_id: fold for fold, (_, held_out) in enumerate(parts) for i in held_out}


def _need_cases(n: int, folds: int) -> None:
    if n < folds:
        raise TrainingError(
            f"{n} cases for training cannot make {folds} folds: lower [splits] folds or test_slides, or add cases"
        )


def _prove_no_leak(splits: Splits) -> None:
    train = [s for s in splits.slides if s.split == "train"]
    sides = [("training", train, "the test set", splits.test)] + [
        (f"training of fold {k}", splits.training(k), "its validation", splits.validation(k))
        for k in range(splits.folds)
    ]
    for first, slides, second, others in sides:
        shared = sorted({s.case_id for s in slides} & {s.case_id for s in others})
        if shared:
            raise CohortError(
                f"cases {', '.join(shared)} have slides both in {first} and in {second}: results would be too good; "
                "group folds by case ([splits] folds = 5 instead of 'paper'), or mend the column split"
            )


def _missing_classes(splits: Splits, task: Task) -> Iterable[str]:
    """Warns of classes that validation or test lacks.

    Raises:
        TrainingError: training lacks one.
    """
    name: Callable[[set[int]], str] = lambda labels: ", ".join(task.classes[c] for c in sorted(labels))  # noqa: E731
    every = set(range(len(task.classes)))

    def missing(slides: Sequence[Assignment]) -> set[int]:
        return every - Counter(s.label for s in slides).keys()

    for fold in range(splits.folds):
        if lost := missing(splits.training(fold)):
            raise TrainingError(
                f"no slide of class {name(lost)} is left to train fold {fold}: there are too few of them; "
                "lower [splits] test_slides or folds, choose another [task], or add slides"
            )
        if lost := missing(splits.validation(fold)):
            yield f"fold {fold} validates without class {name(lost)}"
    if lost := missing(splits.test):
        yield f"the test set has no slide of class {name(lost)}: its metrics are undefined"
