"""Options of every verb that reads slides, and the `ReadOptions` they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from her2cache.ingest import ReadOptions

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--stain", type=click.Choice(["HE", "IHC"]), default="HE", show_default=True, help="Slides and tissue preset."
    ),
    click.option("--mpp", default=0.5, show_default=True, type=click.FloatRange(0.05, 10), help="Target scale, um/px."),
    click.option(
        "--patch-px",
        default=96,
        show_default=True,
        type=click.IntRange(16, 4096),
        help="Side of a patch, px at --mpp.",
    ),
    click.option(
        "--min-tissue",
        default=0.5,
        show_default=True,
        type=click.FloatRange(0, 1),
        help="Least share of tissue of a patch.",
    ),
    click.option("--assume-power", is_flag=True, help="Take a missing scale from the objective: 10 / power um/px."),
    click.option("--allow-upsample", is_flag=True, help="Enlarge slides that are coarser than --mpp."),
)


def reading_options(command: F) -> F:
    """Adds --stain, --mpp, --patch-px, --min-tissue, --assume-power and --allow-upsample to a verb."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_options(given: Mapping[str, Any], *, max_bad_patches: float = 0.01) -> ReadOptions:
    """What those options, by name, ask for."""
    from her2cache.ingest import ReadOptions
    from her2cache.tiling import PatchSpec
    from her2cache.tissue import preset

    side = given["patch_px"]
    return ReadOptions(
        patch=PatchSpec(mpp=given["mpp"], patch_px=side, stride_px=side, min_tissue=given["min_tissue"]),
        tissue=preset(given["stain"]),
        max_bad_patches=max_bad_patches,
        assume_power=given["assume_power"],
        allow_upsample=given["allow_upsample"],
    )
