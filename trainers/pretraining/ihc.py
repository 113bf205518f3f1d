"""The IHC source task: patches of IHC slides, each labelled with its slide's score.

No label of a case that a sweep tests on may reach the embedder (science.md rule 2.1), so those cases take no part, not
even in the test that Table 1 reports.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from her2cache.cohort import Slide
from her2cache.errors import CohortError, TrainingError
from trainers.folds import draw_test_set, score_of
from trainers.pretraining.cutting import CutSlide
from trainers.pretraining.patches import Block, SourceData

CLASSES = ("0", "1+", "2+", "3+")
SHARE = 0.15
"""Of the slides: that choose the epoch, and as many again for the test of Table 1."""

_BLOCK = 64


@dataclass(frozen=True)
class Parts:
    """Slides by what they are for; no case is in two of them."""

    train: tuple[Slide, ...]
    valid: tuple[Slide, ...]
    test: tuple[Slide, ...]

    @property
    def slides(self) -> tuple[Slide, ...]:
        return self.train + self.valid + self.test


def part_slides(slides: Sequence[Slide], held_out: Collection[str], seed: int) -> Parts:
    """Deals slides out, by case and stratified by score.

    Args:
        slides: of stain IHC.
        held_out: ids of the cases that take no part.
        seed: of the draw.

    Raises:
        CohortError: no slide with a score is left.
        TrainingError: there are too few, or a score is missing in training.
    """
    used = [s for s in slides if s.her2_score is not None and s.case_id not in held_out]
    if not used:
        raise CohortError(
            f"no IHC slide with a her2_score is left to train on: {len(slides)} slides of the cohort are IHC, and"
            f" {len(held_out)} cases are held out for the sweep; check the columns stain and her2_score"
        )
    scores = {score_of(s) for s in used}
    n = max(len(scores), round(SHARE * len(used)))
    test = draw_test_set(used, n, seed)
    rest = [s for s in used if s.slide_id not in test]
    valid = draw_test_set(rest, n, seed + 1)
    parts = Parts(*(tuple(part) for part in _deal(used, valid, test)))
    if missing := scores - {score_of(s) for s in parts.train}:
        names = ", ".join(CLASSES[score] for score in sorted(missing))
        raise TrainingError(f"no IHC slide of score {names} is left to train on: there are too few; add slides")
    return parts


def _deal(slides: Sequence[Slide], valid: set[str], test: set[str]) -> Iterator[list[Slide]]:
    yield [s for s in slides if s.slide_id not in valid | test]
    yield [s for s in slides if s.slide_id in valid]
    yield [s for s in slides if s.slide_id in test]


class SlidePatches:
    """Cut patches of some slides, as many of each slide an epoch: the mean of what they have.

    A slide with fewer repeats some of them, one with more leaves some for other epochs.
    """

    def __init__(self, slides: Sequence[CutSlide]) -> None:
        self.slides = tuple(slides)
        self._an_epoch = round(np.mean([s.n for s in self.slides]))

    @property
    def size(self) -> int:
        """Patches an epoch."""
        return self._an_epoch * len(self.slides)

    def shuffled(self, seed: int, epoch: int) -> Iterator[Block]:
        """An epoch in random order, see `trainers.pretraining.patches.PatchSet`."""
        rng = np.random.default_rng([seed, epoch])
        rows = np.concatenate([_draw(rng, s.n, self._an_epoch) for s in self.slides])  # (size,)
        of = np.repeat(np.arange(len(self.slides)), self._an_epoch)  # (size,), slide of each row
        order = rng.permutation(len(rows))
        maps = [s.open() for s in self.slides]
        labels = np.array([s.label for s in self.slides], np.int64)
        for start in range(0, len(order), _BLOCK):
            block = order[start : start + _BLOCK]
            yield np.stack([maps[of[k]][rows[k]] for k in block]), labels[of[block]]

    def ordered(self) -> Iterator[Block]:
        """Every patch once, slide by slide."""
        for slide in self.slides:
            patches = slide.open()
            for start in range(0, slide.n, _BLOCK):
                block = np.asarray(patches[start : start + _BLOCK])
                yield block, np.full(len(block), slide.label, np.int64)


def _draw(rng: np.random.Generator, n: int, wanted: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """`wanted` of n rows, each as often as another, or once more."""
    whole, rest = divmod(wanted, n)
    return np.concatenate([np.tile(np.arange(n), whole), rng.permutation(n)[:rest]])


def ihc_data(cut: Sequence[CutSlide], parts: Parts, mpp: float) -> SourceData:
    """The source task of slides that were cut; those that could not be are left out.

    Args:
        cut: patches on disk, in any order.
        parts: what their slides are for.
        mpp: scale of the patches, um/px.

    Raises:
        TrainingError: nothing is left of a part, or a score is missing in training.
    """
    by_id = {each.slide_id: each for each in cut}
    train, valid, test = (
        [by_id[s.slide_id] for s in part if s.slide_id in by_id] for part in (parts.train, parts.valid, parts.test)
    )
    wanted = {score_of(s) for s in parts.train}
    if not (valid and test) or {s.label for s in train} != wanted:
        raise TrainingError(
            f"of {len(parts.slides)} IHC slides only {len(by_id)} could be cut, which leaves a part without slides or"
            " training without a score: see the slides that failed"
        )
    digest = hashlib.sha256("".join(f"{s.slide_id}:{s.label}:{s.sha256};" for s in train + valid + test).encode())
    return SourceData(
        source_task="ihc",
        classes=CLASSES,
        source_mpp=mpp,
        px=train[0].px,
        digest=digest.hexdigest(),
        train=SlidePatches(train),
        valid=SlidePatches(valid),
        test=SlidePatches(test),
        case_ids=tuple(sorted({s.case_id for s in train + valid})),
    )
