"""`her2cache tissue`: a contact sheet of masks and grids, before anything is embedded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cluster.cli.output import Item, Outcome, count_of, err
from cluster.cli.reading import read_options, reading_options
from cluster.cli.verb import verb


@click.command()
@click.argument("inputs", metavar="COHORT|SLIDE...", nargs=-1, required=True)
@click.option("--out", default="tissue.png", show_default=True, type=click.Path(path_type=Path), help="PNG to write.")
@reading_options
@verb
def tissue(inputs: tuple[str, ...], out: Path, **reading: Any) -> Outcome:
    """Draw what `embed` would take for tissue, and the grid of its patches, a thumbnail a slide."""
    from rich.progress import track

    from cluster.cli.inputs import slides_of
    from her2cache.errors import SlideError
    from her2cache.sheet import SheetEntry, sheet_entry, write_sheet

    options = read_options(reading)
    entries: list[SheetEntry] = []
    items: list[Item] = []
    slides = slides_of(inputs, reading["stain"])
    for slide in track(slides, "looking for tissue", console=err, transient=True, disable=not err.is_terminal):
        try:
            entries.append(sheet_entry(slide, options))
            items.append(Item(slide.slide_id, "done", "; ".join(entries[-1].warnings)))
        except SlideError as error:
            items.append(Item(slide.slide_id, "failed", str(error)))
    if entries:
        write_sheet(entries, out)
    facts = [
        {
            "slide_id": e.slide_id,
            "patches": e.n_patches,
            "tissue": round(e.tissue_share, 4),
            "mpp": e.mpp,
            "mpp_source": e.mpp_source,
            "warnings": list(e.warnings),
        }
        for e in entries
    ]
    patches = sum(e.n_patches for e in entries)
    return Outcome(
        items=items,
        outputs={"sheet": str(out)} if entries else {},
        extra={"slides": facts},
        summary=[
            f"{count_of(len(entries), 'slide')}, {patches:,} patches",
            *(f"[yellow]warning[/] {e.slide_id}: {w}" for e in entries for w in e.warnings),
            *([f"sheet {out}"] if entries else []),
        ],
    )
