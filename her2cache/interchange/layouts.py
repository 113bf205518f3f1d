"""The tools whose files are read and written, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from her2cache.interchange import clam, stamp, torchmil, trident
from her2cache.interchange.files import Write
from her2cache.interchange.patches import Given, SlidePatches


@dataclass(frozen=True)
class Source:
    """A tool whose features can be imported.

    Attributes:
        dtype: that its files have, and a space for them unless told otherwise.
        files: feature files of a folder, given the name of the embedder; one a slide, named after it.
        read: what a file says of its slide.
        looks_like: where the files lie, for people.
    """

    dtype: str
    files: Callable[[Path, str], list[Path]]
    read: Callable[[Path, Given], SlidePatches]
    looks_like: str


Target = Callable[[Path, str, SlidePatches, str], dict[Path, Write]]
"""The files of a slide below a folder: (folder, slide_id, patches, name of the embedder) -> where and how."""

SOURCES = {
    "clam": Source("float32", clam.files, clam.read, "h5_files/S.h5, or pt_files/S.pt"),
    "trident": Source("float32", trident.files, trident.read, "20x_256px_0px_overlap/features_ENC/S.h5"),
    "stamp": Source("float16", stamp.files, stamp.read, "S.h5"),
}

TARGETS: dict[str, Target] = {
    "clam": clam.write,
    "trident": trident.write,
    "stamp": stamp.write,
    "torchmil": torchmil.write,
}
