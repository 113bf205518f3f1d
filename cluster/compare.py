"""A comparison of embedders: embed, a short sweep with nested cross-validation, and the leaderboard."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.embed_job import EmbedReport, embed_slides
from cluster.job import EmbedOptions, Progress
from cluster.progress import SweepProgress
from cluster.sweep import SweepOptions, SweepReport, run_sweep
from her2cache.cohort import Slide
from her2cache.embedder import Recipe
from her2cache.errors import ConfigError
from her2cache.ingest import ReadOptions
from her2cache.store.reader import FeatureStore
from trainers.config import read_experiment
from trainers.files import whole
from trainers.leaderboard import FILE, PICTURE, cost_of, draw_leaderboard, leaderboard_rows
from trainers.overlap import are_choices
from trainers.results import write_csv
from trainers.study import open_study

_DATA = """\
[data]
cohort = {cohort}
store = "store"
embedders = [{embedders}]
stain = "{stain}"
"""

_SHORT = """\
# The short sweep of `her2cache compare`. Its figures are those of the outer folds.
[splits]
folds = 3
test_slides = 8
nested = 5

[bags]
size = 100
per_epoch = 640
validation = 500
test = 500
allow_replacement = true

[training]
epochs = 8
learning_rate = [1e-3, 1e-4]
weight_decay = [1e-5]
feature_norm = "standardize"
"""


_HEADER = re.compile(r"\s*\[\s*([\w.-]+)\s*\]")


@dataclass(frozen=True)
class CompareOptions:
    """How embedders are compared.

    Attributes:
        views: of a patch.
        stain: of the slides.
        experiment: whose splits, bags and training are taken instead of the short sweep's.
        address: of Ray.
        allow_embedder_overlap: see `cluster.sweep.SweepOptions`.
    """

    views: int = 1
    stain: str = "HE"
    experiment: Path | None = None
    address: str = "local"
    allow_embedder_overlap: bool = False


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        rows: of the leaderboard.
        embedded: a report a scale.
        swept: the report of the sweep.
        written: name -> file.
    """

    rows: list[dict[str, Any]]
    embedded: list[EmbedReport]
    swept: SweepReport
    written: dict[str, Path] = field(default_factory=dict[str, Path])


def embed_all(
    slides: Sequence[Slide],
    recipes: Sequence[Recipe],
    store: FeatureStore,
    readings: Sequence[ReadOptions],
    options: CompareOptions,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> list[EmbedReport]:
    """Embeds the slides at every scale, each decoded once a scale for all embedders."""
    job = EmbedOptions(address=options.address)
    return [embed_slides(slides, recipes, store, reading, job, watch, views=options.views) for reading in readings]


def sweep_and_rank(
    out: Path,
    cohort: Path,
    embedded: Sequence[EmbedReport],
    options: CompareOptions,
    watch: Callable[[SweepProgress], None] = lambda progress: None,
) -> Comparison:
    """Runs the short sweep over every space that was embedded, and writes the leaderboard.

    Args:
        out: folder of the comparison, with the store in it.
        cohort: table of the slides.
        embedded: a report a scale.
        options: of the comparison.
        watch: called whenever counts of the sweep change.

    Raises:
        ConfigError: `out` holds a comparison of other embedders, scales or slides.
        Her2CacheError: see `cluster.sweep.run_sweep`.
    """
    store = FeatureStore.open(out / "store")
    text = _experiment(cohort, _named(store, embedded), options)
    file = out / "experiment.toml"
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{out} holds a comparison of other embedders, scales or options: give another --out (features in"
            f" {out / 'store'} can be copied there, and are then used again)"
        )
    file.write_text(text, encoding="utf-8")
    if not read_experiment(file).splits.nested:
        raise ConfigError(
            f"{options.experiment} has no nested cross-validation, which the leaderboard rests on: set [splits] nested"
            " = 5 in it"
        )
    sweep = SweepOptions(
        options.address, resume=(out / "sweep").exists(), allow_embedder_overlap=options.allow_embedder_overlap
    )
    swept = run_sweep(file, out / "sweep", sweep, watch)
    study = open_study(read_experiment(file), allow_overlap=options.allow_embedder_overlap)
    slides = [s.slide_id for s in study.splits.slides]
    costs = {study.embedder_of(name)[0]: cost_of(store, space, slides) for name, space in study.spaces.items()}
    rows = leaderboard_rows(out / "sweep", costs)
    written = {FILE: out / FILE, PICTURE: out / PICTURE}
    with whole(written[FILE]) as partial:
        write_csv(partial, rows)
    with whole(written[PICTURE]) as partial:
        draw_leaderboard(rows, partial)
    return Comparison(rows, list(embedded), swept, {"experiment.toml": file, "store": out / "store", **written})


def at_scales(reading: ReadOptions, scales: Sequence[float]) -> list[ReadOptions]:
    """The same reading at several scales, um/px."""
    return [replace(reading, patch=replace(reading.patch, mpp=mpp)) for mpp in dict.fromkeys(scales)]


def _named(store: FeatureStore, embedded: Sequence[EmbedReport]) -> list[str]:
    """What to train on, as [data] embedders has it: keys of spaces, those of one embedder whose weights left out
    different cases joined."""
    names: list[str] = []
    for report in embedded:
        spaces = [store.find_space(key) for key in dict.fromkeys(report.space_keys)]
        for name in dict.fromkeys(space.name for space in spaces):
            own = [space for space in spaces if space.name == name]
            keys = [space.key[:16] for space in own]
            names += ["+".join(keys)] if len(own) > 1 and are_choices(own) else keys
    return list(dict.fromkeys(names))


def _experiment(cohort: Path, embedders: Sequence[str], options: CompareOptions) -> str:
    names = ", ".join(f'"{name}"' for name in embedders)
    data = _DATA.format(cohort=_quoted(str(cohort.absolute())), embedders=names, stain=options.stain)
    if options.experiment is None:
        return f"{data}\n{_SHORT}"
    read_experiment(options.experiment)  # says what is wrong with it under its own name
    return f"{data}\n{without_data(options.experiment.read_text(encoding='utf-8'))}"


def without_data(text: str) -> str:
    """An experiment file without its section [data]."""
    kept: list[str] = []
    section = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            section = header[1]
        if section != "data":
            kept.append(line)
    return "\n".join(kept) + "\n"


def _quoted(text: str) -> str:
    """As a TOML string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
