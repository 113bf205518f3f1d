"""`her2cache store`: what a feature store holds, whether it is whole, and mending it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.output import Item, Outcome, count_of, err
from cluster.cli.verb import verb
from her2cache.errors import ConfigError

if TYPE_CHECKING:
    from her2cache.cohort import Slide
    from her2cache.store.audit import Checked
    from her2cache.store.reader import FeatureStore


@click.group()
def store() -> None:
    """Look into a feature store, verify it, repair it, clear it up."""


@store.command()
@click.argument("uri", metavar="STORE")
@verb
def info(uri: str) -> Outcome:
    """Show the feature spaces of a store: slides, patches, bytes, weights."""
    from rich import box
    from rich.table import Table

    from her2cache.store.reader import FeatureStore

    opened = FeatureStore.open(uri)
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in ("embedder", "space"):
        shown.add_column(name, no_wrap=True)
    for name in ("slides", "failed", "patches", "views", "dim", "MB", "mpp", "px"):
        shown.add_column(name, justify="right")
    shown.add_column("weights")
    spaces: list[dict[str, Any]] = []
    for space in opened.spaces():
        found = [opened.record(slide_id, space.key) for slide_id in opened.slides(space.key)]
        patches = sum(record.n_patches for record in found)
        row: dict[str, Any] = {
            "name": space.name,
            "key": space.key,
            "slides": len(found),
            "failed": sum(1 for _ in opened.failures(space.key)),
            "patches": patches,
            "views": space.views,
            "dim": space.dim,
            "bytes": sum(record.bytes for record in found),
            "space": space.document,
            "weights": space.weights,
        }
        spaces.append(row)
        patch = space.document["patch"]
        shown.add_row(
            space.name,
            space.key[:12],
            *(f"{row[name]:,}" for name in ("slides", "failed", "patches", "views", "dim")),
            f"{row['bytes'] / 1e6:,.1f}",
            f"{patch['mpp']:g}",
            str(patch["patch_px"]),
            space.document["embedder"]["weights_sha256"][:12],
        )
    return Outcome(extra={"spaces": spaces}, outputs={"store": opened.uri}, summary=[shown])


@store.command()
@click.argument("uri", metavar="STORE")
@click.option("--space", metavar="NAME|KEY", help="Only this feature space.")
@verb
def ls(uri: str, space: str | None) -> Outcome:
    """List the slides of a store: patches, scale and where it came from, when and by what they were made."""
    from rich import box
    from rich.table import Table

    from her2cache.store.reader import FeatureStore

    opened = FeatureStore.open(uri)
    chosen = opened.spaces() if space is None else [opened.find_space(space)]
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    shown.add_column("slide", overflow="fold")
    for name in ("embedder", "space"):
        shown.add_column(name, no_wrap=True)
    for name in ("patches", "left out", "MB", "mpp"):
        shown.add_column(name, justify="right")
    for name in ("mpp by", "made", "her2cache"):
        shown.add_column(name)
    slides: list[dict[str, Any]] = []
    for found in chosen:
        for slide_id in opened.slides(found.key):
            record = opened.record(slide_id, found.key)
            slides.append({"slide_id": slide_id, "embedder": found.name, "space": found.key, "record": vars(record)})
            shown.add_row(
                slide_id,
                found.name,
                found.key[:12],
                f"{record.n_patches:,}",
                f"{record.n_planned - record.n_patches:,}",
                f"{record.bytes / 1e6:,.2f}",
                f"{record.slide.get('mpp', float('nan')):.4g}",
                str(record.slide.get("mpp_source", "")),
                str(record.made.get("at", "")),
                str(record.made.get("versions", {}).get("her2cache", "")),
            )
    return Outcome(extra={"slides": slides}, outputs={"store": opened.uri}, summary=[shown])


@store.command()
@click.argument("uri", metavar="STORE")
@verb
def verify(uri: str) -> Outcome:
    """Recompute every digest of a store from the bytes on disk."""
    from her2cache.store.reader import FeatureStore

    opened = FeatureStore.open(uri)
    checked = _verify(opened)
    bad = [c for c in checked if c.problem]
    patches = sum(c.n_patches for c in checked)
    lines = [f"{count_of(len(checked), 'commit')} verified, {patches:,} patches: {len(bad)} damaged"]
    if bad:
        lines.append(f"mend them with `her2cache store repair {uri}`")
    return Outcome(items=_items(checked), outputs={"store": opened.uri}, summary=lines)


@store.command()
@click.argument("uri", metavar="STORE")
@click.option(
    "--cohort", metavar="TABLE", type=click.Path(path_type=Path), help="Where the slide files are now, if they moved."
)
@click.option("--address", default="local", show_default=True, help="Ray: local, auto or HOST:PORT.")
@verb
def repair(uri: str, cohort: Path | None, address: str) -> Outcome:
    """Verify a store, and embed again exactly the slides that are damaged.

    The damaged commit records are kept under retired/.
    """
    from cluster.embed_more import embed_more, inputs_of
    from cluster.pipeline import EmbedOptions
    from her2cache.store.audit import retire
    from her2cache.store.reader import FeatureStore

    opened = FeatureStore.open(uri)
    bad = [c for c in _verify(opened) if c.problem]
    items: list[Item] = []
    for space in opened.spaces():
        damaged = [c for c in bad if c.space_key == space.key]
        slides = [_slide_of(opened, c, cohort) for c in damaged]
        if slides:
            inputs_of(space)  # raises before anything is retired
            for c in damaged:
                retire(opened.records, c.space_key, c.slide_id)
            report = embed_more(slides, space, opened, EmbedOptions(address=address))
            items += [Item(f"{space.key[:12]}/{o.slide_id}", o.status, o.reason) for o in report.outcomes]
    done = sum(item.status == "done" for item in items)
    lines = [f"{done} of {count_of(len(bad), 'damaged commit')} embedded again"] if bad else ["nothing is damaged"]
    return Outcome(items=items, outputs={"store": opened.uri}, summary=lines)


@store.command()
@click.argument("uri", metavar="STORE")
@click.option(
    "--older-than",
    default=24.0,
    show_default=True,
    type=click.FloatRange(0),
    metavar="HOURS",
    help="Spare what was written to since: a job may be at it.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@verb
def gc(uri: str, older_than: float, dry_run: bool) -> Outcome:
    """Remove what killed jobs left: attempts that no commit names."""
    from her2cache.store.audit import HOUR_S, collect_garbage
    from her2cache.store.reader import FeatureStore

    opened = FeatureStore.open(uri)
    removed = collect_garbage(opened.records, older_than_s=older_than * HOUR_S, dry_run=dry_run)
    size = sum(size for _, size in removed)
    word = "would be removed" if dry_run else "removed"
    return Outcome(
        items=[Item(str(path), "skipped" if dry_run else "done") for path, _ in removed],
        extra={"bytes": size},
        summary=[f"{count_of(len(removed), 'attempt')} {word}, {size / 1e6:,.1f} MB"],
    )


def _verify(opened: FeatureStore) -> list[Checked]:
    """Verifies with a bar on stderr, when that is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from her2cache.store.audit import verify as verify_store

    columns = ("verifying", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("", total=None)
        return verify_store(opened.records, lambda done, total: bar.update(task, completed=done, total=total))


def _items(checked: list[Checked]) -> list[Item]:
    return [Item(f"{c.space_key[:12]}/{c.slide_id}", "failed" if c.problem else "done", c.problem) for c in checked]


def _slide_of(opened: FeatureStore, checked: Checked, cohort: Path | None) -> Slide:
    """Where the file of a damaged slide is: by the cohort, else by its commit record.

    Raises:
        ConfigError: neither says.
    """
    from her2cache.cohort import Slide, read_cohort
    from her2cache.errors import StoreError

    if cohort is not None:
        found = [s for s in read_cohort(cohort).slides if s.slide_id == checked.slide_id]
        if found:
            return found[0]
    try:
        record = opened.record(checked.slide_id, checked.space_key)
    except StoreError as error:
        raise ConfigError(
            f"slide {checked.slide_id!r}: its commit record is damaged and does not say where the file is; name it in a"
            " cohort table and give that with --cohort"
        ) from error
    override = record.slide["mpp"] if record.slide.get("mpp_source") == "cohort" else None
    return Slide(checked.slide_id, checked.slide_id, Path(record.slide["path"]), "HE", mpp=override)
