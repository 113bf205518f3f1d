"""The cohort table: which slides there are, whose they are and what is known of them.

One row a slide, in CSV or Parquet:

| column | also understood | value |
|---|---|---|
| `slide_id` | `slide` | any text, unique in the table |
| `case_id` | `patient` | any text; slides of one case share it |
| `path` | `filename`, `wsi` | the slide file; a relative path starts at the table's folder |
| `stain` | | `HE` (also `H&E`) or `IHC` (also `HER2`) |
| `her2_score` | `label` | `0`, `1`, `2`, `3` (also `1+`, `1.0`), or empty when unknown |
| `split` | | optional: `train`, `test` or empty |
| `mpp` | | optional: um/px of the finest level where the file does not say it, or empty |
| `regions` | `roi`, `annotations` | optional: GeoJSON of the regions to take patches from, level-0 px; paths as above |
| `ish` | | optional: result of in situ hybridisation, `+` or `-`, which parts the 2+ for the task her2-low |
| `min_tissue`, `hue_min` ... | | optional: another threshold for this slide (all names: `cells.LIMITS`), or empty |

Names and words are read without regard to case; other columns are ignored.
"""

from __future__ import annotations

import csv
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from her2cache.cells import LIMITS, parse_cell
from her2cache.errors import CohortError, SlideOpenError
from her2cache.ids import encode_slide_id
from her2cache.remote import RemotePath, SlidePath, slide_path
from her2cache.table import Fault, Table, read_table

COLUMNS = ("slide_id", "case_id", "path", "stain", "her2_score", "split", "mpp")
OPTIONAL = ("regions", "ish", *LIMITS)
"""Columns that a table is written with only where a slide fills them."""
REQUIRED = COLUMNS[:5]
ALIASES = {
    "slide_id": ("slide",),
    "case_id": ("patient",),
    "path": ("filename", "wsi"),
    "her2_score": ("label",),
    "regions": ("roi", "annotations"),
}
_FAULTS_SHOWN = 10


@dataclass(frozen=True)
class Slide:
    """One row of a cohort.

    Attributes:
        slide_id: unique in the cohort.
        case_id: the patient or block; the unit of every split.
        path: the slide file, absolute, or its place in object storage.
        stain: "HE" or "IHC".
        her2_score: 0 to 3 for 0, 1+, 2+, 3+; None when unknown.
        split: "train", "test" or None.
        mpp: um/px of level 0 where the file's own is missing or wrong; None to trust the file.
        regions: GeoJSON file of the regions that patches are taken from, absolute; None for the whole slide.
        ish: whether in situ hybridisation found the gene amplified; None when it was not done.
        thresholds: names and values of the thresholds that are others for this slide, see `cells.LIMITS`.
    """

    slide_id: str
    case_id: str
    path: SlidePath
    stain: str
    her2_score: int | None = None
    split: str | None = None
    mpp: float | None = None
    regions: Path | None = None
    thresholds: tuple[tuple[str, float], ...] = ()
    ish: bool | None = None


@dataclass(frozen=True)
class Cohort:
    """The slides of a table, in its order, free of contradictions."""

    slides: tuple[Slide, ...]
    source: Path

    def with_stain(self, stain: str) -> Cohort:
        """The slides of one stain, "HE" or "IHC"; there may be none."""
        return replace(self, slides=tuple(slide for slide in self.slides if slide.stain == stain))


def read_cohort(path: str | Path, *, check_files: bool = False) -> Cohort:
    """Reads a cohort table.

    Args:
        path: a CSV or Parquet file.
        check_files: whether a slide file that is missing, empty or a folder is a fault of the table.

    Raises:
        CohortError: the table cannot be read or has faults; the message lists the first ten.
    """
    path = Path(path)
    table = read_table(path)
    slides, faults = _examine(table, path.absolute().parent, check_files=check_files)
    if faults:
        raise CohortError(_summary(path, faults))
    return Cohort(tuple(slides), path)


def check_cohort(path: str | Path) -> list[Fault]:
    """Every fault of a cohort table, its slide files included, in the order of its rows.

    A file that cannot be read as a table gives one fault without row and column.
    """
    path = Path(path)
    try:
        table = read_table(path)
    except CohortError as error:
        return [Fault(None, None, str(error))]
    return _examine(table, path.absolute().parent, check_files=True)[1]


