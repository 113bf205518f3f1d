"""A CSV or Parquet file as rows of text, each with its number and every fault of its shape.

CSV goes through the standard library rather than pyarrow: only so does every fault, a ragged row or an
open quote among them, have the line of the file it stands in, and no id such as `007` turns into a number.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from her2cache.errors import CohortError

_REMEDY = "save the table as comma-separated UTF-8 text or as Parquet"
_PROBE_BYTES = 4096
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a table.

    Attributes:
        row: 1-based number of the row, the header being row 1: in a CSV file the line (a row that spans
            several lines goes by its first), in Parquet the record's position plus 1. None when the fault
            is of the whole file.
        column: the column it stands in; None when the fault is of the whole row or file.
        message: what is wrong and how to mend it.
    """

    row: int | None
    column: str | None
    message: str

    def __str__(self) -> str:
        place = [f"row {self.row}"] if self.row is not None else []
        place += [self.column] if self.column is not None else []
        return ": ".join([*place, self.message])


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        header_row: the row number of the header.
        header: the names of the columns, as they stand in the file.
        rows: row number and stripped cells of each row that has as many cells as the header; blank rows
            are left out.
        faults: the rows that could not be taken apart.
    """

    header_row: int
    header: list[str]
    rows: list[tuple[int, list[str]]]
    faults: list[Fault]


def read_table(path: Path) -> Table:
    """Reads a CSV file (separated by commas, semicolons or tabs) or a Parquet file.

    Raises:
        CohortError: the file is missing, a folder, empty, or neither of the two.
    """
    try:
        with path.open("rb") as file:
            probe = file.read(_PROBE_BYTES)
            if probe.startswith(b"PAR1"):
                return _read_parquet(path)
            if not probe.strip():
                raise CohortError(f"{path} is empty: a cohort table has a header and one row a slide")
            if probe.startswith(b"PK"):
                raise CohortError(f"{path} is a workbook or an archive, not a table: {_REMEDY}")
            if b"\0" in probe:
                raise CohortError(f"{path} is binary or UTF-16, not a cohort table: {_REMEDY}")
            return _read_csv(path, probe + file.read())
    except FileNotFoundError:
        raise CohortError(f"{path} does not exist: check the path of the cohort table") from None
    except IsADirectoryError:
        raise CohortError(
            f"{path} is a folder, not a cohort table: `her2cache cohort scan {path} --out TABLE` makes one"
        ) from None
    except OSError as error:
        raise CohortError(f"{path} cannot be read ({error}): check its permissions") from error


def _read_csv(path: Path, content: bytes) -> Table:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CohortError(f"{path} is not UTF-8 text (first seen in line {line}): {_REMEDY}") from error
    head = text.lstrip().partition("\n")[0]
    delimiter = max(_DELIMITERS, key=head.count)
    # strict: an open or stray quote is an error, not a field that swallows the rest of the file
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header_row, header = 0, list[str]()
    rows = list[tuple[int, list[str]]]()
    faults = list[Fault]()
    while True:
        row = reader.line_num + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            break
        except csv.Error as error:
            faults.append(Fault(row, None, f"the row cannot be taken apart ({error}): check its quotes"))
            continue
        if not any(cells):
            continue
        if not header:
            header_row, header = row, cells
        elif len(cells) != len(header):
            message = f"the row has {len(cells)} fields, the header {len(header)}: a separator or a quote is amiss"
            faults.append(Fault(row, None, message))
        else:
            rows.append((row, cells))
    if not header:
        raise CohortError(f"{path} has no header that can be read: {_REMEDY}")
    return Table(header_row, header, rows, faults)


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise CohortError(f"{path} is a damaged Parquet file ({error}): write it again") from error
    columns = [[_as_text(value) for value in column.to_pylist()] for column in table.columns]
    records = enumerate(zip(*columns, strict=True), start=2)
    rows = [(row, list(cells)) for row, cells in records if any(cells)]
    return Table(1, list(table.column_names), rows, [])


def _as_text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas writes NaN for an empty cell
        return ""
    return str(value).strip()
