"""Whether an embedder has seen what its features are judged by (science.md rule 2.1).

Weights that were trained on cases of the cohort (`pretrain ihc`) know the labels of these. Test cases must not be among
them. Where validation cases are, the losses that choose epoch and configuration are too good, and every table says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from her2cache.store.reader import SpaceInfo
from her2cache.weights import WeightsCard
from trainers.splits import Splits

Overlap = Literal["", "validation", "test"]
"""Which cases' labels the weights of an embedder have seen, the gravest of them."""

_OF_CASES = {"mean", "std", "data_digest", "metrics", "case_ids", "settings"}

GRAVITY: tuple[Overlap, ...] = ("", "validation", "test")


def overlap(space: SpaceInfo, splits: Splits, fold: int) -> Overlap:
    """Whether the weights of a space have seen cases that a model of a fold is judged by."""
    if space.card is None:
        return ""
    seen = set(space.card.case_ids)
    if seen & {s.case_id for s in splits.test}:
        return "test"
    return "validation" if seen & {s.case_id for s in splits.validation(fold)} else ""


def least(choices: Sequence[SpaceInfo], splits: Splits, fold: int) -> SpaceInfo:
    """Of the spaces of one embedder, whose weights left out different cases, the one that has seen least; then the
    first."""
    return min(choices, key=lambda space: GRAVITY.index(overlap(space, splits, fold)))


def gravest(found: Iterable[str]) -> Overlap:
    """The gravest of several."""
    these = set(found)
    return next(each for each in GRAVITY[::-1] if each in {*these, ""})


def seen_test_cases(space: SpaceInfo, splits: Splits) -> list[str]:
    """Test cases whose labels the weights of a space have seen, sorted."""
    return sorted(set(space.card.case_ids if space.card else ()) & {s.case_id for s in splits.test})


def are_choices(spaces: Sequence[SpaceInfo]) -> bool:
    """Whether spaces are those of one embedder whose weights left out different cases, and alike in all else."""
    cards = [space.card for space in spaces if space.card and space.card.case_ids]
    if len(cards) < len(spaces):
        return False
    alike = [(_trained(card), _without_weights(space)) for card, space in zip(cards, spaces, strict=True)]
    return len({card.case_ids for card in cards}) == len(spaces) and alike.count(alike[0]) == len(alike)


def _trained(card: WeightsCard) -> Mapping[str, object]:
    """How weights were trained, but for what other cases change."""
    document = {key: value for key, value in card.document().items() if key not in _OF_CASES}
    settings = {key: value for key, value in card.settings.items() if key != "best_epoch"}
    return {**document, "settings": settings}


def _without_weights(space: SpaceInfo) -> Mapping[str, object]:
    """What a space was made with, but for what training changes."""
    embedder = {k: v for k, v in space.document["embedder"].items() if k not in {"weights_sha256", "mean", "std"}}
    return {**space.document, "embedder": embedder}


def sentence(embedder: str, found: str) -> str:
    """What a reader of a table must know; "" when there is nothing."""
    if found == "test":
        return f"{embedder}: its weights have seen labels of test cases; its numbers are too good."
    if found == "validation":
        return (
            f"{embedder}: its weights have seen labels of validation cases, so losses there look too good and"
            " choose less well; weights for each fold mend that (pretrain ihc --fold)."
        )
    return ""
