"""What tells a slide's content from another's: a digest of all the files it is made of."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from her2cache.dicom import series_of
from her2cache.errors import SlideError, SlideOpenError, StoreUnreachableError
from her2cache.remote import RemotePath, SlidePath

_HEAD_BYTES = 1 << 18


def file_identity(path: SlidePath) -> dict[str, Any]:
    """What tells a file's content from another's: bytes, mtime_ns, and the sha256 of it all, hex.

    A slide of several files (see `slide_files`) has the sums of their bytes and times (these modulo 2**63), and the
    sha256 of the lines `SHA256  NAME` of its files in order of their names, which are relative to the slide's folder.
    """
    if isinstance(path, RemotePath):
        return path.identity()
    files = slide_files(path)
    if len(files) == 1:
        digest = _sha256(path)
    else:
        folder = path.resolve().parent
        lines = [f"{_sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    size, time = _size_and_time(files)
    return {"bytes": size, "mtime_ns": time, "sha256": digest}


def file_changed(path: SlidePath, identity: Mapping[str, Any]) -> bool:
    """Whether a file is another than the one of that identity. The whole of it is read only when in doubt.

    A file that is not there, or not a file, has not changed; nor has one of which nothing is known, as of imported
    features.
    """
    if identity.get("bytes") is None or (found := state_of(path)) is None:
        return False
    size, time = found
    if size != identity["bytes"]:
        return True
    if time == identity.get("mtime_ns"):
        return False
    return file_identity(path)["sha256"] != identity["sha256"]


def require_unchanged(path: SlidePath, identity: Mapping[str, Any]) -> None:
    """Refuses a slide that is no longer what it was when its identity was taken.

    A slide in object storage was read from a copy, which nobody changes.

    Raises:
        SlideError: it is gone, or was written to.
    """
    if isinstance(path, RemotePath):
        return
    found = state_of(path)
    if found is None:
        raise SlideError(
            f"{path} disappeared while it was read: it was moved or deleted, or its storage went away; put it back and"
            " embed it again"
        )
    if found != (identity["bytes"], identity["mtime_ns"]):
        raise SlideError(f"{path} was written to while it was read; wait until it is copied whole, and embed it again")


def slide_files(path: Path) -> list[Path]:
    """The files that a slide is made of, sorted by name; most are made of one.

    MRXS: the file and all in the folder of its name. VMS and VMU: the file and those it names. DICOM: the files of the
    same series in its folder.
    """
    path = path.resolve()  # the others lie beside the file, not beside a link to it
    files = {path}
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        files |= {file for file in path.with_suffix("").rglob("*") if file.is_file()}
    elif suffix in {".vms", ".vmu"}:
        with path.open(encoding="latin-1") as file:
            names = [name.strip() for name in re.findall(r"=([^\r\n]+)", file.read(_HEAD_BYTES))]
        files |= {path.parent / name for name in names if "/" not in name and (path.parent / name).is_file()}
    elif series := series_of(path):
        files |= {file for file in path.parent.iterdir() if file.is_file() and series_of(file) == series}
    return sorted(files)


def state_of(path: SlidePath) -> tuple[int, int] | None:
    """A slide's bytes and time; None where there is no such file, or none that can be seen from here."""
    if isinstance(path, RemotePath):
        with suppress(SlideOpenError, StoreUnreachableError):
            state = path.state()
            return None if state is None else (state.bytes, state.mtime_ns)
        return None
    return _size_and_time(slide_files(path)) if path.is_file() else None


def _size_and_time(files: list[Path]) -> tuple[int, int]:
    found = [file.stat() for file in files]
    # each file's time counts, and the sum fits into 64 bits
    return sum(f.st_size for f in found), sum(f.st_mtime_ns for f in found) % 2**63


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
