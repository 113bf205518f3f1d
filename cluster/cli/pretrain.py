"""`her2cache pretrain`: train the AlexNets whose trunks become embedders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.markup import escape

from cluster.cli.bars import bar
from cluster.cli.logfile import log_file_option
from cluster.cli.output import Item, Outcome, err
from cluster.cli.verb import verb

if TYPE_CHECKING:
    from her2cache.weights import WeightsCard
    from trainers.pretraining.loop import PretrainEpoch, PretrainSettings
    from trainers.pretraining.network import Tensors
    from trainers.pretraining.patches import SourceData

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--out", required=True, metavar="W.safetensors", type=click.Path(path_type=Path), help="The weights file."
    ),
    click.option(
        "--init",
        default="random",
        show_default=True,
        metavar="random|imagenet[=FILE]",
        help="Trunk to start from; the classifier starts at random.",
    ),
    click.option("--epochs", type=click.IntRange(1), metavar="N", help="At most."),
    click.option(
        "--patience", type=click.IntRange(0), metavar="N", help="Epochs without progress that end it; 0: none."
    ),
    click.option("--batch", type=click.IntRange(2), metavar="N", help="Patches a step."),
    click.option("--learning-rate", type=click.FloatRange(0, min_open=True), metavar="X", help="Of AdamW."),
    click.option("--weight-decay", type=click.FloatRange(0), metavar="X", help="Of AdamW."),
    click.option("--seed", type=click.IntRange(0), metavar="N", help="Of everything."),
    click.option("--no-augment", is_flag=True, help="Leave out the paper's augmentation."),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32"]),
        default="auto",
        show_default=True,
        help="auto: mixed on a GPU.",
    ),
    click.option("--address", default="local", show_default=True, help="Ray: local, auto or HOST:PORT."),
    log_file_option,
)


def _training_options(command: F) -> F:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group()
def pretrain() -> None:
    """Train an AlexNet on a source task; its trunk becomes the embedder alexnet-pcam or alexnet-ihc.

    The same command again goes on where a killed one stopped. Beside the weights lies table1.csv, the paper's Table 1.
    """


@pretrain.command()
@click.argument("data", metavar="DATA", type=click.Path(path_type=Path))
@_training_options
@click.option(
    "--cache", metavar="DIR", type=click.Path(path_type=Path), help="Where .h5.gz are unpacked. [default: beside them]"
)
@verb
def pcam(data: Path, out: Path, init: str, address: str, cache: Path | None, **options: Any) -> Outcome:
    """Train on PatchCamelyon.

    DATA is a folder with its six HDF5 files (.h5 or .h5.gz), or an .npz of x (n, 96, 96, 3) and y (n,).
    """
    from cluster.resources import ray_session
    from trainers.pretraining.pcam import open_pcam

    settings, load = _settings(options), partial(open_pcam, data.absolute(), cache=cache)
    start = _init(init, 96)
    with ray_session(address):
        return _trained("alexnet-pcam", load, settings, out, start, address)


@pretrain.command()
@click.argument("cohort", metavar="COHORT", type=click.Path(path_type=Path))
@_training_options
@click.option("--mpp", default=0.5, show_default=True, type=click.FloatRange(0.05, 10), help="Scale of patches, um/px.")
@click.option("--patch-px", default=224, show_default=True, type=click.IntRange(63, 1024), help="Side of a patch, px.")
@click.option(
    "--max-patches",
    default=7500,
    show_default=True,
    type=click.IntRange(1),
    help="Of a slide. Every slide gives as many to an epoch.",
)
@click.option(
    "--cache",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Patches are kept here, 150 KB each at 224 px. [default: W.safetensors.patches]",
)
@click.option(
    "--experiment",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Experiment whose test cases are left out. [default: those of the default split]",
)
@click.option("--outer", type=click.IntRange(0), metavar="K", help="Leave out the cases of this outer fold instead.")
@click.option(
    "--fold", type=click.IntRange(0), metavar="K", help="Leave out the validation cases of this fold as well."
)
@click.option(
    "--allow-embedder-overlap", is_flag=True, help="Train on all cases, those that the sweep tests on included."
)
@verb
def ihc(
    cohort: Path,
    out: Path,
    init: str,
    address: str,
    mpp: float,
    patch_px: int,
    max_patches: int,
    cache: Path | None,
    experiment: Path | None,
    outer: int | None,
    fold: int | None,
    allow_embedder_overlap: bool,
    **options: Any,
) -> Outcome:
    """Train on patches of a cohort's IHC slides, each labelled with its slide's HER2 score.

    Cases that the sweep tests on take no part: no label of theirs may reach an embedder.
    """
    from cluster.pretraining import cut_slides
    from cluster.resources import ray_session
    from her2cache.cohort import read_cohort
    from her2cache.ingest import ReadOptions
    from her2cache.tiling import PatchSpec
    from her2cache.tissue import preset
    from trainers.pretraining.heldout import HeldOut, held_out_cases
    from trainers.pretraining.ihc import ihc_data, part_slides

    if allow_embedder_overlap and not (experiment is None and outer is None and fold is None):
        raise click.UsageError("--allow-embedder-overlap leaves no case out: drop --experiment, --outer and --fold")
    settings, start = _settings(options), _init(init, patch_px)
    if allow_embedder_overlap:
        held_out = HeldOut(frozenset(), "no case")
    else:
        held_out = held_out_cases(cohort, experiment, outer=outer, fold=fold)
    parts = part_slides(read_cohort(cohort).with_stain("IHC").slides, held_out.cases, settings.seed)
    reading = ReadOptions(PatchSpec(mpp=mpp, patch_px=patch_px, stride_px=patch_px), preset("IHC"))
    folder = (cache or out.with_name(f"{out.name}.patches")).absolute()
    with ray_session(address):
        with bar("cutting", "slides") as watch:
            report = cut_slides(parts.slides, reading, max_patches, folder, watch)
        load = partial(ihc_data, report.cut, parts, mpp)
        outcome = _trained("alexnet-ihc", load, settings, out, start, address)
    seen = len({s.case_id for s in (*parts.train, *parts.valid)})
    left_out = f"{len(held_out.cases)} left out: {held_out.why}"
    return Outcome(
        items=[*outcome.items, *(Item(slide_id, "failed", why) for slide_id, why in report.failed.items())],
        outputs={**outcome.outputs, "patches": str(folder)},
        extra={**outcome.extra, "held_out_cases": sorted(held_out.cases)},
        summary=[*outcome.summary, f"labels of {seen} cases were seen; {left_out}", f"patches {escape(str(folder))}"],
    )


def _settings(options: dict[str, Any]) -> PretrainSettings:
    from trainers.pretraining.loop import PretrainSettings

    given = {key: value for key, value in options.items() if value is not None and key != "no_augment"}
    return PretrainSettings(**given, augment=not options["no_augment"])


def _init(text: str, patch_px: int) -> Tensors | None:
    """The trunk to start from."""
    from her2cache.backbones.alexnet import load_trunk
    from her2cache.errors import ConfigError, EmbedderError

    name, _, file = text.partition("=")
    if name == "random" and not file:
        return None
    if name != "imagenet":
        raise ConfigError(f"--init {text} is not known: random, imagenet, or imagenet=FILE")
    try:
        return load_trunk("alexnet-imagenet", file, patch_px).tensors
    except EmbedderError as error:
        raise type(error)(str(error).replace("alexnet-imagenet=FILE", "--init imagenet=FILE")) from error


def _trained(
    embedder: str,
    load: Callable[[], SourceData],
    settings: PretrainSettings,
    out: Path,
    init: Tensors | None,
    address: str,
) -> Outcome:
    """Trains, adds the row of Table 1, and tells."""
    from cluster.pretraining import train_network
    from cluster.telemetry.board import running_job
    from cluster.telemetry.tally import PretrainTally
    from trainers.results import read_csv
    from trainers.table1 import FILE, add_to_table1, table1_table

    out = out.absolute()
    with running_job("pretrain", address, str(out)) as job:
        tally = PretrainTally(job, settings.epochs, _say)
        job.show(tally)
        card, was_there = train_network(load, settings, out, init=init, watch=tally)
    table = add_to_table1(embedder, card, out)
    return Outcome(
        items=[Item(out.name, "skipped" if was_there else "done", "trained already" if was_there else "")],
        outputs={"weights": str(out), "table1.csv": str(table)},
        extra={"metrics": dict(card.metrics), "mean": card.mean, "std": card.std, "data_digest": card.data_digest},
        summary=[
            *(["trained already, nothing to do"] if was_there else []),
            table1_table(read_csv(out.parent, FILE)),
            "",
            *_of(card),
            f"weights {escape(str(out))}; use them with --embedder {embedder}={escape(str(out))}",
        ],
    )


def _of(card: WeightsCard) -> list[str]:
    m, auc = card.metrics, card.metrics.get("auc_roc")
    shown = "undefined" if auc is None else f"{auc:.3f}"
    return [f"on {int(m['n']):,} test patches: accuracy {m['accuracy']:.3f}, AUC-ROC {shown}"]


def _say(epoch: PretrainEpoch) -> None:
    """A line an epoch on stderr, where that is a terminal."""
    if err.is_terminal:
        losses = f"loss {epoch.train_loss:.4f}  validation {epoch.val_loss:.4f}"
        best = "  least so far" if epoch.best else ""
        err.print(f"epoch {epoch.epoch:>3}  {losses}  {epoch.patches_per_second:,.0f} patches/s{best}")
