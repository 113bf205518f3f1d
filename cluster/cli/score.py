"""`her2cache score`, `heatmap` and `report`: what the models of a sweep say, of slides and as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.bars import bar
from cluster.cli.output import Item, Outcome, count_of
from cluster.cli.verb import verb
from her2cache.errors import Her2CacheError, SlideError

if TYPE_CHECKING:
    from cluster.drawing import DrawnSlide
    from cluster.scoring import SweepModels
    from her2cache.cohort import Slide
    from trainers.score import SlideScore
    from trainers.tasks import Task

_sweep = click.option(
    "--sweep", required=True, metavar="SWEEP_DIR", type=click.Path(path_type=Path), help="--out of a sweep."
)
_embedder = click.option(
    "--embedder", metavar="NAME", help="Whose models; by default those of least mean validation loss."
)
_address = click.option(
    "--address",
    default="local",
    show_default=True,
    help="Ray where slides are embedded that the store lacks: local, auto or HOST:PORT.",
)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("targets", metavar="[COHORT|SLIDE...]", nargs=-1)
@_sweep
@click.option(
    "--bags",
    default=1000,
    show_default=True,
    type=click.IntRange(2),
    help="Monte-Carlo bags of a slide; with --tolerance the most.",
)
@click.option(
    "--tolerance",
    metavar="T",
    type=click.FloatRange(0, min_open=True),
    help="Stop a slide as soon as the numerical error of its expected score, mc_se, is at most T.",
)
@_embedder
@click.option("--run", "run_id", metavar="RUN_ID", help="One model; by default those of all folds.")
@click.option("--out", metavar="FILE", type=_FILE, help="Write a row a slide, .csv or .parquet.")
@click.option("--cases", metavar="FILE", type=_FILE, help="Write a row a case, .csv or .parquet.")
@_address
@verb
def score(
    targets: tuple[str, ...],
    sweep: Path,
    bags: int,
    tolerance: float | None,
    embedder: str | None,
    run_id: str | None,
    out: Path | None,
    cases: Path | None,
    address: str,
) -> Outcome:
    """Score slides by Monte-Carlo bags: slide files, slide_ids of the sweep, or a cohort table.

    Without any: the sweep's fixed test set. A slide that the sweep's store lacks is embedded first. Slides of a case
    are combined, each weighing the same.
    """
    from cluster.cli.naming import slides_named
    from cluster.cli.score_tables import case_table, score_table
    from cluster.parts import parts_of
    from cluster.scoring import open_models
    from trainers.score_tables import case_columns, check_table_name, slide_columns, slide_row, write_scores

    for file in (out, cases):
        if file is not None:
            check_table_name(file)
    models = open_models(sweep, embedder=embedder, run_id=run_id)
    slides = slides_named(targets, models) if targets else models.test_slides(sweep)
    reasons = models.embed_missing(slides, address)
    with bar("scores", "slides") as watch:
        scores = score_each(slides, models, bags, tolerance, reasons, watch)
    scored, task = [slide for slide in slides if slide.slide_id in scores], models.task
    parts = parts_of(scored, models, sweep)
    rows = [slide_row(slide, scores[slide.slide_id], task, parts[slide.slide_id]) for slide in scored]
    warnings = _warnings(parts)
    of_cases = _case_rows(scored, scores, task)
    outputs: dict[str, str] = {}
    for name, file, table, columns in (
        ("scores", out, rows, slide_columns(task)),
        ("cases", cases, of_cases, case_columns(task)),
    ):
        if file is not None:
            write_scores(file, table, columns)
            outputs[name] = str(file)
    met = None if tolerance is None else sum(each.mc_se <= tolerance for each in scores.values())
    extra = {} if met is None else {"tolerance": tolerance, "within_tolerance": met}
    return Outcome(
        items=[_item(slide, reasons) for slide in slides],
        outputs=outputs,
        extra={"task": task.name, "runs": models.run_ids, "scores": rows, "cases": of_cases, "warnings": warnings}
        | extra,
        summary=[
            *([score_table(rows, task, with_bags=tolerance is not None)] if rows else []),
            *([case_table(of_cases, task)] if len(of_cases) < len(rows) else []),
            *([] if tolerance is None else [_said_of_tolerance(scores, bags, tolerance)]),
            *(f"[yellow]warning[/] {warning}" for warning in warnings),
            f"{count_of(len(models.run_ids), 'model')} of {models.embedder}: {', '.join(models.run_ids)}",
            *(f"{name} {path}" for name, path in outputs.items()),
        ],
    )


@click.command()
@click.argument("target", metavar="SLIDE")
@_sweep
@click.option(
    "--bags",
    default=1000,
    show_default=True,
    type=click.IntRange(2),
    help="Bags that the patches are dealt into, so that every patch is drawn.",
)
@_embedder
@click.option("--run", "run_id", metavar="RUN_ID", help="The model; by default the fold of least validation loss.")
@click.option("--out", required=True, metavar="PNG", type=_FILE, help="Picture to write.")
@click.option(
    "--map",
    "kind",
    default="attention",
    show_default=True,
    metavar="MAP",
    help="attention: the paper's algorithm 1. mean-field: approximates it without bags. signed: towards a positive"
    " score or away from it. class:NAME: algorithm 1 for one class, as class:2+.",
)
@click.option(
    "--scale-max",
    type=click.FloatRange(0, min_open=True),
    help="Upper end of the colours; fixed by default, so that pictures of slides compare.",
)
@click.option(
    "--ihc", metavar="SLIDE", help="IHC slide to show beside it; by default that of the same case in the cohort."
)
@click.option("--geojson", metavar="FILE", type=_FILE, help="Write the patches and their values for QuPath.")
@click.option("--patches", metavar="PNG", type=_FILE, help="Write a contact sheet of the highest and lowest patches.")
@click.option("--top", default=8, show_default=True, type=click.IntRange(1), help="How many of each are on it.")
@click.option(
    "--truth", metavar="NPZ", type=_FILE, help="Truth map to compare attention with; found for synthetic cohorts."
)
@_address
@verb
def heatmap(
    target: str,
    sweep: Path,
    bags: int,
    embedder: str | None,
    run_id: str | None,
    out: Path,
    kind: str,
    scale_max: float | None,
    ihc: str | None,
    geojson: Path | None,
    patches: Path | None,
    top: int,
    truth: Path | None,
    address: str,
) -> Outcome:
    """Draw where a model looks on a slide (algorithm 1 of the paper), over its thumbnail."""
    from cluster.cli.naming import ihc_named, slides_named
    from cluster.drawing import MapOptions, draw_slide
    from cluster.parts import parts_of
    from cluster.scoring import open_models
    from trainers.maps import MapChoice
    from trainers.score_tables import slide_row

    models = open_models(sweep, embedder=embedder, run_id=run_id, best_fold=True)
    choice = MapChoice.parse(kind, models.task)
    (slide,) = slides_named([target], models)
    beside = None if ihc is None else ihc_named(ihc, models)
    reasons = models.embed_missing([slide], address)
    if reasons:
        raise SlideError(reasons[slide.slide_id])
    options = MapOptions(bags, choice, scale_max, beside, truth, geojson, patches, top)
    drawn = draw_slide(models, slide, out, options)
    row = slide_row(slide, drawn.score, models.task, parts_of([slide], models, sweep)[slide.slide_id])
    return Outcome(
        items=[Item(slide.slide_id, "done")],
        outputs={name: str(path) for name, path in drawn.written.items()},
        extra={
            "runs": models.run_ids,
            "map": kind,
            "bags": drawn.bags,
            "ihc": drawn.ihc,
            "truth_auc": drawn.truth_auc,
            "notes": drawn.notes,
            "scores": [row],
        },
        summary=_said_of_map(slide, drawn, models),
    )


@click.command()
@click.argument("sweep", metavar="SWEEP_DIR", type=click.Path(path_type=Path))
@verb
def report(sweep: Path) -> Outcome:
    """Write a sweep's tables, pictures and report.html anew from its files, and show the tables.

    The fixed test set is scored and its heatmaps are drawn first, where store and slides are at hand; those that are
    there already and current are kept.
    """
    from cluster.testset import ScoringReport, score_and_draw_test_set
    from trainers.report import table, write_report
    from trainers.results import read_results

    read_results(sweep)  # without results there is nothing to report, whatever is at hand
    try:
        with bar("scores and heatmaps of the test slides", "slides") as watch:
            scored = score_and_draw_test_set(sweep, watch=watch)
    except Her2CacheError as error:
        scored = ScoringReport(notes=[f"no new scores and heatmaps: {error}"])
    written = scored.written | write_report(sweep)
    page = [f"Open {written['report.html']} in a browser."] if "report.html" in written else []
    return Outcome(
        items=[Item(slide.id, slide.status, slide.reason) for slide in scored.slides],
        outputs={name: str(path) for name, path in written.items()},
        extra={"truth_auc": scored.truth_aucs, "notes": scored.notes},
        summary=[
            table(sweep),
            *said_of_truth(scored.truth_aucs),
            *_plain(scored.notes),
            "",
            *map(str, written.values()),
            *page,
        ],
    )


def score_each(
    slides: Sequence[Slide],
    models: SweepModels,
    bags: int,
    tolerance: float | None,
    reasons: dict[str, str],
    watch: Callable[[int, int], None],
) -> dict[str, SlideScore]:
    """Scores of slides by id; why one has none is added to `reasons`, which names those not to try.

    Args:
        slides: which.
        models: of a sweep.
        bags, tolerance: see `SweepModels.score`.
        reasons: slide_id -> why it cannot be scored.
        watch: called with (done, in all) before the first slide and after each.
    """
    scores: dict[str, SlideScore] = {}
    watch(0, len(slides))
    for done, slide in enumerate(slides, start=1):
        if slide.slide_id not in reasons:
            try:
                scores[slide.slide_id] = models.score(slide, bags, tolerance)
            except Her2CacheError as error:
                reasons[slide.slide_id] = str(error)
        watch(done, len(slides))
    return scores


def said_of_truth(aucs: Mapping[str, float]) -> list[str]:
    """What the attention of a synthetic cohort's slides says of their truth maps; nothing where there are none."""
    if not aucs:
        return []
    low, high, mean = min(aucs.values()), max(aucs.values()), sum(aucs.values()) / len(aucs)
    return [
        f"Attention finds the synthetic tumour with an AUC of {mean:.2f} (mean of {count_of(len(aucs), 'slide')},"
        f" {low:.2f} to {high:.2f}; 0.5 is chance)."
    ]


