"""`her2cache embedders`: what can be used here, and why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cluster.cli.output import Item, Outcome, count_of
from cluster.cli.verb import verb

if TYPE_CHECKING:
    from rich.table import Table

    from her2cache.backbones.listing import Listing

_WIDTH = 100


@click.command()
@click.option("--all", "every", is_flag=True, help="Each network of torchvision and timm, too.")
@click.option(
    "--patch-px",
    default=96,
    show_default=True,
    type=click.IntRange(1),
    help="Side of the patches they would be given; the length of an AlexNet's features depends on it.",
)
@verb
def embedders(every: bool, patch_px: int) -> Outcome:
    """List the embedders that can be used now, and why others cannot.

    Ask for one with `embed --embedder NAME`, or NAME=WEIGHTS.
    """
    from dataclasses import asdict

    from her2cache.backbones.listing import available

    found = available(patch_px, every=every)
    ready = sum(listing.usable for listing in found)
    return Outcome(
        items=[Item(one.name, "done" if one.usable else "skipped", one.why) for one in found],
        extra={"embedders": [asdict(one) for one in found], "patch_px": patch_px},
        summary=[
            _table(found),
            f"{count_of(ready, 'embedder')} can be used now. Others: embed --embedder NAME or NAME=WEIGHTS.",
            f"dim and input are for patches of {patch_px} px; - is known once the embedder is loaded.",
        ],
    )


def _table(found: list[Listing]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, width=_WIDTH, pad_edge=False, show_edge=False)
    table.add_column("embedder", overflow="fold", min_width=16)
    table.add_column("dim", justify="right", no_wrap=True)
    table.add_column("input", justify="right", no_wrap=True)
    table.add_column("licence", max_width=16)
    table.add_column("now", no_wrap=True)
    table.add_column("how, or why not", ratio=1)
    for one in found:
        dim = "-" if one.dim is None else f"{one.dim:,}"
        side = "-" if one.input_px is None else f"{one.input_px} px"
        usable = "[green]yes[/]" if one.usable else "no"
        table.add_row(escape(one.name), dim, side, escape(one.licence), usable, escape(one.why))
    return table
