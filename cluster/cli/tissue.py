"""`her2cache tissue`: a contact sheet of masks and grids, before anything is embedded."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.cli.output import Item, Outcome, count_of, err
from cluster.cli.verb import verb


@click.command()
@click.argument("inputs", metavar="COHORT|SLIDE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", default="tissue.png", show_default=True, type=click.Path(path_type=Path), help="PNG to write.")
@click.option(
    "--stain", type=click.Choice(["HE", "IHC"]), default="HE", show_default=True, help="Slides and tissue preset."
)
@click.option("--mpp", default=0.5, show_default=True, type=click.FloatRange(0.05, 10), help="Target scale, um/px.")
@click.option("--patch-px", default=96, show_default=True, type=click.IntRange(16, 4096), help="Side of a patch, px.")
@click.option(
    "--min-tissue",
    default=0.5,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Least share of tissue of a patch.",
)
@click.option("--assume-power", is_flag=True, help="Take a missing scale from the objective: 10 / power um/px.")
@click.option("--allow-upsample", is_flag=True, help="Enlarge slides that are coarser than --mpp.")
@verb
def tissue(
    inputs: tuple[Path, ...],
    out: Path,
    stain: str,
    mpp: float,
    patch_px: int,
    min_tissue: float,
    assume_power: bool,
    allow_upsample: bool,
) -> Outcome:
    """Draw what `embed` would take for tissue, and the grid of its patches, a thumbnail a slide."""
    from rich.progress import track

    from cluster.cli.inputs import slides_of
    from her2cache.errors import SlideError
    from her2cache.ingest import ReadOptions
    from her2cache.sheet import SheetEntry, look_at, write_sheet
    from her2cache.tiling import PatchSpec
    from her2cache.tissue import preset

    options = ReadOptions(
        patch=PatchSpec(mpp=mpp, patch_px=patch_px, stride_px=patch_px, min_tissue=min_tissue),
        tissue=preset(stain),
        assume_power=assume_power,
        allow_upsample=allow_upsample,
    )
    entries: list[SheetEntry] = []
    items: list[Item] = []
    slides = slides_of(inputs, stain)
    for slide in track(slides, "looking for tissue", console=err, transient=True, disable=not err.is_terminal):
        try:
            entries.append(look_at(slide, options))
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
