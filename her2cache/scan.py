"""A cohort from a folder of slides, by a template of their names.

A template is a file name with fields in braces: `{slide_id}`, `{case_id}`, `{stain}`, `{her2_score}` and
`{split}`, each read as in the cohort table; `*` stands for any text within a name. A field named twice must
stand twice alike; of two fields side by side the first takes as little as it can. A template that ends in
a slide suffix takes files of that suffix only, any other takes every slide suffix. A template with a `/` is
held against the path below the folder, any other against the bare name, in whatever folder the file lies.

    {case_id}_{stain}            P07_HE.svs, more/P07_IHC.tif
    {case_id}/*_{stain}.ndpi     P07/block-2_HE.ndpi
    {her2_score}/{case_id}       2+/P07.svs

Files and folders whose names start with a dot are passed over.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from her2cache.cells import parse_cell
from her2cache.cohort import Slide
from her2cache.dicom import series_of
from her2cache.errors import CohortError
from her2cache.ids import encode_slide_id

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".mrxs", ".bif", ".vms", ".dcm")
ANY_NAME = "*"
"""The template that every slide file fits."""

_FIELDS = {
    "slide_id": r"[^/]+?",
    "case_id": r"[^/]+?",
    "stain": r"he|h&e|ihc|her2",
    "her2_score": r"[0-3]\+?",
    "split": r"train|test",
}
Found = tuple[PurePosixPath, dict[str, str]]
"""A slide below the scanned folder, and the cells of its row that are known."""


@dataclass(frozen=True)
class Finding:
    """Something in a scanned folder that a person should know of.

    Attributes:
        name: a file below the folder, or a case.
        reason: what is amiss.
        slide_lost: whether a slide is missing from the cohort for it, though it fits.
    """

    name: str
    reason: str
    slide_lost: bool = False


@dataclass(frozen=True)
class Scan:
    """What was found in a folder: the slides, sorted by path, and everything else."""

    slides: tuple[Slide, ...]
    findings: tuple[Finding, ...]


def scan_folder(folder: Path, template: str = ANY_NAME, *, stain: str = "HE") -> Scan:
    """Finds the slides below a folder by a template of their names (see the module's text).

    What the template does not name is filled in: the slide_id is the file's name without suffix (with its
    folders before it where several files share a name), the case_id is the slide_id, score and split stay
    empty.

    Args:
        folder: searched with all folders in it.
        template: of the names.
        stain: "HE" or "IHC", for every slide when the template has no `{stain}`.

    Raises:
        CohortError: the folder does not exist, the template is malformed, or no file fits it.
    """
    suffix = PurePosixPath(template).suffix.lower()
    suffixes = (suffix,) if suffix in SLIDE_SUFFIXES else SLIDE_SUFFIXES
    pattern = _compile(template.removesuffix(PurePosixPath(template).suffix) if suffix in suffixes else template)
    other = f"is no {suffix} file" if len(suffixes) == 1 else "is no slide by its suffix"
    found = list[Found]()
    findings = list[Finding]()
    series: dict[tuple[PurePosixPath, bytes | None], PurePosixPath] = {}
    for name in list_files(folder):
        text = str(name.with_suffix("")) if "/" in template else name.stem
        match = pattern.fullmatch(text) if name.suffix.lower() in suffixes else None
        own = series_of(folder / name) if match and name.suffix.lower() == ".dcm" else None
        first = series.setdefault((name.parent, own), name)
        if match and own is not None and first != name:
            findings.append(Finding(str(name), f"is of the same slide as {first}"))
        elif match:
            found.append((name, {"stain": stain} | match.groupdict()))
        else:
            fits = name.suffix.lower() in suffixes
            findings.append(Finding(str(name), f"does not fit {template}" if fits else other))
    return assemble(folder, found, findings, f"the template {template}")


def _compile(template: str) -> re.Pattern[str]:
    """The regular expression of a template without suffix; a field's second use refers to its first."""
    seen = set[str]()
    parts = list[str]()
    for part in re.split(r"(\{[^{}]*\}|\*)", template):
        field = part[1:-1] if part.startswith("{") and part.endswith("}") else None
        if part == "*":
            parts.append("[^/]*")
        elif field is None:
            if "{" in part or "}" in part:
                raise CohortError(f"template {template!r} has a brace without its partner: write {{case_id}}")
            parts.append(re.escape(part))
        elif field not in _FIELDS:
            known = ", ".join(f"{{{name}}}" for name in _FIELDS)
            raise CohortError(f"template {template!r} names an unknown field {part}: there are {known}")
        else:
            parts.append(f"(?P={field})" if field in seen else f"(?P<{field}>{_FIELDS[field]})")
            seen.add(field)
    return re.compile("".join(parts), re.IGNORECASE)


def list_files(folder: Path) -> Iterator[PurePosixPath]:
    """Every file below a folder, relative to it, sorted."""
    if not folder.is_dir():
        raise CohortError(f"{folder} is no folder: name the folder that holds the slides")
    names = list[PurePosixPath]()
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = PurePosixPath(Path(root).relative_to(folder).as_posix())
        names += [below / name for name in files if not name.startswith(".")]
    yield from sorted(names)


def assemble(folder: Path, found: list[Found], findings: list[Finding], shape: str) -> Scan:
    """Fills in what rows lack and drops those that cannot stand in a cohort.

    Args:
        folder: the scanned folder.
        found: the slides and their cells.
        findings: what was seen so far; findings of this function come first in the result.
        shape: what a slide had to fit, in words.

    Raises:
        CohortError: nothing was found.
    """
    if not found:
        first = f", the first {findings[0].name}, which {findings[0].reason}" if findings else ""
        raise CohortError(
            f"no slide below {folder} fits {shape} ({len(findings)} other files{first}): "
            "check the folder, or give a --pattern such as '{case_id}_{stain}'"
        )
    shared = Counter(name.stem.lower() for name, _ in found)
    taken = dict[str, PurePosixPath]()
    slides = list[Slide]()
    lost = list[Finding]()
    for name, cells in found:
        unique = shared[name.stem.lower()] == 1
        default_id = name.stem if unique else "_".join(name.with_suffix("").parts)
        try:
            slide = _slide((folder / name).absolute(), cells, default_id)
        except CohortError as error:
            lost.append(Finding(str(name), str(error), slide_lost=True))
            continue
        other = taken.setdefault(encode_slide_id(slide.slide_id).lower(), name)
        if other is name:
            slides.append(slide)
        else:
            reason = f"would have the slide_id of {other}: rename it, or name more of it in the --pattern"
            lost.append(Finding(str(name), reason, slide_lost=True))
    return Scan(tuple(slides), (*lost, *findings))


def _slide(path: Path, cells: dict[str, str], default_id: str) -> Slide:
    slide_id = cells.get("slide_id", default_id)
    row = {"case_id": slide_id} | cells | {"slide_id": slide_id, "path": str(path)}
    values: dict[str, Any] = {column: parse_cell(column, cell.strip()) for column, cell in row.items()}
    values["path"] = path
    return Slide(**values)
