"""An experiment with its inputs opened and checked: every round of it, and what there is to train."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from her2cache.bags import BagSampler
from her2cache.cohort import Slide, read_cohort
from her2cache.embedder import RANDOM, random_name
from her2cache.errors import CohortError, ConfigError, StoreError
from her2cache.store.reader import FeatureStore, SpaceInfo
from trainers.config import DataSection, Experiment
from trainers.features import SlideFeatures, prefix, stored_features
from trainers.plan import FitPlan
from trainers.splits import Assignment, Splits, make_splits, nested_splits
from trainers.stack import Configuration
from trainers.tasks import Task


@dataclass(frozen=True)
class Round:
    """One whole cross-validation with the slides that it is tested on.

    Attributes:
        outer: outer fold of the nested cross-validation; None for the fixed test set.
        splits: its test set and folds.
    """

    outer: int | None
    splits: Splits


@dataclass(frozen=True)
class Study:
    """What a sweep works on.

    Attributes:
        experiment: its file.
        spaces: name -> feature space; the untrained embedder has one for each of its seeds.
        seeds: name of a space of the untrained embedder -> its seed, where several take part.
        splits: of the slides that every space has.
        nested: outer folds over the same slides, if the experiment asks for them.
        left_out: slide -> why it takes no part.
        fraction: share of each slide's patches that is used, in training as in testing.
    """

    experiment: Experiment
    spaces: dict[str, SpaceInfo]
    seeds: dict[str, int]
    splits: Splits
    nested: tuple[Splits, ...]
    left_out: dict[str, str]
    fraction: float = 1.0

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The fixed test set, then every outer fold."""
        return (Round(None, self.splits), *(Round(k, splits) for k, splits in enumerate(self.nested)))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the results should know."""
        inner = [w for splits in self.nested for w in splits.warnings]
        if not inner:
            return self.splits.warnings
        folds = sum(splits.folds for splits in self.nested)
        return (*self.splits.warnings, f"{len(inner)} of {folds} inner folds lack a class: {inner[0]}, for instance")

    def embedder_of(self, name: str) -> tuple[str, int]:
        """The embedder that a space counts as in every table, and its seed."""
        return (RANDOM, self.seeds[name]) if name in self.seeds else (name, 0)

    def plans(self, stack: int | None = None, configurations: Sequence[Configuration] | None = None) -> list[FitPlan]:
        """The fits of the whole experiment: every round, space and fold.

        Args:
            stack: most runs of a fit; None stacks all configurations.
            configurations: to try instead of the grid.
        """
        e = self.experiment
        tried = e.training.grid() if configurations is None else tuple(configurations)
        step = stack or max(len(tried), 1)
        return [
            FitPlan(
                space_key=space.key,
                embedder=embedder,
                fold=fold,
                training=of.splits.training(fold),
                validation=of.splits.validation(fold),
                configurations=tried[start : start + step],
                task=e.classification,
                bags=e.bags,
                settings=e.training,
                model=e.model,
                experiment=e.digest(),
                outer=of.outer,
                embedder_seed=seed,
                fraction=self.fraction,
            )
            for of in self.rounds
            for name, space in self.spaces.items()
            for embedder, seed in (self.embedder_of(name),)
            for fold in range(of.splits.folds)
            if name not in self.seeds or self._takes_part(seed, fold)
            for start in range(0, len(tried), step)
        ]

    def _takes_part(self, seed: int, fold: int) -> bool:
        """Whether a seed of the untrained embedder is trained on a fold."""
        data = self.experiment.data
        return data.seeds_a_fold == "all" or fold % data.random_seeds == seed

    def features(self, space_key: str, slides: Sequence[Assignment]) -> SlideFeatures:
        """Features of some slides, as far as the study uses them."""
        stored = stored_features(self.experiment.data.store, space_key, [s.slide_id for s in slides])
        return prefix(stored, self.fraction, self.experiment.bags.size)


def open_study(experiment: Experiment) -> Study:
    """Reads cohort and store of an experiment. No features are read.

    A slide without a score, or without features in one of the spaces, is left out of all of them, so that
    embedders are compared on the same slides.

    Raises:
        Her2CacheError: cohort, store, a space or the splits are not usable, or a slide has too few patches.
    """
    data, bags = experiment.data, experiment.bags
    store = FeatureStore.open(data.store)
    spaces, seeds = _find_spaces(store, data)
    slides = read_cohort(Path(data.cohort)).with_stain(data.stain).slides
    left_out = _unusable(slides, store, spaces.values(), experiment.classification)
    used = [s for s in slides if s.slide_id not in left_out]
    if not used:
        why = f", for instance {next(iter(left_out.items()))}" if left_out else ""
        raise CohortError(
            f"no {data.stain} slide of {data.cohort} can be used{why}: fill in her2_score, and embed the slides with "
            f"`her2cache embed --store {data.store}`"
        )
    for space in spaces.values():
        counts = {s.slide_id: store.record(s.slide_id, space.key).n_patches for s in used}
        BagSampler(counts, bags.size, seed=0, allow_replacement=bags.allow_replacement)
    task = experiment.classification
    splits = make_splits(used, task, experiment.splits)
    return Study(experiment, spaces, seeds, splits, nested_splits(used, task, experiment.splits), left_out)


def _find_spaces(store: FeatureStore, data: DataSection) -> tuple[dict[str, SpaceInfo], dict[str, int]]:
    """The spaces of an experiment by name, and the seeds of the untrained embedder where several take part."""
    spaces = [store.find_space(name, views=data.views) for name in data.embedders]
    seeds: dict[str, int] = {}
    if data.random_seeds > 1:
        first = spaces[data.embedders.index(RANDOM)]
        seeds = {random_name(seed): seed for seed in range(data.random_seeds)}
        spaces += [_seeded(store, first, seed) for seed in range(1, data.random_seeds)]
    return _named(spaces), seeds


def _seeded(store: FeatureStore, first: SpaceInfo, seed: int) -> SpaceInfo:
    """The space of another seed of the untrained embedder, with the patches and views of the first."""
    made = {key: value for key, value in first.document.items() if key != "embedder"}
    for space in store.spaces():
        if space.name == random_name(seed) and made == {k: v for k, v in space.document.items() if k != "embedder"}:
            return space
    raise StoreError(
        f"{store.uri} has no features of {random_name(seed)} with the patches and views of {RANDOM}, which [data]"
        f" random_seeds asks for: run `her2cache embed --embedder {RANDOM}={seed} --views {first.views}` with the"
        f" options that {RANDOM} was embedded with, or lower random_seeds"
    )


def _named(spaces: Sequence[SpaceInfo]) -> dict[str, SpaceInfo]:
    """Spaces by the name of their embedder, with the key added where that is not enough."""
    if len({space.key for space in spaces}) < len(spaces):
        raise ConfigError("[data] embedders names a feature space twice: name each once")
    names = [space.name for space in spaces]
    return {s.name if names.count(s.name) == 1 else f"{s.name}@{s.key[:8]}": s for s in spaces}


def _unusable(slides: Sequence[Slide], store: FeatureStore, spaces: Iterable[SpaceInfo], task: Task) -> dict[str, str]:
    reasons = {s.slide_id: "the cohort gives no her2_score" for s in slides if s.her2_score is None}
    for s in slides:
        if s.her2_score is not None and task.label(s.her2_score, s.ish) is None:
            reasons[s.slide_id] = f"2+ without a result of in situ hybridisation, which {task.name} needs (column ish)"
    for space in spaces:
        committed = set(store.slides(space.key))
        for s in slides:
            if s.slide_id not in committed:
                reasons.setdefault(s.slide_id, f"not embedded with {space.name}: run `her2cache embed` for it")
    return reasons
