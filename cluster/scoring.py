"""The models of a sweep, applied to slides of its store or to new ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from her2cache.cohort import Slide, read_cohort
from her2cache.errors import CohortError, ConfigError, SweepError
from her2cache.slide import file_changed
from her2cache.store.reader import FeatureStore
from trainers.config import Experiment, read_experiment
from trainers.model import TrainedModel
from trainers.patch_scores import PatchScores
from trainers.results import Row, read_csv, read_results, selected_runs, slides_tested
from trainers.score import SlideScore, score_slide
from trainers.tasks import Task


@dataclass(frozen=True)
class SweepModels:
    """Models of a sweep, all of one embedder, with what they are applied to.

    Attributes:
        experiment: of the sweep.
        store: where the features of slides are.
        runs: the runs' rows in results.parquet.
        trained: the models, in the same order.
    """

    experiment: Experiment
    store: FeatureStore
    runs: Sequence[Row]
    trained: Sequence[TrainedModel]

    @property
    def task(self) -> Task:
        return self.trained[0].origin.task

    @property
    def embedder(self) -> str:
        return self.runs[0]["embedder"]

    @property
    def bag_size(self) -> int:
        return self.experiment.bags.size

    @property
    def run_ids(self) -> list[str]:
        return [run["run_id"] for run in self.runs]

    @property
    def space_keys(self) -> list[str]:
        """Feature space of each model (a random embedder may have a seed, so a space, a fold)."""
        return [run["space_key"] for run in self.runs]

    def patch_scores(self, slide: Slide) -> list[PatchScores]:
        """Scores of the patches of a slide under each model.

        Raises:
            CohortError: the store holds another slide under this slide's id.
        """
        held = self.store.record(slide.slide_id, self.space_keys[0]).slide
        if file_changed(slide.path, held):
            raise CohortError(
                f"{slide.path} is not the file that was embedded as {slide.slide_id!r} ({held['path']}): their bytes"
                " differ; list it in a cohort table under a slide_id of its own"
            )
        return [
            model.patch_scores(self.store.features(slide.slide_id, key))
            for model, key in zip(self.trained, self.space_keys, strict=True)
        ]

    def score(self, slide: Slide, bags: int, tolerance: float | None = None) -> SlideScore:
        """Score of a slide that the store holds, by Monte-Carlo bags; raises as `patch_scores`.

        Args:
            slide: which.
            bags: how many; with a tolerance the most.
            tolerance: standard error of the expected score at which to stop.
        """
        scores = self.patch_scores(slide)
        n_patches = len(scores[0].attention_logit)
        return score_slide(scores, n_patches, bags=bags, size=self.bag_size, tolerance=tolerance)

    def cohort(self) -> tuple[Slide, ...]:
        """The slides of the sweep's cohort, of every stain; none where its table is not on this machine.

        Raises:
            CohortError: the table has faults.
        """
        table = Path(self.experiment.data.cohort)
        return read_cohort(table).slides if table.is_file() else ()

    def test_slides(self, sweep: Path) -> list[Slide]:
        """The fixed test set of the sweep, sorted by id, as the cohort has it; else as the store does.

        Raises:
            StoreError: neither has a slide.
        """
        known = {slide.slide_id: slide for slide in self.cohort()}
        splits = {row["slide_id"]: row for row in read_csv(sweep, "splits.csv")}
        found: list[Slide] = []
        for slide_id in slides_tested(sweep):
            slide = known.get(slide_id)
            if slide is None:
                from cluster.embed_more import slide_of  # here, for it imports Ray

                split = splits.get(slide_id, {"case_id": slide_id, "her2_score": ""})
                score = int(split["her2_score"]) if split["her2_score"] else None
                embedded = slide_of(self.store.record(slide_id, self.space_keys[0]))
                slide = replace(embedded, case_id=split["case_id"], her2_score=score, stain=self.experiment.data.stain)
            found.append(slide)
        return found

    def embed_missing(self, slides: Sequence[Slide], address: str = "local") -> dict[str, str]:
        """Embeds the slides that the store lacks; slide_id -> reason of those that failed.

        Args:
            slides: which.
            address: of Ray, see `resources.ray_session`; Ray is not started where nothing is missing.
        """
        missing = {
            key: [slide for slide in slides if not self.store.has(slide.slide_id, key)]
            for key in dict.fromkeys(self.space_keys)
        }
        if not any(missing.values()):
            return {}
        from cluster.embed_more import embed_more  # here, for only this needs Ray
        from cluster.resources import ray_session

        reasons: dict[str, str] = {}
        with ray_session(address):
            for key, lacking in missing.items():
                outcomes = embed_more(lacking, self.store.find_space(key), self.store).outcomes if lacking else []
                reasons |= {outcome.slide_id: outcome.reason for outcome in outcomes if outcome.status == "failed"}
        return reasons


def open_models(
    sweep: Path, *, embedder: str | None = None, run_id: str | None = None, best_fold: bool = False
) -> SweepModels:
    """Opens models of a sweep.

    Args:
        sweep: the sweep's directory.
        embedder: whose selected configuration to take; by default that of least mean validation loss.
        run_id: one run to take instead.
        best_fold: whether to keep only the fold of least validation loss.

    Raises:
        SweepError: no run has been tested, or the sweep's environment.json is missing.
        ConfigError: there is no such run or embedder.
        TrainingError: a checkpoint is missing or was trained in another feature space.
    """
    runs = choose_runs(read_results(sweep), embedder, run_id)
    if best_fold:
        runs = [min(runs, key=lambda run: run["val_loss"])]
    experiment = experiment_of(sweep)
    trained = [
        TrainedModel.load(sweep / "checkpoints" / f"{run['run_id']}.safetensors", space_key=run["space_key"])
        for run in runs
    ]
    return SweepModels(experiment, FeatureStore.open(experiment.data.store), runs, trained)


def experiment_of(sweep: Path) -> Experiment:
    """The experiment of a sweep, with cohort and store where they lay when it ran.

    experiment.toml is copied as it was written, so relative paths in it start at the folder it came from.

    Raises:
        SweepError: environment.json, which says so, is missing or damaged.
    """
    experiment = read_experiment(sweep / "experiment.toml")
    path = sweep / "environment.json"
    try:
        ran = json.loads(path.read_text(encoding="utf-8"))
        lay = {"cohort": ran["cohort"], "store": ran["store"]}
    except (OSError, ValueError, KeyError) as error:
        raise SweepError(
            f"{path} cannot be read ({type(error).__name__}: {error}), so where the store lies is unknown: the folder"
            " was copied in part; copy it again, or run `her2cache sweep --resume`"
        ) from error
    data = experiment.data.model_copy(update=lay)
    return experiment.model_copy(update={"data": data})


def choose_runs(results: Sequence[Row], embedder: str | None = None, run_id: str | None = None) -> Sequence[Row]:
    """The runs asked for: by default the folds of the selected configuration of the best embedder.

    Best means least mean validation loss: the test set must not choose.

    Raises:
        ConfigError: there is no such run or embedder.
    """
    if run_id is not None:
        runs = [run for run in results if run["run_id"] == run_id]
        if not runs:
            known = ", ".join(run["run_id"] for run in results)
            raise ConfigError(f"the sweep has no tested run {run_id!r}; name one of: {known}")
        return runs
    selected = selected_runs(results)
    name = next(iter(selected)) if embedder is None else embedder
    if name not in selected:
        raise ConfigError(f"the sweep has no tested run of embedder {name!r}; name one of: {', '.join(selected)}")
    return selected[name]
