"""What COHORT|SLIDE... on a command line means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from her2cache.cohort import Slide, read_cohort
from her2cache.errors import ConfigError
from her2cache.ids import encode_slide_id
from her2cache.remote import RemotePath, SlidePath, slide_path

TABLES = {".csv", ".parquet", ".pq"}


def slides_of(inputs: Sequence[str | Path], stain: str) -> list[Slide]:
    """Slides of one cohort table, or slide files named one by one.

    Args:
        inputs: one table, or slide files, which may lie in object storage (`s3://bucket/key`); a file's slide_id and
            case_id are its name without suffix.
        stain: "HE" or "IHC"; only a table's slides of that stain are taken.

    Raises:
        ConfigError: tables and slides are mixed, two files have one name, or no slide is left.
        CohortError: the table has faults, or a file's name cannot be a slide_id.
    """
    named = [slide_path(text) for text in inputs]
    table = named[0]
    if len(named) == 1 and table.suffix.lower() in TABLES:
        if isinstance(table, RemotePath):
            raise ConfigError(
                f"{table}: a cohort table is read from a disk; copy it here, where its column `path` may name slides in"
                " object storage"
            )
        slides = list(read_cohort(table).with_stain(stain).slides)
        if not slides:
            raise ConfigError(f"{table} has no slide of stain {stain}; choose the other with --stain HE|IHC")
        return slides
    tables = [str(path) for path in named if path.suffix.lower() in TABLES]
    if tables:
        raise ConfigError(f"{tables[0]} is a cohort table; give one table, or slide files, not both")
    by_id: dict[str, SlidePath] = {}
    for path in named:
        encode_slide_id(path.stem)
        other = by_id.setdefault(path.stem, path)
        if other != path:
            raise ConfigError(
                f"{other} and {path} would both be slide {path.stem!r}; list them in a cohort table, each with a"
                " slide_id"
            )
    return [Slide(slide_id, slide_id, path, stain) for slide_id, path in by_id.items()]
