"""Slide ids as file names: one id, one name, on every file system and in every object store."""

from __future__ import annotations

import re

from her2cache.errors import CohortError

MAX_NAME_BYTES = 200
"""Longest encoded id. File systems allow 255 bytes a name; the rest is left for suffixes."""

_UNSAFE = re.compile(rb"^\.|[^A-Za-z0-9._-]")


def encode_slide_id(slide_id: str) -> str:
    """Name of a slide in a store: letters, digits, `._-`, no leading dot, all else percent-encoded UTF-8.

    Args:
        slide_id: any text that is not empty.

    Returns:
        An ASCII name of at most `MAX_NAME_BYTES` bytes. Different ids have different names, and
        `decode_slide_id` gives the id back.

    Raises:
        CohortError: the id is empty, too long once encoded, or not valid Unicode.
    """
    if not slide_id:
        raise CohortError("a slide_id is empty: give every slide an id of its own")
    try:
        raw = slide_id.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CohortError(
            f"slide_id {slide_id!r} is not valid Unicode, probably a file name in an old encoding: rename it"
        ) from error
    name = _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], raw).decode("ascii")
    if len(name) > MAX_NAME_BYTES:
        raise CohortError(
            f"slide_id {slide_id[:40]!r}... takes {len(name)} bytes as a file name, more than "
            f"{MAX_NAME_BYTES} (characters other than letters, digits and ._- take 3 or more): shorten it"
        )
    return name


def decode_slide_id(name: str) -> str:
    """The slide id behind a name made by `encode_slide_id`.

    Args:
        name: a file or folder name in a store.

    Returns:
        The id, so that `encode_slide_id` of it is `name` again.

    Raises:
        CohortError: `encode_slide_id` never makes this name, so it is not ours.
    """
    raw = re.sub(rb"%([0-9A-F]{2})", lambda match: bytes.fromhex(match[1].decode()), name.encode("utf-8"))
    try:
        slide_id = raw.decode("utf-8")
        if encode_slide_id(slide_id) == name:
            return slide_id
    except (UnicodeDecodeError, CohortError):
        pass
    raise CohortError(f"{name!r} is not an encoded slide_id: the file was not written by her2cache; remove it")
