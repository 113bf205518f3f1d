"""What is known of a slide apart from the features that another tool made of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from her2cache.cohort import Slide
from her2cache.errors import SlideError
from her2cache.interchange.patches import SlidePatches
from her2cache.pyramid import ReadPlan
from her2cache.slide import file_identity, open_slide, resolve_mpp

_UNKNOWN_FILE: dict[str, Any] = {"path": "", "bytes": None, "mtime_ns": None, "sha256": None, "reader": None}


@dataclass(frozen=True)
class SlideFile:
    """What is known of a slide apart from its features.

    Attributes:
        record: for `CommitRecord.slide`, without scale and size where these are not known.
        mpp: of level 0, um/px.
        size: (width, height) of level 0, px.
        notes: what is not known, and why.
    """

    record: dict[str, Any]
    mpp: float | None = None
    size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


def find_slide_file(slide: Slide | None) -> SlideFile:
    """What the cohort and the slide's file say; what is wrong with them is noted, for features need neither."""
    if slide is None:
        return SlideFile(dict(_UNKNOWN_FILE))
    record: dict[str, Any] = {**_UNKNOWN_FILE, "path": str(slide.path.resolve())}
    mpp, size, notes = slide.mpp, None, list[str]()
    if mpp is not None:
        record["mpp_source"] = "cohort"
    try:
        with open_slide(slide.path) as reader:
            size = reader.size
            record["reader"] = reader.reader
            mpp, record["mpp_source"] = resolve_mpp(reader, slide.mpp)
    except SlideError as error:
        notes.append(str(error))
    if slide.path.is_file():
        record |= file_identity(slide.path)
    return SlideFile(record, mpp, size, tuple(notes))


def provenance(patches: SlidePatches, about: SlideFile, tool: str, path: Path) -> dict[str, Any]:
    """What the commit record says of the slide. Where the slide's own scale is not known, it is what the sizes of the
    patches imply."""
    width, height = patches.size or (None, None)
    read = ReadPlan(
        level=patches.level,
        downsample=patches.downsample,
        level_mpp=patches.slide_mpp * patches.downsample,
        factor=patches.patch_level0_px / patches.downsample / patches.patch_px,
        snapped=False,
    )
    return {
        **about.record,
        "width": width,
        "height": height,
        "mpp": patches.slide_mpp,
        "mpp_source": about.record.get("mpp_source", "sizes of its patches"),
        "read": asdict(read),
        "imported": {"tool": tool, "file": str(path.resolve()), **file_identity(path)},
    }
