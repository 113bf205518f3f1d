"""`her2cache embed`: slides in, vectors out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from cluster.cli.bars import live, pace
from cluster.cli.logfile import log_file_option
from cluster.cli.output import Item, Outcome, count_of
from cluster.cli.reading import read_options, reading_options
from cluster.cli.verb import verb

if TYPE_CHECKING:
    from cluster.embed_job import EmbedReport
    from cluster.job import Progress


@click.command()
@click.argument("inputs", metavar="COHORT|SLIDE...", nargs=-1, required=True)
@click.option(
    "--store",
    required=True,
    metavar="URI",
    help="Feature store, a directory or s3://BUCKET/PREFIX; made if there is none.",
)
@click.option(
    "--embedder",
    "embedders",
    required=True,
    multiple=True,
    metavar="NAME[=WEIGHTS]",
    help="May be given several times; `her2cache embedders` lists them.",
)
@reading_options
@click.option(
    "--views",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Of a patch: itself, and seeded augmented ones for training.",
)
@click.option(
    "--max-bad-patches",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of a slide's patches that may be undecodable before the slide fails.",
)
@click.option(
    "--max-attempts",
    default=3,
    show_default=True,
    type=click.IntRange(1),
    help="How often a slide is tried when its processes die.",
)
@click.option(
    "--on-error", type=click.Choice(["skip", "fail"]), default="skip", show_default=True, help="Go on, or stop at once."
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32"]),
    default="auto",
    show_default=True,
    help="auto: products in float16 on a GPU, float32 on a processor.",
)
@click.option("--replace", is_flag=True, help="Embed anew the slides whose file changed since they were embedded.")
@click.option("--address", default="local", show_default=True, help="Ray: local, auto or HOST:PORT.")
@log_file_option
@verb
def embed(inputs: tuple[str, ...], store: str, embedders: tuple[str, ...], **options: Any) -> Outcome:
    """Push every patch of slides once through frozen embedders, into a feature store.

    Slides that the store already has are skipped; a slide that fails is recorded and the others go on.
    """
    from cluster.cli.inputs import slides_of
    from cluster.embed_job import embed_slides
    from cluster.job import EmbedOptions
    from cluster.telemetry.account import bottleneck_of, shown
    from her2cache.backbones.registry import load_recipe
    from her2cache.store.reader import FeatureStore

    slides = slides_of(inputs, options["stain"])
    reading = read_options(options, max_bad_patches=options["max_bad_patches"])
    recipes = [load_recipe(request, reading.patch.patch_px) for request in dict.fromkeys(embedders)]
    job = EmbedOptions(options["max_attempts"], options["on_error"], options["address"], options["replace"])
    opened = FeatureStore.create(store)
    with EmbedBar(len(slides)) as bar:
        views, precision = options["views"], options["precision"]
        report = embed_slides(slides, recipes, opened, reading, job, bar, views=views, precision=precision)
    names = [recipe.spec.name for recipe in recipes]
    if len(set(names)) < len(names):  # the same kind of embedder with several weights
        names = list(dict.fromkeys(embedders))
    return Outcome(
        items=[Item(o.slide_id, o.status, o.reason) for o in report.outcomes],
        outputs={"store": opened.uri},
        extra={
            "spaces": dict(zip(names, report.space_keys, strict=True)),
            "patches": report.patches,
            "passes": dict(zip(names, report.passes, strict=False)),
            "segments_decoded": report.segments_decoded,
            "left_out": report.left_out,
            "seconds": round(report.seconds, 3),
            "bottleneck": bottleneck_of(report.stages),
            "stages": shown(report.stages),
            "warnings": report.warnings,
        },
        summary=summarise(report, names, opened.uri),
    )


def summarise(report: EmbedReport, names: list[str], store: str) -> list[str]:
    """Lines for a person."""
    from cluster.job import ALREADY_EMBEDDED
    from cluster.telemetry.account import bottleneck_of

    count = {s: sum(o.status == s for o in report.outcomes) for s in ("done", "skipped", "failed")}
    lines: list[str] = []
    if count["done"]:
        rate = report.patches * len(names) / report.seconds
        work = f"{report.patches:,} patches x {count_of(len(names), 'embedder')}"
        took = f"{report.seconds:.1f} s ({rate:,.0f} patches/s)"
        lines.append(f"{count_of(count['done'], 'slide')} embedded: {work} in {took}")
    if bottleneck := bottleneck_of(report.stages):
        lines.append(f"bottleneck {bottleneck}: at work {report.stages[bottleneck].busy:.0%} of the time")
    lines += [f"{n:,} {reason} patches left out" for reason, n in report.left_out.items() if n]
    there = sum(o.reason == ALREADY_EMBEDDED for o in report.outcomes)
    if there:
        lines.append(f"{count_of(there, 'slide')} skipped: already embedded, nothing to do")
    if count["skipped"] > there:
        lines.append(f"{count_of(count['skipped'] - there, 'slide')} not embedded: the job stopped at a failure")
    if count["failed"]:
        lines.append(
            f"{count_of(count['failed'], 'slide')} failed; the reasons follow, and are kept in {escape(store)}/failures"
        )
    lines += [f"[yellow]warning[/] {escape(line)}" for line in report.warnings]
    lines += [f"  {name}  space {key[:12]}" for name, key in zip(names, report.space_keys, strict=True)]
    return [*lines, f"store {escape(store)}"]


class EmbedBar:
    """A progress bar of an embed job on stderr, when that is a terminal. Call it with a `Progress`."""

    def __init__(self, slides: int) -> None:
        self._bar = live("embedding")
        self._task = self._bar.add_task("", total=slides, unit="slides", pace="")
        self._work = PatchPace()

    def __enter__(self) -> EmbedBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        self._bar.update(
            self._task,
            total=progress.slides,
            completed=progress.finished,
            unit=f"slides, {progress.written_patches:,} patches",
            pace=self._work.after(progress, time.monotonic()),
        )


class PatchPace:
    """How fast the patches of an embed job are done, and how long the rest takes. Show it every step of the job.

    Slides that were not looked at yet are taken to have as many patches as those that were, in the mean.
    """

    def __init__(self) -> None:
        self._job: Progress | None = None
        self._began: tuple[float, int] | None = None
        self._planned = self._surveyed = 0

    def after(self, progress: Progress, now: float) -> str:
        """For instance `1,200 patches/s, 3 min left`; empty until there are patches to go by.

        Args:
            progress: of the job, after a step.
            now: in seconds, of a clock that only rises.
        """
        if self._job is not progress:  # a command may run several, one after the other
            self._job, self._began, self._planned, self._surveyed = progress, None, 0, 0
        planned, written = progress.planned_patches, progress.written_patches
        self._surveyed += (planned > self._planned) - (planned < self._planned)  # a step adds one slide, or drops one
        self._planned = planned
        if self._began is None and written:  # before that, processes start and embedders load
            self._began = now, written
        if self._began is None or self._surveyed <= 0:
            return ""
        to_survey = max(0, progress.slides - self._surveyed - progress.failed)
        left = planned - written + to_survey * planned / self._surveyed
        return pace(written - self._began[1], left, now - self._began[0], "patches")
