"""Gzip files, unpacked once."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast
from uuid import uuid4

from her2cache.errors import ConfigError


def unpacked(packed: Path, cache: Path | None, verify: Callable[[Path, str], None]) -> Path:
    """The contents of a gzip file as a file on disk, written as a stream where it is not there yet.

    Args:
        packed: ends in .gz.
        cache: folder for what is unpacked, under a name that changes with the file; None: beside it, less `.gz`.
        verify: called with what was unpacked, before it has its name, and the MD5 of the packed file, hex.

    Raises:
        ConfigError: the file is truncated or damaged, or there is no room.
        Whatever `verify` raises; nothing is left then.
    """
    whole = packed.with_suffix("") if cache is None else cache / _key(packed) / packed.stem
    if whole.is_file():
        return whole
    partial = whole.with_name(f".{whole.name}.{uuid4().hex}")
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        with packed.open("rb") as file, partial.open("xb") as out:
            source = _Digested(file)
            try:
                with gzip.open(cast(IO[bytes], source)) as stream:
                    shutil.copyfileobj(stream, out, 1 << 20)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ConfigError(
                    f"{packed} cannot be unpacked ({error}): it is truncated or damaged; download it anew"
                ) from error
            out.flush()
            os.fsync(out.fileno())
        verify(partial, source.md5.hexdigest())
        partial.replace(whole)
    except OSError as error:
        raise ConfigError(
            f"{packed} cannot be unpacked to {whole.parent} ({error}): the disk is full or not writable; free some"
            " space, or name another folder for it"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return whole


def _key(packed: Path) -> str:
    """Of one state of one file."""
    at = packed.stat()
    return hashlib.sha256(f"{packed.resolve()}\0{at.st_size}\0{at.st_mtime_ns}".encode()).hexdigest()[:16]


class _Digested:
    """A file, the MD5 of whatever was read of it on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.md5 = hashlib.md5(usedforsecurity=False)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.md5.update(data)
        return data
