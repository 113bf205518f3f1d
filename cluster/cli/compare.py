"""`her2cache compare`: which embedder is best, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from cluster.cli.logfile import log_file_option
from cluster.cli.output import Item, Outcome
from cluster.cli.reading import read_options, scales_options
from cluster.cli.verb import verb

_WHAT = {
    "leaderboard.csv": "the table above, with every range",
    "leaderboard.png": "the same as a picture",
    "experiment.toml": "the short sweep",
    "store": "features, to train longer on",
}


@click.command()
@click.argument("cohort", metavar="COHORT", type=click.Path(path_type=Path))
@click.option(
    "--embedder",
    "embedders",
    required=True,
    multiple=True,
    metavar="NAME[=WEIGHTS]",
    help="May be given several times; `her2cache embedders` lists them.",
)
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Everything goes here.")
@scales_options
@click.option("--views", default=1, show_default=True, type=click.IntRange(1, 64), help="Of a patch.")
@click.option(
    "--experiment",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Take [splits], [bags], [training] and the rest of this file. [default: a short sweep]",
)
@click.option("--address", default="local", show_default=True, help="Ray: local, auto or HOST:PORT.")
@click.option(
    "--allow-embedder-overlap",
    is_flag=True,
    help="Rank an embedder on cases whose labels its weights have seen; the table says so.",
)
@log_file_option
@verb
def compare(
    cohort: Path,
    embedders: tuple[str, ...],
    out: Path,
    scales: tuple[float, ...],
    views: int,
    experiment: Path | None,
    address: str,
    allow_embedder_overlap: bool,
    **options: Any,
) -> Outcome:
    """Embed a cohort with several embedders, train briefly on each, and rank them.

    Every case is predicted by models that have not seen it (nested cross-validation). Embedders that a paired test
    cannot tell from the best are marked. The same command again goes on where it was.
    """
    from cluster import compare as steps
    from cluster.cli.embed import EmbedBar
    from cluster.cli.inputs import slides_of
    from cluster.cli.live import LiveTable
    from cluster.resources import ray_session
    from her2cache.backbones.registry import load_recipe
    from her2cache.store.reader import FeatureStore
    from trainers.leaderboard import leaderboard_table

    settings = steps.CompareOptions(views, options["stain"], experiment, address, allow_embedder_overlap)
    slides = slides_of([cohort], settings.stain)
    reading = read_options({**options, "mpp": scales[0]})
    recipes = [load_recipe(request, reading.patch.patch_px) for request in dict.fromkeys(embedders)]
    store = FeatureStore.create(out / "store")
    with ray_session(address):
        with EmbedBar(len(slides)) as bar:
            embedded = steps.embed_all(slides, recipes, store, steps.at_scales(reading, scales), settings, bar)
        with LiveTable() as live:
            found = steps.sweep_and_rank(out, cohort, embedded, settings, live)
    failed = {o.slide_id: o.reason for report in embedded for o in report.outcomes if o.status == "failed"}
    warnings = [*dict.fromkeys(w for report in embedded for w in report.warnings), *found.swept.warnings]
    return Outcome(
        items=[
            *(
                Item(s.slide_id, "failed" if s.slide_id in failed else "done", failed.get(s.slide_id, ""))
                for s in slides
            ),
            *(Item(run.run_id, "failed", run.reason) for run in found.swept.runs if run.reason),
        ],
        outputs={name: str(path) for name, path in found.written.items()},
        extra={"leaderboard": found.rows, "warnings": warnings, "seconds": round(found.swept.seconds, 3)},
        summary=[
            leaderboard_table(found.rows),
            "",
            *(f"[yellow]note[/] {escape(w)}" for w in warnings),
            f"Files, all under {escape(str(out))}:",
            *(f"  {name:<18}{what}" for name, what in _WHAT.items()),
        ],
    )
