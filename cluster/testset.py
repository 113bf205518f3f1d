"""The fixed test set of a sweep, scored and drawn into the sweep's directory: what people look at first.

scores.csv, case_scores.csv     by every embedder: a row a slide, a row a case
auc_by_bags.csv                 the AUC over cases by the number of bags a slide
heatmaps/SLIDE_ID.png           by the best fold of the best embedder; and .top.png, its patches
heatmaps/index.csv              a row a heatmap
scored.json                     what they were made of, so that what is current is not made again
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.drawing import MapOptions, draw_slide, sister_of, truth_of
from cluster.scoring import SweepModels, open_models
from her2cache.cohort import Slide
from her2cache.errors import Her2CacheError, SlideOpenError, SweepError
from her2cache.ids import encode_slide_id
from her2cache.remote import RemotePath, SlidePath
from trainers.bag_counts import auc_by_bags, draw_pool
from trainers.files import whole
from trainers.results import Row, read_results, read_table, selected_runs, write_csv
from trainers.score import SlideScore, combine_slides, score_slide
from trainers.score_tables import TEST, bag_count_row, case_row, slide_row

_VERSION = 2
"""Of what is written; raised by hand when it changes."""

_SMALL_BYTES = 1 << 20
"""A file up to this size is known by its bytes."""

_RECORD = "scored.json"
_TABLES = ("scores.csv", "case_scores.csv", "auc_by_bags.csv")
_FOLDER = "heatmaps"


@dataclass(frozen=True)
class SlideState:
    """What became of a slide of the test set, or of all of them under an embedder.

    Attributes:
        id: of the slide, or the embedder's name.
        status: skipped means that its heatmap is current, or that its file is not on this machine; then a heatmap of
            the same models and features stays.
        reason: why it failed or was skipped.
    """

    id: str
    status: Literal["done", "skipped", "failed"]
    reason: str = ""


@dataclass
class ScoringReport:
    """What was done.

    Attributes:
        slides: with the heatmap of each; and embedders whose scores failed.
        written: name -> file, those that were current included.
        truth_aucs: AUC of attention against the truth map, of the slides that have one.
        notes: what a reader should know.
    """

    slides: list[SlideState] = field(default_factory=list[SlideState])
    written: dict[str, Path] = field(default_factory=dict[str, Path])
    truth_aucs: dict[str, float] = field(default_factory=dict[str, float])
    notes: list[str] = field(default_factory=list[str])


Watch = Callable[[int, int], None]


def score_and_draw_test_set(sweep: Path, *, bags: int = 1000, watch: Watch | None = None) -> ScoringReport:
    """Scores the fixed test set by every embedder's models, and draws its heatmaps. What is current is kept.

    Args:
        sweep: the sweep's directory.
        bags: Monte-Carlo bags a slide.
        watch: called with (slides scored or drawn, in all), each embedder's scores counting.

    Raises:
        SweepError: no run has been tested, or the sweep's environment.json is missing.
        StoreError: the store is not there.
        CohortError: the cohort's table has faults.
    """
    embedders = list(selected_runs(read_results(sweep)))
    drawn_by = open_models(sweep, best_fold=True)
    slides = drawn_by.test_slides(sweep)
    counter = _Counter(len(slides) * (len(embedders) + 1), watch or (lambda done, total: None))
    work = _Work(sweep, slides, bags, _Record.read(sweep / _RECORD), ScoringReport(), counter)
    _score(work, embedders)
    _draw(work, drawn_by)
    return work.report


def labels_tested(sweep: Path) -> dict[str, int]:
    """Class of each slide of the fixed test set."""
    columns = ["slide_id", "label", "outer"]
    rows = read_table(sweep, "predictions.parquet", columns=columns).group_by(columns).aggregate([]).to_pylist()
    return {row["slide_id"]: row["label"] for row in rows if row["outer"] is None}


@dataclass
class _Counter:
    total: int
    watch: Watch
    done: int = 0

    def add(self, n: int = 1) -> None:
        self.done += n
        self.watch(self.done, self.total)


@dataclass
class _Record:
    """scored.json: what the tables were made of, and for each heatmap what it was made of, with which files beside the
    slide, and its row."""

    path: Path
    tables: str = ""
    heatmaps: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    @classmethod
    def read(cls, path: Path) -> _Record:
        """An empty one where there is none, or none that can be read: all is made anew then."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(path, str(found["tables"]), dict(found["heatmaps"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path)

    def write(self) -> None:
        with whole(self.path) as partial:
            text = json.dumps({"tables": self.tables, "heatmaps": self.heatmaps}, indent=1)
            partial.write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Work:
    """A sweep's test set, how many bags a slide of it takes, and what becomes of it."""

    sweep: Path
    slides: Sequence[Slide]
    bags: int
    record: _Record
    report: ScoringReport
    counter: _Counter


