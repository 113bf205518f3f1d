"""`her2cache store import` and `export`: features that CLAM, TRIDENT and STAMP made, and files that they can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from cluster.cli.bars import bar
from cluster.cli.output import Item, Outcome, count_of
from cluster.cli.verb import verb
from her2cache.errors import ConfigError

if TYPE_CHECKING:
    from her2cache.cohort import Slide
    from her2cache.interchange.exporting import Exported
    from her2cache.interchange.importing import ImportReport

_TOOLS = ("clam", "trident", "stamp")
_NOTES_SHOWN = 3


@click.command("import")
@click.argument("source", metavar="SOURCE", type=click.Path(path_type=Path))
@click.option("--store", "uri", metavar="URI", required=True, help="Where the features go; made if there is none.")
@click.option("--from", "tool", required=True, type=click.Choice(_TOOLS), help="The tool that wrote SOURCE.")
@click.option("--embedder", metavar="NAME", required=True, help="Name of the feature space.")
@click.option(
    "--cohort",
    metavar="TABLE",
    type=click.Path(path_type=Path),
    help="Only the slides of this table, under their ids, with scale and size of their files. STAMP needs it.",
)
@click.option(
    "--patches",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="CLAM's folder of coordinates: they say how large patches are.",
)
@click.option("--patch-px", metavar="N", type=click.IntRange(1), help="Side of a patch, px at --mpp.")
@click.option("--patch-level0-px", metavar="F", type=click.FloatRange(0, min_open=True), help="The same in level-0 px.")
@click.option(
    "--mpp", metavar="F", type=click.FloatRange(0.05, 100), help="Scale of the patches, um/px. CLAM needs it."
)
@click.option("--dim", metavar="N", type=click.IntRange(1), help="Length of a feature vector; else that of the first.")
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    help="Of the stored features.  [default: float16 from STAMP, else float32: as in the files]",
)
@click.option("--replace", is_flag=True, help="Import slides that are there anew.")
@verb
def import_verb(
    source: Path,
    uri: str,
    tool: str,
    embedder: str,
    cohort: Path | None,
    patches: Path | None,
    patch_px: int | None,
    patch_level0_px: float | None,
    mpp: float | None,
    dim: int | None,
    dtype: str | None,
    replace: bool,
) -> Outcome:
    """Import features of CLAM, TRIDENT or STAMP into a space.

    SOURCE is a folder with a file a slide. Slides that are there are skipped, so the same command goes on where it was
    cut off. Training needs no slide files; maps and scores of slides do: give --cohort where they are at hand.
    """
    from her2cache.interchange.importing import ImportOptions, import_features
    from her2cache.interchange.patches import Given

    if patches is not None and tool != "clam":
        raise ConfigError(f"--patches is CLAM's folder of coordinates; the files of {tool} hold theirs: leave it out")
    given = Given(patch_px=patch_px, mpp=mpp, patch_level0_px=patch_level0_px, patches=patches)
    options = ImportOptions(tool, embedder, dtype, dim, given, replace)
    with bar("importing", "slides") as watch:
        report = import_features(source, uri, options, _slides_of(cohort), watch)
    items = [Item(one.slide_id, one.status, one.reason or "; ".join(one.notes)) for one in report.imported]
    space = report.space
    return Outcome(
        items=items,
        outputs={"store": uri} if space else {},
        extra={"space": None if space is None else {"key": space.key, "name": embedder, **space.document()}},
        summary=_imported_lines(report, uri, known_slides=cohort is not None),
    )


@click.command("export")
@click.argument("uri", metavar="STORE")
@click.option("--space", metavar="NAME|KEY", required=True, help="The feature space.")
@click.option(
    "--to", "tool", required=True, type=click.Choice([*_TOOLS, "torchmil"]), help="The tool that shall read them."
)
@click.option("--out", metavar="DIR", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--slide", "slides", metavar="ID", multiple=True, help="Only this slide; may be given several times.")
@click.option(
    "--view", metavar="N", default=0, show_default=True, type=click.IntRange(0), help="0: patches as they are."
)
@click.option(
    "--cohort", metavar="TABLE", type=click.Path(path_type=Path), help="Where the labels stand that torchmil needs."
)
@click.option("--replace", is_flag=True, help="Write over files of other content.")
@verb
def export_verb(
    uri: str,
    space: str,
    tool: str,
    out: Path,
    slides: Sequence[str],
    view: int,
    cohort: Path | None,
    replace: bool,
) -> Outcome:
    """Write features as CLAM, TRIDENT, STAMP or torchmil read them.

    Rows are in raster order. A file is there only once it is whole; slides whose files are there are skipped.
    """
    from her2cache.interchange.exporting import ExportOptions, export_features
    from her2cache.store.reader import FeatureStore

    if tool == "torchmil" and cohort is None:
        raise ConfigError("torchmil's files hold a label a slide, and a store has none: give the cohort with --cohort")
    scores = {s.slide_id: s.her2_score for s in _slides_of(cohort) or () if s.her2_score is not None}
    store = FeatureStore.open(uri)
    options = ExportOptions(tool, out, view, scores, replace)
    with bar("exporting", "slides") as watch:
        exported = export_features(store, store.find_space(space), options, slides, watch)
    lines = _exported_lines(exported, out)
    extra = {}
    if tool == "torchmil":
        lines += _torchmil_lines(exported)
        extra["patch_size"] = {one.slide_id: one.patch_size for one in exported if one.patch_size is not None}
    return Outcome(
        items=[Item(one.slide_id, one.status, one.reason) for one in exported],
        outputs={"out": str(out)},
        extra=extra,
        summary=lines,
    )


def _slides_of(cohort: Path | None) -> Sequence[Slide] | None:
    from her2cache.cohort import read_cohort

    return None if cohort is None else read_cohort(cohort).slides


def _imported_lines(report: ImportReport, uri: str, *, known_slides: bool) -> list[str]:
    space = report.space
    if space is None:
        return ["nothing was imported"]
    done = [one for one in report.imported if one.status == "done"]
    skipped = sum(one.status == "skipped" for one in report.imported)
    patches = sum(one.patches for one in done)
    lines = [
        f"{count_of(len(done), 'slide')} imported, {patches:,} patches; {skipped:,} skipped",
        f"{escape(space.embedder.name)}, space {space.key[:12]} of {escape(uri)}: dim {space.embedder.dim},"
        f" {space.dtype}, patches of {space.patch.patch_px} px at {space.patch.mpp:g} um/px",
    ]
    noted = [(one.slide_id, note) for one in done for note in one.notes]
    lines += [f"[yellow]note[/] {escape(slide)}: {escape(note)}" for slide, note in noted[:_NOTES_SHOWN]]
    if len(noted) > _NOTES_SHOWN:
        lines.append(f"[yellow]note[/] and {len(noted) - _NOTES_SHOWN:,} more; all are in --json")
    if done and not known_slides:
        lines.append(
            "[yellow]note[/] no slide files are known: training works, scores and maps of slides do not; import again"
            " with --cohort and --replace where they are at hand"
        )
    return lines


def _exported_lines(exported: Sequence[Exported], out: Path) -> list[str]:
    done = [one for one in exported if one.status == "done"]
    skipped = sum(one.status == "skipped" for one in exported)
    patches = sum(one.patches for one in done)
    return [f"{count_of(len(done), 'slide')} written to {escape(str(out))}, {patches:,} patches; {skipped:,} skipped"]


def _torchmil_lines(exported: Sequence[Exported]) -> list[str]:
    """What torchmil's datasets must be told, for people."""
    from her2cache.interchange.torchmil import dist_thr

    found = {one.patch_level0_px: one for one in exported if one.patch_level0_px is not None}
    lines = [
        f"  patches of {side:g} level-0 px: WSIDataset(patch_size={_least(exported, side):.10g}),"
        f" ProcessedMILDataset(dist_thr={dist_thr(side):g})"
        for side in sorted(found)
    ]
    if len(found) > 1:
        lines.append("  slides differ in scale, so make one dataset for each of these sides (wsi_names, bag_names)")
    return lines


def _least(exported: Sequence[Exported], side: float) -> float:
    """The patch_size that fits all slides of a side."""
    return min(one.patch_size for one in exported if one.patch_size is not None and one.patch_level0_px == side)