def write_cohort(slides: Iterable[Slide], path: Path) -> None:
    """Writes a cohort table that `read_cohort` reads back as it was.

    Args:
        slides: the rows; paths below the table's folder are written relative to it, so that the folder
            can be moved, all others absolute.
        path: Parquet when it ends in `.parquet`, else CSV; replaced at once when it exists.

    Raises:
        CohortError: the slides contradict each other or hold what no table can, or the file cannot be
            written.
    """
    folder = path.absolute().parent
    given = [_absolute(slide) for slide in slides]
    records = [_record(slide, folder) for slide in given]
    columns = [*COLUMNS, *(name for name in OPTIONAL if any(record[name] is not None for record in records))]
    cells = [[_cell(record[name]) for name in columns] for record in records]
    read_back, faults = _examine(Table(1, columns, list(enumerate(cells, 2)), []), folder)
    if faults:
        raise CohortError(_summary(path, faults))
    for slide, copy in zip(given, read_back, strict=True):
        if slide != copy:
            raise CohortError(f"{slide} would be read back as {copy}: remove blanks around ids and paths")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            _write_parquet(records, columns, part)
        else:
            _write_csv([columns, *cells], part)
        part.replace(path)
    except OSError as error:
        raise CohortError(f"{path} cannot be written ({error}): choose another place") from error
    finally:
        with suppress(OSError):
            part.unlink()


def _absolute(slide: Slide) -> Slide:
    regions = None if slide.regions is None else slide.regions.absolute()
    return replace(slide, path=slide.path.absolute(), regions=regions)


def _record(slide: Slide, folder: Path) -> dict[str, Any]:
    """The row of a slide, a value for each column."""
    regions = None if slide.regions is None else _portable(slide.regions, folder)
    paths = {"path": _portable(slide.path, folder), "regions": regions}
    ish = {True: "+", False: "-", None: None}[slide.ish]
    return asdict(slide) | dict.fromkeys(LIMITS) | dict(slide.thresholds) | paths | {"ish": ish}


def _portable(path: SlidePath, folder: Path) -> str:
    if isinstance(path, RemotePath):
        return str(path)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _cell(value: object) -> str:
    return "" if value is None else str(value).strip()


def _write_csv(rows: list[list[str]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _write_parquet(records: list[dict[str, Any]], columns: list[str], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"her2_score": pa.int8(), **dict.fromkeys(("mpp", *LIMITS), pa.float64())}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in columns])
    pq.write_table(pa.Table.from_pylist(records, schema), path)


def _summary(path: Path, faults: list[Fault]) -> str:
    shown = "; ".join(str(fault) for fault in faults[:_FAULTS_SHOWN])
    more = f"; and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return f"{path} has {count} (`her2cache cohort check` looks for all): {shown}{more}"


@dataclass(frozen=True)
class _Row:
    """The valid cells of a row; contradictions are looked for even where another cell is at fault."""

    number: int
    values: dict[str, Any]

    def slide(self) -> Slide:
        """The slide; a threshold that is as for all others is not listed."""
        thresholds = tuple((name, self.values[name]) for name in LIMITS if self.values.get(name) is not None)
        rest = {name: value for name, value in self.values.items() if name not in LIMITS}
        return Slide(**rest, thresholds=thresholds)


def _examine(table: Table, folder: Path, *, check_files: bool = False) -> tuple[list[Slide], list[Fault]]:
    """The slides of a table (none when it has faults) and its faults, sorted by row."""
    positions, faults = _columns(table)
    faults += table.faults
    if not table.rows and not table.faults:
        faults.append(Fault(table.header_row, None, "there is no slide below the header: add a row a slide"))
    rows = list[_Row]()
    for number, cells in table.rows:
        values = dict[str, Any]()
        for column, position in positions.items():
            try:
                values[column] = parse_cell(column, cells[position])
            except CohortError as error:
                faults.append(Fault(number, column, str(error)))
        for column, place in (("path", slide_path), ("regions", _below)):
            if values.get(column) is not None:
                try:
                    values[column] = place(values[column], folder)
                    if check_files and (message := _file_fault(values[column])):
                        faults.append(Fault(number, column, message))
                except CohortError as error:
                    faults.append(Fault(number, column, str(error)))
        rows.append(_Row(number, values))
    faults += [*_repeated_ids(rows), *_repeated_files(rows)]
    for column in ("her2_score", "ish", "split"):
        faults += _contradictions(rows, column)
    order = {name: position for position, name in enumerate((*COLUMNS, *OPTIONAL))}
    faults.sort(key=lambda fault: (fault.row or 0, order.get(fault.column or "", -1)))
    return ([] if faults else [row.slide() for row in rows]), faults