def _score(work: _Work, embedders: Sequence[str]) -> None:
    """Writes the tables of scores, unless they are current."""
    opened: dict[str, SweepModels] = {}
    sources: list[Any] = []
    for embedder in embedders:
        try:
            opened[embedder] = open_models(work.sweep, embedder=embedder)
            sources.append(_made_of(work.sweep, opened[embedder], work.slides, work.bags))
        except Her2CacheError as error:
            work.report.slides.append(SlideState(embedder, "failed", f"not scored: {error}"))
    work.report.written |= {name: work.sweep / name for name in _TABLES}
    made_of = _digest(sources)
    if work.record.tables == made_of and all((work.sweep / name).is_file() for name in _TABLES):
        work.counter.add(len(work.slides) * len(embedders))
        return
    labels = labels_tested(work.sweep)
    rows: dict[str, list[Row]] = {name: [] for name in _TABLES}
    complete = True
    for embedder, models in opened.items():
        scores: dict[str, SlideScore] = {}
        pools: list[Any] = []
        for k, slide in enumerate(work.slides):
            try:
                by_model = models.patch_scores(slide)
                n_patches = len(by_model[0].attention_logit)
                scores[slide.slide_id] = score_slide(by_model, n_patches, bags=work.bags, size=models.bag_size)
                pools.append(draw_pool(by_model, models.bag_size, seed=k + 1))
            except Her2CacheError as error:
                complete = False
                work.report.slides.append(SlideState(slide.slide_id, "failed", f"not scored by {embedder}: {error}"))
            work.counter.add()
        scored = [slide for slide in work.slides if slide.slide_id in scores]
        own = {"embedder": embedder}
        task = models.task
        rows["scores.csv"] += [own | slide_row(slide, scores[slide.slide_id], task, TEST) for slide in scored]
        for case_id in dict.fromkeys(slide.case_id for slide in scored):
            of_case = [slide for slide in scored if slide.case_id == case_id]
            combined = combine_slides([scores[slide.slide_id] for slide in of_case])
            rows["case_scores.csv"].append(own | case_row(case_id, of_case[0].her2_score, combined, task))
        if len(scored) == len(work.slides):  # with other cases than the other embedders it could not be compared
            found = auc_by_bags(pools, [s.case_id for s in work.slides], [labels[s.slide_id] for s in work.slides])
            rows["auc_by_bags.csv"] += [bag_count_row(embedder, each) for each in found]
    for name, table in rows.items():
        with whole(work.sweep / name) as partial:
            write_csv(partial, table)
    work.record.tables = made_of if complete else ""
    work.record.write()