def _case_rows(slides: Sequence[Slide], scores: Mapping[str, SlideScore], task: Task) -> list[dict[str, Any]]:
    from trainers.score import combine_slides
    from trainers.score_tables import case_row

    rows: list[dict[str, Any]] = []
    for case_id in dict.fromkeys(slide.case_id for slide in slides):
        own = [slide for slide in slides if slide.case_id == case_id]
        combined = combine_slides([scores[slide.slide_id] for slide in own])
        rows.append(case_row(case_id, own[0].her2_score, combined, task))
    return rows


def _item(slide: Slide, reasons: Mapping[str, str]) -> Item:
    reason = reasons.get(slide.slide_id)
    return Item(slide.slide_id, "done") if reason is None else Item(slide.slide_id, "failed", reason)


def _warnings(parts: Mapping[str, str | None]) -> list[str]:
    from trainers.score_tables import TRAINED_ON

    n = sum(part == TRAINED_ON for part in parts.values())
    if not n:
        return []
    slides = f"{n:,} of {count_of(len(parts), 'slide')}"
    return [f"the models were trained on {slides}, or chosen by them: these scores say nothing of new slides"]


def _said_of_tolerance(scores: Mapping[str, SlideScore], bags: int, tolerance: float) -> str:
    met = sum(score.mc_se <= tolerance for score in scores.values())
    said = f"mc_se at most {tolerance:g}: {met} of {count_of(len(scores), 'slide')}"
    return said if met == len(scores) else f"{said}, the others by {bags:,} bags not; allow more with --bags"


def _said_of_map(slide: Slide, drawn: DrawnSlide, models: SweepModels) -> list[str]:
    score = drawn.score
    name = models.task.classes[score.predicted]
    auc = [] if drawn.truth_auc is None else [f"AUC of attention against the truth map {drawn.truth_auc:.3f}"]
    return [
        f"{slide.slide_id}: predicted {name}, expected score {score.expected_score:.2f}, {score.n_patches:,} patches in"
        f" {drawn.bags:,} bags by run {models.run_ids[0]}",
        *auc,
        *_plain(drawn.notes),
        *(f"{name} {path}" for name, path in drawn.written.items()),
    ]


def _plain(texts: Sequence[str]) -> list[str]:
    from rich.markup import escape

    return [escape(text) for text in texts]
