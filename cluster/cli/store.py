"""`her2cache store`: what a feature store holds, whether it is whole, and mending it."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from cluster.cli.bars import bar
from cluster.cli.interchange import export_verb, import_verb
from cluster.cli.output import Item, Outcome, count_of
from cluster.cli.verb import verb
from her2cache.errors import ConfigError

if TYPE_CHECKING:
    from rich.text import Text

    from cluster.job import SlideOutcome
    from her2cache.cohort import Slide
    from her2cache.store.audit import Checked
    from her2cache.store.reader import FeatureStore

_OTHER_BYTES = "another machine or version made them, or the cohort table gives the slide other thresholds"


@click.group()
def store() -> None:
    """Look into a feature store, verify it, repair it, clear it up; take features in and out."""


store.add_command(import_verb)
store.add_command(export_verb)


@store.command()
@click.argument("uri", metavar="STORE")
@verb
def info(uri: str) -> Outcome:
    """Show the feature spaces of a store: slides, patches, bytes, weights."""
    from rich import box
    from rich.table import Table

    opened = _open(uri)
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for name in ("embedder", "space"):
        shown.add_column(name, no_wrap=True)
    for name in ("slides", "failed", "patches", "views", "dim", "MB", "mpp", "px"):
        shown.add_column(name, justify="right")
    shown.add_column("weights")
    spaces: list[dict[str, Any]] = []
    for space in opened.spaces():
        found = opened.committed(space)
        patches = sum(record.n_patches for record in found)
        row: dict[str, Any] = {
            "name": space.name,
            "key": space.key,
            "slides": len(found),
            "failed": sum(1 for _ in opened.failures(space)),
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
    opened = _open(uri)
    chosen = opened.spaces() if space is None else [opened.find_space(space)]
    found = [(info, record) for info in chosen for record in opened.committed(info)]
    columns = ("slide", "embedder", "space", "patches", "left out", "MB", "mpp", "mpp by", "made (UTC)", "her2cache")
    rows = [
        (
            record.slide_id,
            info.name,
            info.key[:12],
            f"{record.n_patches:,}",
            f"{record.n_planned - record.n_patches:,}",
            f"{record.bytes / 1e6:,.2f}",
            f"{record.slide.get('mpp', float('nan')):.4g}",
            str(record.slide.get("mpp_source", "")),
            str(record.made.get("at", ""))[:16].replace("T", " "),
            str(record.made.get("versions", {}).get("her2cache", "")),
        )
        for info, record in found
    ]
    slides = [
        {"slide_id": record.slide_id, "embedder": info.name, "space": info.key, "record": vars(record)}
        for info, record in found
    ]
    return Outcome(
        extra={"slides": slides},
        outputs={"store": opened.uri},
        summary=[_table(columns, rows, numbers={"patches", "left out", "MB", "mpp"})] if rows else ["no slides yet"],
    )


@store.command()
@click.argument("uri", metavar="STORE")
@verb
def verify(uri: str) -> Outcome:
    """Recompute every digest of a store from the bytes that it holds."""
    opened = _open(uri)
    checked = _verify(opened)
    bad = [c for c in checked if c.problem]
    patches = sum(c.n_patches for c in checked)
    commits = sum(bool(c.slide_id) for c in checked)
    lines = [f"{count_of(commits, 'commit')} verified, {patches:,} patches: {len(bad) or 'nothing is'} damaged"]
    if bad:
        lines.append(f"mend them with `her2cache store repair {escape(uri)}`")
    items = [Item(_name(c), "failed" if c.problem else "done", c.problem) for c in checked]
    return Outcome(items=items, outputs={"store": opened.uri}, summary=lines)


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
    from cluster.job import EmbedOptions
    from her2cache.cohort import read_cohort
    from her2cache.store.audit import retire

    opened = _open(uri)
    known = {slide.slide_id: slide for slide in read_cohort(cohort).slides} if cohort else {}
    bad = [c for c in _verify(opened) if c.problem]
    lost = {c.space_key for c in bad if not c.slide_id}  # what their slides were made with is not known
    items = [Item(_name(c), "failed", c.problem) for c in bad if c.space_key in lost]
    for space_key in sorted({c.space_key for c in bad} - lost):
        space = opened.find_space(space_key)
        slides: list[Slide] = []
        before: dict[str, str] = {}
        for c in (c for c in bad if c.slide_id and c.space_key == space_key):
            try:
                slide, before[c.slide_id] = _slide_of(opened, c, known.get(c.slide_id))
                slides.append(slide)
            except ConfigError as error:
                items.append(Item(_name(c), "failed", str(error)))
        if slides:
            inputs_of(space)  # raises before anything is retired
            for slide in slides:
                retire(opened.records, space_key, slide.slide_id)
            report = embed_more(slides, space, opened, EmbedOptions(address=address))
            items += [
                Item(f"{space_key[:12]}/{o.slide_id}", o.status, o.reason or _difference(opened, o, space_key, before))
                for o in report.outcomes
            ]
    done = [item for item in items if item.status == "done"]
    lines = [f"{len(done)} of {count_of(len(bad), 'damaged record')} mended"] if bad else ["nothing is damaged"]
    lines += [f"  {escape(f'{item.id}  {item.reason}'.rstrip())}" for item in done]
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

    opened = _open(uri)
    removed = collect_garbage(opened.records, older_than_s=older_than * HOUR_S, dry_run=dry_run)
    word = "would be removed" if dry_run else "removed"
    lines = [f"{word}: {escape(str(path))}, {size / 1e6:,.1f} MB" for path, size in removed]
    size = sum(size for _, size in removed)
    older = f" that is older than {older_than:g} h" if older_than else ""
    lines.append(
        f"{count_of(len(removed), 'leftover')} {word}, {size / 1e6:,.1f} MB" if removed else f"nothing to remove{older}"
    )
    return Outcome(
        items=[Item(str(path), "skipped" if dry_run else "done") for path, _ in removed],
        outputs={"store": opened.uri},
        extra={"bytes": size},
        summary=lines,
    )


def _open(uri: str) -> FeatureStore:
    from cluster.cli.inputs import TABLES
    from her2cache.store.reader import FeatureStore

    if Path(uri).suffix.lower() in TABLES:
        raise ConfigError(
            f"{uri} is a cohort table, and this verb takes the store; `repair` takes both:"
            f" her2cache store repair STORE --cohort {uri}"
        )
    return FeatureStore.open(uri)


def _verify(opened: FeatureStore) -> list[Checked]:
    """Verifies with a bar on stderr, when that is a terminal."""
    from her2cache.store.audit import verify as verify_store

    with bar("verifying", "slides") as watch:
        return verify_store(opened.records, watch)


def _name(checked: Checked) -> str:
    return f"{checked.space_key[:12]}/{checked.slide_id}" if checked.slide_id else f"spaces/{checked.space_key[:12]}"


def _slide_of(opened: FeatureStore, checked: Checked, slide: Slide | None) -> tuple[Slide, str]:
    """A damaged slide as the cohort has it, or else as its commit record says; and its digest, "" if unknown.

    Raises:
        ConfigError: the file is unknown, gone, or no longer the one that was embedded.
    """
    from cluster.embed_more import slide_of
    from her2cache.errors import SlideError, StoreError
    from her2cache.ingest import selection_changed
    from her2cache.slide import file_changed

    try:
        record = opened.record(checked.slide_id, checked.space_key)
    except StoreError as error:
        if slide is None:
            raise ConfigError(
                f"slide {checked.slide_id!r}: its commit record is damaged and does not say where the file is; name it"
                " in a cohort table and give that with --cohort"
            ) from error
        return slide, ""
    if slide is None:
        slide = slide_of(record)
    if not slide.path.is_file():
        raise ConfigError(f"{slide.path} is gone; if it moved, name it in a cohort table and give that with --cohort")
    if file_changed(slide.path, record.slide):
        raise ConfigError(
            f"{slide.path} changed since it was embedded, so its old features cannot be made again; embed it anew with"
            " `her2cache embed --replace`"
        )
    try:
        changed = selection_changed(slide, record.slide)
    except SlideError as error:
        raise ConfigError(str(error)) from error
    if changed:
        raise ConfigError(
            f"slide {checked.slide_id!r} was embedded with other regions or tissue thresholds than it has now; embed it"
            " anew with `her2cache embed --replace`"
        )
    return slide, record.digest


def _difference(opened: FeatureStore, outcome: SlideOutcome, space_key: str, before: dict[str, str]) -> str:
    """What there is to say of the bytes of a slide that was embedded again."""
    old = before[outcome.slide_id]
    if outcome.status != "done" or not old or opened.record(outcome.slide_id, space_key).digest == old:
        return ""
    return f"not the bytes of before, {old[:12]}: {_OTHER_BYTES}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Container[str]) -> Text:
    """A table of any length. rich would take a millisecond a row, to find out what it could fold."""
    from rich.text import Text

    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    signs = [">" if name in numbers else "<" for name in columns]
    lines = [
        "  ".join(f"{cell:{sign}{width}}" for cell, sign, width in zip(cells, signs, widths, strict=True)).rstrip()
        for cells in (columns, *rows)
    ]
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return Text.assemble((lines[0], "bold"), "\n", rule, "\n", "\n".join(lines[1:]))
