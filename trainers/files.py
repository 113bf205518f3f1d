"""Files that a reader sees whole or not at all."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Generator[Path]:
    """A hidden name beside `path` to write to, which becomes `path` once everything is written.

    Whatever ends the writer before that leaves `path` as it was.
    """
    partial = path.with_name(f".{path.name}")
    yield partial
    partial.replace(path)
