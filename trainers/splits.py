"""The fixed test set and the folds. The case is the unit: no case is ever on two sides."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from her2cache.cohort import Slide
from her2cache.errors import CohortError, TrainingError
from trainers.config import SplitsSection
from trainers.folds import PAPER_FOLDS, draw_test_set, grouped_folds, plain_folds, score_of
from trainers.tasks import Task


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
        return proven(Splits(assigned, folds, ()), task)
    test = _given_test_set(slides) or draw_test_set(slides, settings.test_slides, settings.seed)
    rest = [s for s in slides if s.slide_id not in test]
    if settings.folds == "paper":
        fold_of = plain_folds(rest, settings.seed)
    else:
        fold_of = grouped_folds(rest, settings.folds, settings.seed)
    return proven(Splits(_assign(slides, task, test, fold_of), _number_of_folds(settings), ()), task)


def nested_splits(slides: Sequence[Slide], task: Task, settings: SplitsSection) -> tuple[Splits, ...]:
    """Outer folds of a nested cross-validation over all slides, each as a test set with the folds of all others.

    Every case is tested exactly once. Outer and inner folds are stratified by score and grouped by case, whatever the
    fixed test set and `folds = "paper"` say.

    Args:
        slides: every one with a score.
        task: gives the classes.
        settings: of the experiment; with `nested = 0` there are no outer folds.

    Raises:
        CohortError: a case would be on two sides.
        TrainingError: too few cases, or a class is missing in the training slides of a fold.
    """
    if not settings.nested:
        return ()
    outer_of = grouped_folds(slides, settings.nested, settings.seed, key="nested")
    folds = _number_of_folds(settings)
    found: list[Splits] = []
    for outer in range(settings.nested):
        test = {slide_id for slide_id, k in outer_of.items() if k == outer}
        fold_of = grouped_folds([s for s in slides if s.slide_id not in test], folds, settings.seed)
        bare = Splits(_assign(slides, task, test, fold_of), folds, ())
        found.append(proven(bare, task, of=f" of outer fold {outer}"))
    return tuple(found)


def _number_of_folds(settings: SplitsSection) -> int:
    return PAPER_FOLDS if settings.folds == "paper" else settings.folds


def _assign(slides: Sequence[Slide], task: Task, test: set[str], fold_of: dict[str, int]) -> tuple[Assignment, ...]:
    return tuple(
        Assignment(
            slide_id=s.slide_id,
            case_id=s.case_id,
            her2_score=score_of(s),
            label=_label(s, task),
            split="test" if s.slide_id in test else "train",
            fold=fold_of.get(s.slide_id),
        )
        for s in slides
    )


def kept(splits: Splits, slide_ids: Collection[str], task: Task, of: str = "") -> Splits:
    """Splits without the slides that do not take part; nothing else moves.

    Args:
        splits: of all slides.
        slide_ids: those that stay.
        task: gives the classes.
        of: which folds they are, for messages.

    Raises:
        TrainingError: a fold or the test set is empty then, or a class is missing in the training slides of a fold.
    """
    slides = tuple(s for s in splits.slides if s.slide_id in slide_ids)
    if len(slides) == len(splits.slides):
        return splits
    left = proven(Splits(slides, splits.folds, ()), task, of)
    sides = {f"the test set{of}": left.test} | {f"fold {k}{of}": left.validation(k) for k in range(left.folds)}
    for name, own in sides.items():
        if not own:
            raise TrainingError(
                f"no slide of {name} can be used: none of them is embedded, see the slides that are left out; embed"
                " them with `her2cache embed`"
            )
    return left


def proven(bare: Splits, task: Task, of: str = "") -> Splits:
    """Splits without a leak, with their warnings.

    Args:
        bare: what is to be proven.
        task: gives the classes.
        of: which folds they are, for messages.

    Raises:
        CohortError: a case is on two sides.
        TrainingError: a class is missing in the training slides of a fold.
    """
    _prove_no_leak(bare, of)
    return Splits(bare.slides, bare.folds, tuple(_missing_classes(bare, task, of)))


def write_splits(splits: Splits, path: Path) -> None:
    """Writes splits.csv; a test slide's fold is empty."""
    _write(path, [], ((s,) for s in splits.slides))


def write_nested_splits(nested: Sequence[Splits], path: Path) -> None:
    """Writes nested_splits.csv: the slides of every outer fold, `outer` telling which."""
    _write(path, ["outer"], ((k, s) for k, splits in enumerate(nested) for s in splits.slides))


def _write(path: Path, before: list[str], rows: Iterable[tuple[Any, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*before, *(f.name for f in fields(Assignment))])
        writer.writerows((*row[:-1], *astuple(row[-1])) for row in rows)


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
        assigned.append(Assignment(s.slide_id, s.case_id, score_of(s), label, "test" if not fold else "train", number))
    found = {s.fold for s in assigned if s.fold is not None}
    if len(found) < 2 or found != set(range(len(found))):
        raise CohortError(
            f"[splits] file {path} has folds {sorted(found)}: number at least two, from 0 and without a gap"
        )
    return tuple(assigned), len(found)


def _label(slide: Slide, task: Task) -> int:
    label = task.label(score_of(slide), slide.ish)
    if label is None:
        raise CohortError(
            f"slide {slide.slide_id} is 2+ without a result of in situ hybridisation, which the task {task.name} needs:"
            " fill in the column ish, or leave the slide out"
        )
    return label


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


def _prove_no_leak(splits: Splits, of: str) -> None:
    train = [s for s in splits.slides if s.split == "train"]
    sides = [(f"training{of}", train, "the test set", splits.test)] + [
        (f"training of fold {k}{of}", splits.training(k), "its validation", splits.validation(k))
        for k in range(splits.folds)
    ]
    for first, slides, second, others in sides:
        shared = sorted({s.case_id for s in slides} & {s.case_id for s in others})
        if shared:
            raise CohortError(
                f"cases {', '.join(shared)} have slides both in {first} and in {second}: results would be too good; "
                "group folds by case ([splits] folds = 5 instead of 'paper'), or mend the column split"
            )


def _missing_classes(splits: Splits, task: Task, of: str) -> Iterable[str]:
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
                f"no slide of class {name(lost)} is left to train fold {fold}{of}: there are too few of them; "
                f"lower [splits] {'nested' if of else 'test_slides'} or folds, choose another [task], or add slides"
            )
        if lost := missing(splits.validation(fold)):
            yield f"fold {fold}{of} validates without class {name(lost)}"
    if (lost := missing(splits.test)) and not of:  # outer folds are pooled
        yield f"the test set has no slide of class {name(lost)}: its metrics are undefined"
