"""Options of every verb that reads slides, and the `ReadOptions` they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from her2cache.errors import ConfigError

if TYPE_CHECKING:
    from her2cache.ingest import ReadOptions

F = TypeVar("F", bound=Callable[..., Any])

_STAIN = click.option(
    "--stain", type=click.Choice(["HE", "IHC"]), default="HE", show_default=True, help="Slides and tissue preset."
)
_MPP = click.option(
    "--mpp", default=0.5, show_default=True, type=click.FloatRange(0.05, 10), help="Target scale, um/px."
)
_SCALES = click.option(
    "--mpp",
    "scales",
    default=(0.5,),
    show_default=True,
    multiple=True,
    type=click.FloatRange(0.05, 10),
    help="Target scale, um/px; may be given several times.",
)
_OTHERS = (
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
    click.option(
        "--tissue",
        "thresholds",
        multiple=True,
        metavar="NAME=VALUE",
        help="Another tissue threshold than the preset's, e.g. saturation_min=0.05. For one slide: a column of that"
        " name in the cohort table.",
    ),
    click.option("--skip-pen", is_flag=True, help="Take no patch from what a felt-tip pen marked."),
    click.option("--skip-blurred", is_flag=True, help="Leave out patches that are out of focus."),
    click.option("--assume-power", is_flag=True, help="Take a missing scale from the objective: 10 / power um/px."),
    click.option("--allow-upsample", is_flag=True, help="Enlarge slides that are coarser than --mpp."),
)


def reading_options(command: F) -> F:
    """Adds --stain, --mpp, --patch-px and the others that say which patches are taken to a verb."""
    return _with(command, (_STAIN, _MPP, *_OTHERS))


def scales_options(command: F) -> F:
    """The same with several scales, which the verb gets as `scales`."""
    return _with(command, (_STAIN, _SCALES, *_OTHERS))


def _with(command: F, options: Sequence[Callable[[F], F]]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def read_options(given: Mapping[str, Any], *, max_bad_patches: float = 0.01) -> ReadOptions:
    """What those options, by name, ask for.

    Raises:
        ConfigError: a threshold has no such name, or an impossible value.
    """
    from dataclasses import replace

    from her2cache.focus import SHARP
    from her2cache.ingest import ReadOptions
    from her2cache.tiling import PatchSpec
    from her2cache.tissue import preset

    side = given["patch_px"]
    return ReadOptions(
        patch=PatchSpec(
            mpp=given["mpp"],
            patch_px=side,
            stride_px=side,
            min_tissue=given["min_tissue"],
            min_edges=SHARP if given["skip_blurred"] else 0.0,
        ),
        tissue=replace(preset(given["stain"]), skip_pen=given["skip_pen"], **_thresholds(given["thresholds"])),
        max_bad_patches=max_bad_patches,
        assume_power=given["assume_power"],
        allow_upsample=given["allow_upsample"],
    )


def _thresholds(given: Sequence[str]) -> dict[str, float]:
    """Thresholds by name out of NAME=VALUE."""
    from her2cache.tissue import THRESHOLDS

    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in THRESHOLDS:
            raise ConfigError(f"--tissue {text}: {name!r} is no tissue threshold; choose from {', '.join(THRESHOLDS)}")
        try:
            found[name] = float(value)
        except ValueError:
            raise ConfigError(f"--tissue {text}: {value!r} is no number; write for instance {name}=0.05") from None
    return found
