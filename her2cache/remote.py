"""Slide files in object storage, named as a cohort names them: `s3://bucket/path/slide.svs`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from her2cache.errors import CohortError, ConfigError, SlideOpenError
from her2cache.store.copies import ObjectState, copied, look_up
from her2cache.store.objects import is_remote, normal_uri, split_uri

_OF_SEVERAL_FILES = {".mrxs", ".vms", ".vmu", ".dcm"}


@dataclass(frozen=True)
class LocalCopy:
    """What was staged of a slide.

    Attributes:
        path: of the copy.
        identity: of this content, see `identity.file_identity`.
    """

    path: Path
    identity: dict[str, Any]


@dataclass(frozen=True, order=True)
class RemotePath:
    """A slide file in object storage. Of a `Path` it has what is asked of a slide's.

    Attributes:
        uri: `s3://bucket/key`.
    """

    uri: str

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        return PurePosixPath(split_uri(self.uri)[1]).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def absolute(self) -> Self:
        return self

    def resolve(self) -> Self:
        return self

    def exists(self) -> bool:
        """Whether there is such an object; so for `is_file`.

        Raises:
            SlideOpenError: the bucket cannot be used.
        """
        return self.state() is not None

    def is_file(self) -> bool:
        return self.exists()

    def state(self) -> ObjectState | None:
        """What is known of the object without reading it; None where there is none. One request, two where it fails.

        Raises:
            SlideOpenError: the bucket cannot be used.
        """
        return look_up(self.uri)

    def identity(self) -> dict[str, Any]:
        """See `identity.file_identity`; the object is staged for it, unless it already is.

        Raises:
            SlideOpenError: it cannot be staged.
        """
        with self.local() as copy:
            return copy.identity

    @contextmanager
    def local(self) -> Generator[LocalCopy]:
        """A copy in the node's cache, which stays for as long as the context is open.

        Raises:
            SlideOpenError: it cannot be staged, or the slide is of several files.
        """
        if self.suffix.lower() in _OF_SEVERAL_FILES:
            raise SlideOpenError(
                f"{self.uri} is a slide of several files, and only slides of one file are read from object storage;"
                " copy it to a disk with all its files, and name it there"
            )
        with copied(self.uri) as (path, state, sha256):
            yield LocalCopy(path, {"bytes": state.bytes, "mtime_ns": state.mtime_ns, "sha256": sha256})


SlidePath = Path | RemotePath
"""Where a slide file is: on a file system, or in object storage."""


def slide_path(text: str | Path, folder: Path | None = None) -> SlidePath:
    """A slide's path by its text.

    Args:
        text: a path, or `s3://bucket/key`.
        folder: where a relative path begins; it is kept relative without one.

    Raises:
        CohortError: the text is no URI of an object.
    """
    if not is_remote(text):
        return Path(text) if folder is None else (folder / text).absolute()
    try:
        uri = normal_uri(text)
        if not split_uri(uri)[1]:
            raise CohortError(f"{uri} is a bucket, not a slide file; name the object in it")
    except ConfigError as error:
        raise CohortError(str(error)) from None
    return RemotePath(uri)
