"""`her2cache cohort`: check a cohort table, or build one from a folder of slides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from cluster.cli.output import Item, Outcome
from cluster.cli.verb import verb
from her2cache.errors import CohortError, ConfigError

if TYPE_CHECKING:
    from her2cache.cohort import Slide
    from her2cache.scan import Scan

_FINDINGS_SHOWN = 10


@click.group()
def cohort() -> None:
    """Check a cohort table, or build one from a folder of slides."""


@cohort.command()
@click.argument("table", type=click.Path(path_type=Path))
@verb
def check(table: Path) -> Outcome:
    """Report every fault of the cohort TABLE (CSV or Parquet), each with its row.

    Columns: slide_id (or slide), case_id (patient), path (filename, wsi), stain (HE or IHC), her2_score
    (label; 0 to 3, or empty), and if you like split (train, test) and mpp (um/px). The header is row 1.
    """
    from her2cache.cohort import check_cohort, read_cohort

    faults = check_cohort(table)
    if faults and faults[0].row is None:
        raise CohortError(faults[0].message)
    if faults:
        items = [
            Item(f"{table}:{fault.row}", "failed", ": ".join(filter(None, (fault.column, fault.message))))
            for fault in faults
        ]
        return Outcome(items, extra={"faults": [vars(fault) for fault in faults]})
    slides = read_cohort(table).slides
    counts = _counts(slides)
    items = [Item(slide.slide_id, "done") for slide in slides]
    return Outcome(items, extra=counts, summary=[Text(f"{table}: no fault"), _sentence(counts)])


@cohort.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Table to write: .csv or .parquet.")
@click.option(
    "--pattern",
    metavar="TEMPLATE",
    help="Names of the slides, such as '{case_id}_{stain}.svs' or '{her2_score}/{case_id}_*'. Fields: slide_id, "
    "case_id, stain, her2_score, split; * is any text; with a / it is the path below FOLDER. "
    "Default: every slide file is a case of its own.",
)
@click.option("--layout", type=click.Choice(["her2contest"]), help="A layout that is known, in place of a pattern.")
@click.option(
    "--stain",
    type=click.Choice(["HE", "IHC"]),
    default="HE",
    show_default=True,
    help="Stain of all slides when the pattern does not say it.",
)
@click.option("--replace", is_flag=True, help="Write over an existing table.")
@verb
def scan(folder: Path, out: Path, pattern: str | None, layout: str | None, stain: str, replace: bool) -> Outcome:
    """Build a cohort table from the slides in FOLDER and the folders in it."""
    from her2cache.cohort import write_cohort
    from her2cache.contest import scan_her2contest
    from her2cache.scan import ANY_NAME, scan_folder

    if pattern and layout:
        raise ConfigError(f"--pattern and --layout {layout} exclude each other: give one of them")
    if out.exists() and not replace:
        raise ConfigError(f"{out} exists and may have been filled in by hand: give --replace or another --out")
    found = scan_her2contest(folder) if layout else scan_folder(folder, pattern or ANY_NAME, stain=stain)
    write_cohort(found.slides, out)
    counts = _counts(found.slides)
    return Outcome(
        [*(Item(slide.slide_id, "done") for slide in found.slides), *_items(found)],
        outputs={"cohort": str(out)},
        extra=counts,
        summary=[*_notes(found), Text(f"wrote {out}"), _sentence(counts)],
    )


def _items(found: Scan) -> list[Item]:
    return [Item(f.name, "failed" if f.slide_lost else "skipped", f.reason) for f in found.findings]


def _notes(found: Scan) -> list[Text]:
    """The first findings that are no failure; failures are printed as items."""
    notes = [finding for finding in found.findings if not finding.slide_lost]
    lines = [Text(f"skipped {note.name}: {note.reason}", style="dim") for note in notes[:_FINDINGS_SHOWN]]
    if len(notes) > _FINDINGS_SHOWN:
        lines.append(Text(f"... and {len(notes) - _FINDINGS_SHOWN} more (--json lists all)", style="dim"))
    return lines


def _counts(slides: tuple[Slide, ...]) -> dict[str, Any]:
    """What is in a cohort; scores are counted over cases, the unit of every split."""
    score_of = {slide.case_id: slide.her2_score for slide in slides if slide.her2_score is not None}
    cases = {slide.case_id for slide in slides}
    by_score = {str(score): n for score, n in sorted(Counter(score_of.values()).items())}
    return {
        "slides": dict(sorted(Counter(slide.stain for slide in slides).items())),
        "cases": len(cases),
        "cases_by_score": by_score | {"unknown": len(cases) - len(score_of)},
        "slides_with_split": sum(slide.split is not None for slide in slides),
    }


def _sentence(counts: dict[str, Any]) -> Text:
    slides = ", ".join(f"{n} {stain}" for stain, n in counts["slides"].items())
    scores = ", ".join(f"{score}: {n}" for score, n in counts["cases_by_score"].items())
    split = counts["slides_with_split"]
    return Text(f"slides {slides}; cases {counts['cases']} (by score {scores}); slides with a split {split}")
