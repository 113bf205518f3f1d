"""An experiment with its inputs opened and checked: every round of it, and what there is to train."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from her2cache.bags import BagSampler
from her2cache.cohort import Slide, read_cohort
from her2cache.embedder import RANDOM, random_name
from her2cache.errors import CohortError, ConfigError, StoreError
from her2cache.store.reader import FeatureStore, SpaceInfo
from trainers.config import DataSection, Experiment, SplitsSection
from trainers.features import SlideFeatures, prefix, stored_features
from trainers.overlap import Overlap, are_choices, gravest, least, overlap, seen_test_cases, sentence
from trainers.plan import FitPlan
from trainers.splits import Assignment, Splits, kept, make_splits, nested_splits
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
        choices: name of a space -> its embedder, where an embedder has several spaces whose weights left out different
            cases: each fold takes the one that has seen least.
        allow_overlap: whether an embedder may be tested on cases whose labels its weights have seen.
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
    choices: dict[str, str] = field(default_factory=dict[str, str])
    allow_overlap: bool = False

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The fixed test set, then every outer fold."""
        return (Round(None, self.splits), *(Round(k, splits) for k, splits in enumerate(self.nested)))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the results should know."""
        inner = [w for splits in self.nested for w in splits.warnings]
        folds = sum(splits.folds for splits in self.nested)
        lack = [f"{len(inner)} of {folds} inner folds lack a class: {inner[0]}, for instance"] if inner else []
        return (*self.splits.warnings, *lack, *self._overlap_warnings())

    def _overlap_warnings(self) -> Iterator[str]:
        for embedder in self.embedders:
            fixed, nested = (self.overlap_of(embedder, nested=n) for n in (False, True))
            if said := sentence(embedder, gravest((fixed, nested if self.allow_overlap else ""))):
                yield said
            if nested == "test" and not self.allow_overlap:
                yield (
                    f"{embedder} takes no part in the nested cross-validation: its weights have seen labels of cases "
                    "that outer folds test; pretrain weights for each (--outer 0, 1, ...), embed each, and sweep again"
                )

    @property
    def embedders(self) -> tuple[str, ...]:
        """Their names, each once."""
        return tuple(dict.fromkeys(self.embedder_of(name)[0] for name in self.spaces))

    def embedder_of(self, name: str) -> tuple[str, int]:
        """The embedder that a space counts as in every table, and its seed."""
        if name in self.seeds:
            return RANDOM, self.seeds[name]
        return self.choices.get(name, name), 0

    def overlap_of(self, embedder: str, *, nested: bool) -> Overlap:
        """The gravest overlap of an embedder, on the fixed test set's folds or on those of the outer ones."""
        choices = self._choices_of(embedder)
        return gravest(
            overlap(least(choices, splits, fold), splits, fold) for splits, fold in self._places(nested=nested)
        )

    def _places(self, *, nested: bool) -> Iterator[tuple[Splits, int]]:
        """Folds of the fixed test set, or of all outer folds."""
        for of in self.rounds:
            if (of.outer is not None) == nested:
                yield from ((of.splits, fold) for fold in range(of.splits.folds))

    def pooled_space(self, embedder: str) -> SpaceInfo:
        """The space of an embedder whose weights have seen least of the fixed test set: it stands for the embedder
        where no fold chooses."""
        return least(self._choices_of(embedder), self.splits, 0)

    def pooled_overlap(self, embedder: str, *, nested: bool) -> Overlap:
        """The gravest overlap of that one space, as `overlap_of`."""
        space = self.pooled_space(embedder)
        return gravest(overlap(space, splits, fold) for splits, fold in self._places(nested=nested))

    def pooled_spaces(self) -> dict[str, SpaceInfo]:
        """All spaces, but of those that folds choose from only the one that stands for the embedder."""
        return {
            name: space
            for name, space in self.spaces.items()
            if name not in self.choices or self.pooled_space(self.choices[name]) == space
        }

    def _choices_of(self, embedder: str) -> list[SpaceInfo]:
        return [space for name, space in self.spaces.items() if self.embedder_of(name)[0] == embedder]

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
                embedder_overlap=overlap(space, of.splits, fold),
                fraction=self.fraction,
            )
            for of in self.rounds
            for name, space in self.spaces.items()
            for embedder, seed in (self.embedder_of(name),)
            for fold in range(of.splits.folds)
            if self._takes_part(name, of, fold)
            for start in range(0, len(tried), step)
        ]

    def _takes_part(self, name: str, of: Round, fold: int) -> bool:
        """Whether a space is trained on a fold of a round."""
        data, space = self.experiment.data, self.spaces[name]
        if name in self.seeds:
            return data.seeds_a_fold == "all" or fold % data.random_seeds == self.seeds[name]
        if name in self.choices and least(self._choices_of(self.choices[name]), of.splits, fold) != space:
            return False
        return of.outer is None or self.allow_overlap or overlap(space, of.splits, fold) != "test"

    def features(self, space_key: str, slides: Sequence[Assignment]) -> SlideFeatures:
        """Features of some slides, as far as the study uses them."""
        stored = stored_features(self.experiment.data.store, space_key, [s.slide_id for s in slides])
        stored.stage(views=1)  # those that are tested are the patches themselves
        return prefix(stored, self.fraction, self.experiment.bags.size)