def _draw(work: _Work, models: SweepModels) -> None:
    """Draws the heatmaps that are not current, and writes their index."""
    folder = work.sweep / _FOLDER
    folder.mkdir(exist_ok=True)
    cohort, source = models.cohort(), _made_of(work.sweep, models, work.slides, work.bags)
    for slide in work.slides:
        picture, patches = (folder / f"{encode_slide_id(slide.slide_id)}{end}" for end in (".png", ".top.png"))
        sister, truth = sister_of(slide, cohort), truth_of(slide, Path(models.experiment.data.cohort))
        made_of = _digest(source["models"], source["slides"][slide.slide_id], source["drawing"])
        try:
            beside = _digest(*(_file(path) for path in (sister and sister.path, truth) if path))
            there = slide.path.is_file()
        except SlideOpenError as error:  # a bucket that cannot be used
            work.report.slides.append(SlideState(slide.slide_id, "failed", f"no heatmap: {error}"))
            work.counter.add()
            continue
        drawn = work.record.heatmaps.get(slide.slide_id, {})
        same = drawn.get("made_of") == made_of and picture.is_file() and patches.is_file()
        if same and drawn.get("beside") == beside:
            work.report.slides.append(SlideState(slide.slide_id, "skipped", "its heatmap is current"))
        elif not there:  # what lay beside it is likely not here either, which changes no heatmap
            if not same:
                work.record.heatmaps.pop(slide.slide_id, None)
            what = "its heatmap stays as it is" if same else "no heatmap"
            reason = f"{what}: {slide.path} is not on this machine; run `her2cache report` where the slides are"
            work.report.slides.append(SlideState(slide.slide_id, "skipped", reason))
        else:
            try:
                row = _draw_one(models, slide, picture, MapOptions(bags=work.bags, patches=patches), work.report)
                work.record.heatmaps[slide.slide_id] = {"made_of": made_of, "beside": beside, "row": row}
                work.report.slides.append(SlideState(slide.slide_id, "done"))
            except Her2CacheError as error:
                work.record.heatmaps.pop(slide.slide_id, None)
                work.report.slides.append(SlideState(slide.slide_id, "failed", f"no heatmap: {error}"))
            work.record.write()
        work.counter.add()
    rows = [work.record.heatmaps[s.slide_id]["row"] for s in work.slides if s.slide_id in work.record.heatmaps]
    work.report.truth_aucs |= {row["slide_id"]: row["truth_auc"] for row in rows if row["truth_auc"] is not None}
    with whole(folder / "index.csv") as partial:
        write_csv(partial, rows)
    work.report.written["heatmaps"] = folder


def _draw_one(models: SweepModels, slide: Slide, out: Path, options: MapOptions, report: ScoringReport) -> Row:
    drawn = draw_slide(models, slide, out, options)
    report.notes += [f"{slide.slide_id}: {note}" for note in drawn.notes]
    score = drawn.score
    return {
        "slide_id": slide.slide_id,
        "case_id": slide.case_id,
        "her2_score": slide.her2_score,
        "predicted_score": models.task.classes[score.predicted],
        "expected_score": score.expected_score,
        "run_id": models.run_ids[0],
        "embedder": models.embedder,
        "n_patches": score.n_patches,
        "bags": drawn.bags,
        "has_ihc": drawn.ihc is not None,
        "truth_auc": drawn.truth_auc,
    }


def _made_of(sweep: Path, models: SweepModels, slides: Sequence[Slide], bags: int) -> dict[str, Any]:
    """What the scores of slides by an embedder depend on."""
    store, keys = models.store, list(dict.fromkeys(models.space_keys))

    def features(slide: Slide) -> list[str]:
        return [store.record(slide.slide_id, key).digest if store.has(slide.slide_id, key) else "" for key in keys]

    return {
        "models": {run_id: _file_digest(sweep / "checkpoints" / f"{run_id}.safetensors") for run_id in models.run_ids},
        "slides": {slide.slide_id: [slide.case_id, slide.her2_score, *features(slide)] for slide in slides},
        "drawing": [models.embedder, bags, models.bag_size, _VERSION],
    }


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SweepError(
            f"{path} cannot be read ({error.strerror or error}): the folder was copied in part, or the checkpoint was"
            " removed; copy it again, or run `her2cache sweep --resume`"
        ) from error


def _file(path: SlidePath) -> tuple[str, int, str]:
    """What a file is known by. Not its time: a copy may have another, and is no other file."""
    if isinstance(path, RemotePath):
        state = path.state()
        return path.name, state.bytes if state else 0, (state and state.version) or ""
    size = path.stat().st_size
    return path.name, size, hashlib.sha256(path.read_bytes()).hexdigest() if size <= _SMALL_BYTES else ""


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
