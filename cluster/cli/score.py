"""`her2cache score`, `heatmap` and `report`: what the models of a sweep say, of slides and as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.output import Item, Outcome, count_of
from cluster.cli.verb import verb
from her2cache.errors import ConfigError, Her2CacheError, SlideError

if TYPE_CHECKING:
    from rich.table import Table

    from cluster.scoring import SweepModels
    from her2cache.cohort import Slide
    from trainers.tasks import Task

_sweep = click.option(
    "--sweep", required=True, metavar="SWEEP_DIR", type=click.Path(path_type=Path), help="--out of a sweep."
)
_bags = click.option(
    "--bags", default=1000, show_default=True, type=click.IntRange(2), help="Monte-Carlo bags of a slide."
)
_embedder = click.option(
    "--embedder", metavar="NAME", help="Whose models; by default those of least mean validation loss."
)
_CAPTION = """
p: expected class probabilities. mc_se: numerical error of the expected score.
bags: 2.5th to 97.5th percentile over bags, the heterogeneity within the slide.
model_sd: over the models of the folds.
None of these is a confidence interval of the patient's HER2 score."""


@click.command()
@click.argument("targets", metavar="COHORT|SLIDE...", nargs=-1, required=True)
@_sweep
@_bags
@_embedder
@click.option("--run", "run_id", metavar="RUN_ID", help="One model; by default those of all folds.")
@click.option("--out", metavar="FILE.csv", type=click.Path(path_type=Path), help="Write a row a slide.")
@verb
def score(
    targets: tuple[str, ...],
    sweep: Path,
    bags: int,
    embedder: str | None,
    run_id: str | None,
    out: Path | None,
) -> Outcome:
    """Score slides by Monte-Carlo bags: slide files, slide_ids of the sweep, or a cohort table.

    A slide that the sweep's store lacks is embedded first.
    """
    from cluster.scoring import open_models, score_row
    from trainers.results import write_csv

    models = open_models(sweep, embedder=embedder, run_id=run_id)
    slides = _slides_named(targets, models)
    reasons = models.embed_missing(slides)
    rows: list[dict[str, Any]] = []
    for slide in slides:
        if slide.slide_id in reasons:
            continue
        try:
            rows.append(score_row(slide, models.score(slide, bags), models.task))
        except Her2CacheError as error:
            reasons[slide.slide_id] = str(error)
    outputs: dict[str, str] = {}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_csv(out, rows)
        outputs["scores"] = str(out)
    return Outcome(
        items=[_item(slide, reasons) for slide in slides],
        outputs=outputs,
        extra={"task": models.task.name, "runs": models.run_ids, "scores": rows},
        summary=[
            *([_score_table(rows, models.task)] if rows else []),
            f"{count_of(len(models.run_ids), 'model')} of {models.embedder}: {', '.join(models.run_ids)}",
            *(f"{name} {path}" for name, path in outputs.items()),
        ],
    )


@click.command()
@click.argument("target", metavar="SLIDE")
@_sweep
@_bags
@_embedder
@click.option("--run", "run_id", metavar="RUN_ID", help="The model; by default the fold of least validation loss.")
@click.option("--out", required=True, metavar="PNG", type=click.Path(path_type=Path), help="Picture to write.")
@click.option(
    "--scale-max",
    type=click.FloatRange(0, min_open=True),
    help="Upper end of the colours; fixed by default, so that pictures of slides compare.",
)
@verb
def heatmap(
    target: str,
    sweep: Path,
    bags: int,
    embedder: str | None,
    run_id: str | None,
    out: Path,
    scale_max: float | None,
) -> Outcome:
    """Draw where a model looks on a slide (algorithm 1 of the paper), over its thumbnail."""
    from cluster.scoring import draw_slide_heatmap, open_models, score_row

    models = open_models(sweep, embedder=embedder, run_id=run_id, best_fold=True)
    (slide,) = _slides_named([target], models)
    reasons = models.embed_missing([slide])
    if reasons:
        raise SlideError(reasons[slide.slide_id])
    options = {} if scale_max is None else {"scale_max": scale_max}
    result, dealt = draw_slide_heatmap(models, slide, out, bags=bags, **options)
    row = score_row(slide, result, models.task)
    shown = f"{slide.slide_id}: predicted {row['predicted_score']}, {result.n_patches:,} patches in {dealt:,} bags"
    return Outcome(
        items=[Item(slide.slide_id, "done")],
        outputs={"heatmap": str(out)},
        extra={"runs": models.run_ids, "bags": dealt, "scores": [row]},
        summary=[f"{shown} by run {models.run_ids[0]}", f"heatmap {out}"],
    )