def _columns(table: Table) -> tuple[dict[str, int], list[Fault]]:
    """Where each column of ours stands in the table."""
    names = {alias: name for name in (*COLUMNS, *OPTIONAL) for alias in (name, *ALIASES.get(name, ()))}
    positions = dict[str, int]()
    faults = list[Fault]()
    for position, title in enumerate(table.header):
        name = names.get(re.sub(r"[\s-]+", "_", title).casefold())
        if name is None:
            continue
        if name in positions:
            message = f"{table.header[positions[name]]!r} and {title!r} both mean {name}: remove or rename one"
            faults.append(Fault(table.header_row, name, message))
        positions.setdefault(name, position)
    for name in REQUIRED:
        if name not in positions:
            understood = f" (or {' or '.join(ALIASES[name])})" if name in ALIASES else ""
            found = ", ".join(table.header)[:200]
            message = f"there is no column {name}{understood}, only {found}: add it"
            faults.append(Fault(table.header_row, name, message))
    return positions, faults


def _below(text: str, folder: Path) -> Path:
    return (folder / text).absolute()


def _file_fault(path: SlidePath) -> str | None:
    if isinstance(path, RemotePath):
        return _object_fault(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} does not exist: relative paths start at the table's folder"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}): check its permissions"
    if stat.S_ISDIR(status.st_mode):
        return f"{path} is a folder: name the slide file in it"
    return None if status.st_size else f"{path} is an empty file: copy the slide again"


def _object_fault(path: RemotePath) -> str | None:
    try:
        state = path.state()
    except SlideOpenError as error:
        return str(error)
    if state is None:
        return f"{path} does not exist: correct the path, or look into the bucket"
    return None if state.bytes else f"{path} is an empty object: copy the slide again"


def _repeated_ids(rows: list[_Row]) -> Iterator[Fault]:
    # case is folded because a store may be copied to a file system that does not tell A.json from a.json
    first = dict[str, _Row]()
    for row in rows:
        slide_id = row.values.get("slide_id")
        if slide_id is None:
            continue
        other = first.setdefault(encode_slide_id(slide_id).lower(), row)
        if other is not row:
            known = other.values["slide_id"]
            how = "stands already" if known == slide_id else f"differs only in case from {known!r}"
            message = f"{slide_id!r} {how} in row {other.number}: give every slide an id of its own"
            yield Fault(row.number, "slide_id", message)


def _repeated_files(rows: list[_Row]) -> Iterator[Fault]:
    first = dict[str, _Row]()
    for row in rows:
        if "path" not in row.values:
            continue
        other = first.setdefault(_real(row.values["path"]), row)
        if other is not row and other.values.get("slide_id") != row.values.get("slide_id"):
            message = f"{row.values['path']} is also the slide of row {other.number}: remove one of the rows"
            yield Fault(row.number, "path", message)


def _real(path: SlidePath) -> str:
    return str(path) if isinstance(path, RemotePath) else os.path.realpath(path)


def _contradictions(rows: list[_Row], column: str) -> Iterator[Fault]:
    """Rows that say of their case what an earlier row of it does not."""
    first = dict[str, _Row]()
    for row in rows:
        case_id, value = row.values.get("case_id"), row.values.get(column)
        if case_id is None or value is None:
            continue
        other = first.setdefault(case_id, row)
        if (known := other.values[column]) != value:
            one = {"split": "belongs to one split", "her2_score": "has one score", "ish": "has one result"}[column]
            message = f"case {case_id!r} is {value} here but {known} in row {other.number}: a case {one}"
            yield Fault(row.number, column, message)