def open_study(experiment: Experiment, *, allow_overlap: bool = False) -> Study:
    """Reads cohort and store of an experiment. No features are read.

    A slide without a score, or without features in one of the spaces, is left out of all of them, so that
    embedders are compared on the same slides. Test set and folds are dealt before that: what a store lacks moves no
    slide from one side to another.

    Args:
        experiment: its file.
        allow_overlap: whether an embedder may be tested on cases whose labels its weights have seen.

    Raises:
        Her2CacheError: cohort, store, a space or the splits are not usable, a slide has too few patches, or the weights
            of an embedder have seen labels of test cases.
    """
    data, bags = experiment.data, experiment.bags
    store = FeatureStore.open(data.store)
    spaces, seeds, choices = _find_spaces(store, data)
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
        counts = {r.slide_id: r.n_patches for r in store.committed(space.key, [s.slide_id for s in used])}
        BagSampler(counts, bags.size, seed=0, allow_replacement=bags.allow_replacement)
    splits, nested = split_cohort(slides, experiment.classification, experiment.splits, {s.slide_id for s in used})
    study = Study(experiment, spaces, seeds, splits, nested, left_out, choices=choices, allow_overlap=allow_overlap)
    if not allow_overlap:
        _require_unseen_test_cases(study)
    return study


def split_cohort(
    slides: Sequence[Slide], task: Task, settings: SplitsSection, used: Collection[str] | None = None
) -> tuple[Splits, tuple[Splits, ...]]:
    """Test set with folds, and outer folds, of an experiment: dealt over all labelled slides of the cohort.

    Args:
        slides: of the experiment's stain, labelled or not.
        task: of the experiment.
        settings: the same.
        used: ids of the slides that take part; the others are taken out once all are dealt. A splits file need not
            name them. None takes every labelled one.

    Raises:
        CohortError, TrainingError: see `trainers.splits`.
    """
    labelled = [s for s in slides if s.her2_score is not None and task.label(s.her2_score, s.ish) is not None]
    there = [s for s in labelled if used is None or s.slide_id in used]
    dealt = make_splits(labelled if settings.file is None else there, task, settings)
    ids = {s.slide_id for s in there}
    outer = (
        kept(splits, ids, task, f" of outer fold {k}")
        for k, splits in enumerate(nested_splits(labelled, task, settings))
    )
    return kept(dealt, ids, task), tuple(outer)


def _require_unseen_test_cases(study: Study) -> None:
    for embedder in study.embedders:
        if study.overlap_of(embedder, nested=False) != "test":
            continue
        space = study.pooled_space(embedder)
        seen = seen_test_cases(space, study.splits)
        shown = ", ".join(seen[:5]) + (", ..." if len(seen) > 5 else "")
        raise CohortError(
            f"the weights of {embedder} ({space.weights}) have seen the labels of {len(seen)} test cases ({shown}): its"
            " results would be too good. Train them without these (`her2cache pretrain ihc --experiment` with this"
            " experiment file; --outer K alone leaves out other cases) and embed with the new file, or add"
            " --allow-embedder-overlap, which reproduces the paper"
        )


def _find_spaces(store: FeatureStore, data: DataSection) -> tuple[dict[str, SpaceInfo], dict[str, int], dict[str, str]]:
    """The spaces of an experiment by name, the seeds of the untrained embedder where several take part, and the
    embedders of spaces that folds choose from."""
    found = [_choices(store, name, data.views) for name in data.embedders]
    spaces = [space for each in found for space in each]
    seeds: dict[str, int] = {}
    if data.random_seeds > 1:
        first = found[data.embedders.index(RANDOM)][0]
        seeds = {random_name(seed): seed for seed in range(data.random_seeds)}
        spaces += [_seeded(store, first, seed) for seed in range(1, data.random_seeds)]
    named = _named(spaces)
    heads = [each[0].name for each in found]
    label = {
        space.key: each[0].name if heads.count(each[0].name) == 1 else f"{each[0].name}@{each[0].key[:8]}"
        for each in found
        if len(each) > 1
        for space in each
    }
    return named, seeds, {name: label[s.key] for name, s in named.items() if s.key in label}


def _choices(store: FeatureStore, name: str, views: int | None) -> list[SpaceInfo]:
    """The spaces that a name of [data] embedders stands for: one, or several whose weights left out different cases.

    Several may be named by their keys with a + between.
    """
    if "+" in name:
        parts = [store.find_space(part, views=views) for part in name.split("+")]
        if not are_choices(parts):
            raise ConfigError(
                f"[data] embedders: {name!r} joins spaces that are not of one embedder, with weights alike in all but"
                " the cases that they left out: name them one by one"
            )
        return parts
    found = store.spaces_called(name, views=views)
    return found if len(found) > 1 and are_choices(found) else [store.find_space(name, views=views)]


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