@click.command()
@click.argument("sweep", metavar="SWEEP_DIR", type=click.Path(path_type=Path))
@verb
def report(sweep: Path) -> Outcome:
    """Write a sweep's tables and ROC curves anew from its files, and show the table."""
    from trainers.report import table, write_report

    written = write_report(sweep)
    return Outcome(
        outputs={name: str(path) for name, path in written.items()},
        summary=[table(sweep), "", *map(str, written.values())],
    )


def _slides_named(targets: Sequence[str], models: SweepModels) -> list[Slide]:
    """The slides that files, slide_ids or a cohort table name.

    Raises:
        ConfigError: a target is none of these.
    """
    from dataclasses import replace

    from cluster.cli.inputs import TABLES, slides_of
    from cluster.embed_more import slide_of
    from her2cache.cohort import read_cohort

    stain = models.experiment.data.stain
    if Path(targets[0]).suffix.lower() in TABLES:
        return slides_of([Path(target) for target in targets], stain)
    cohort, space_key = Path(models.experiment.data.cohort), models.space_keys[0]
    known = read_cohort(cohort).with_stain(stain).slides if cohort.is_file() else ()
    by_id, by_path = {s.slide_id: s for s in known}, {s.path.resolve(): s for s in known}
    found: dict[str, Slide] = {}
    for target in targets:
        path = Path(target).absolute()
        if target in by_id:
            slide = by_id[target]
        elif path.exists():
            (named,) = slides_of([path], stain)
            slide = by_path.get(path.resolve(), named)
        elif models.store.has(target, space_key):
            slide = replace(slide_of(models.store.record(target, space_key)), stain=stain)
        else:
            raise ConfigError(
                f"{target} is neither a file on this machine nor a slide_id of the sweep's cohort or store;"
                f" correct it, or see the column slide_id of {cohort}"
            )
        other = found.setdefault(slide.slide_id, slide)
        if other != slide:
            raise ConfigError(
                f"{other.path} and {slide.path} would both be slide {slide.slide_id!r}; list them in a cohort"
                " table, each with a slide_id"
            )
    return list(found.values())


def _item(slide: Slide, reasons: Mapping[str, str]) -> Item:
    reason = reasons.get(slide.slide_id)
    return Item(slide.slide_id, "done") if reason is None else Item(slide.slide_id, "failed", reason)


def _score_table(rows: Sequence[Mapping[str, Any]], task: Task) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    shown.add_column("slide", overflow="fold", min_width=12)
    for name in ("score", "expected", *(f"p({name})" for name in task.classes), "mc_se", "bags", "model_sd"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        model_sd = row["model_sd"]
        shown.add_row(
            escape(row["slide_id"]),
            row["predicted_score"],
            f"{row['expected_score']:.2f}",
            *(f"{row[f'p_{c}']:.2f}" for c in range(len(task.classes))),
            f"{row['mc_se']:.3f}",
            f"{row['bag_p2.5']:.2f}-{row['bag_p97.5']:.2f}",
            "" if model_sd is None else f"{model_sd:.2f}",
        )
    shown.caption, shown.caption_justify = _CAPTION, "left"
    return shown
