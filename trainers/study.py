"""An experiment with its inputs opened and checked: what there is to train, and the test at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from her2cache.bags import BagSampler
from her2cache.cohort import Slide, read_cohort
from her2cache.errors import CohortError, ConfigError, StoreError
from her2cache.store.reader import FeatureStore, SpaceInfo
from trainers.assessment import Assessment, assess
from trainers.baselines import Baseline, baselines, mean_features
from trainers.config import Experiment
from trainers.features import stored_features
from trainers.fit import FitPlan
from trainers.ledger import Run
from trainers.model import TrainedModel
from trainers.splits import Splits, make_splits
from trainers.tasks import Task


@dataclass(frozen=True)
class Study:
    """What a sweep works on.

    Attributes:
        experiment: its file.
        spaces: display name -> feature space.
        splits: of the slides that every space has.
        left_out: slide -> why it takes no part.
    """

    experiment: Experiment
    spaces: dict[str, SpaceInfo]
    splits: Splits
    left_out: dict[str, str]

    def plans(self, stack: int | None = None) -> list[FitPlan]:
        """The fits of the whole experiment, at most `stack` runs each; None stacks the whole grid."""
        e = self.experiment
        grid = e.training.grid()
        step = stack or len(grid)
        return [
            FitPlan(
                space_key=space.key,
                embedder=name,
                fold=fold,
                training=self.splits.training(fold),
                validation=self.splits.validation(fold),
                configurations=grid[start : start + step],
                task=e.classification,
                bags=e.bags,
                settings=e.training,
                model=e.model,
                experiment=e.digest(),
            )
            for name, space in self.spaces.items()
            for fold in range(self.splits.folds)
            for start in range(0, len(grid), step)
        ]


def open_study(experiment: Experiment) -> Study:
    """Reads cohort and store of an experiment. No features are read.

    A slide without a score, or without features in one of the spaces, is left out of all of them, so that
    embedders are compared on the same slides.

    Raises:
        Her2CacheError: cohort, store, a space or the splits are not usable, or a slide has too few patches.
    """
    data, bags = experiment.data, experiment.bags
    store = FeatureStore.open(data.store)
    spaces = _named([store.find_space(name, views=data.views) for name in data.embedders])
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
    return Study(experiment, spaces, make_splits(used, experiment.classification, experiment.splits), left_out)


def assess_selected(study: Study, selected: dict[str, list[Run]], checkpoints: Path) -> list[tuple[Run, Assessment]]:
    """Tests the chosen runs. This is the first time that features of a test slide are read."""
    e, slides = study.experiment, study.splits.test
    found: list[tuple[Run, Assessment]] = []
    for space_key, runs in selected.items():
        features = stored_features(e.data.store, space_key, [s.slide_id for s in slides])
        counts = {s.slide_id: len(features[s.slide_id][0]) for s in slides}
        sampler = BagSampler(counts, e.bags.size, seed=e.training.seed, allow_replacement=e.bags.allow_replacement)
        for run in runs:
            model = TrainedModel.load(checkpoints / f"{run.run_id}.safetensors", space_key=space_key)
            found.append((run, assess(model, features, slides, sampler, e.bags.test)))
    return found


def fit_baselines(study: Study) -> list[Baseline]:
    """The baselines on the study's own splits. Features of test slides are read here as well.

    A space that cannot be read has none; its fits have said so.
    """
    store, slides = FeatureStore.open(study.experiment.data.store), study.splits.slides
    ids = [s.slide_id for s in slides]
    pooled: dict[str, NDArray[np.float64]] = {}
    for name, space in study.spaces.items():
        with suppress(StoreError):
            pooled[name] = mean_features(store.maps(space.key, ids), slides)
    first = next(iter(study.spaces.values()))
    colours = [store.record(slide_id, first.key).made.get("colour") for slide_id in ids]
    known = np.array(colours, np.float64) if all(colours) else None  # features made elsewhere come without
    classes = len(study.experiment.classification.classes)
    return baselines(pooled, known, study.splits, classes, seed=study.experiment.splits.seed)


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
