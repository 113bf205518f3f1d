"""Patches of a slide, cut once and kept on disk for every epoch of a pre-training.

What lies in the folder, for each slide:

    <slide_id>.<how>.patches    uint8 (n, px, px, 3), one after the other, a random sample in raster order
    <slide_id>.<how>.json       what they are; written last, so that patches without it count as none

`how` is a digest of the options: trainings on other cases, or with other options, may share the folder.

Training maps these files: memory does not grow with the number of patches.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from her2cache.cohort import Slide
from her2cache.embedder import canonical_json
from her2cache.errors import SlideError
from her2cache.ids import encode_slide_id
from her2cache.ingest import PatchBlock, ReadOptions, SlideSurvey, options_of, read_slide, selection_of
from her2cache.slide import file_changed
from her2cache.store.schema import row_order
from her2cache.units import PatchBatch


@dataclass(frozen=True)
class CutSlide:
    """Patches of one slide on disk.

    Attributes:
        slide_id, case_id: of the slide.
        label: its HER2 score.
        path: of the patches.
        n, px: how many they are, and their side.
        sha256: of the patches, hex.
    """

    slide_id: str
    case_id: str
    label: int
    path: Path
    n: int
    px: int
    sha256: str

    def open(self) -> PatchBatch:
        """The patches, mapped: read-only uint8 (n, px, px, 3).

        Raises:
            SlideError: the file is not there, or of another size.
        """
        try:
            if self.path.stat().st_size == self.n * self.px**2 * 3:
                return np.memmap(self.path, np.uint8, "r", shape=(self.n, self.px, self.px, 3))
            found = "has another size than its record says"
        except OSError as error:
            found = f"cannot be read ({error})"
        raise SlideError(f"{self.path} {found}: the cache was damaged; remove its folder and run the command again")


def cut_slide(slide: Slide, options: ReadOptions, most: int, folder: Path) -> CutSlide:
    """Cuts a random sample of a slide's patches, unless the folder has it already.

    Which patches are taken depends on the slide's id and their places alone, and the sample of a smaller `most` is a
    part of that of a larger one.

    Args:
        slide: with a score.
        options: how patches are cut.
        most: patches, at most.
        folder: of the cache.

    Raises:
        SlideError: the slide cannot be read, or not one of its patches can.
    """
    asked = _asked(slide, options, most)
    name = f"{encode_slide_id(slide.slide_id)}.{asked[:12]}"
    record, path = folder / f"{name}.json", folder / f"{name}.patches"
    there: dict[str, Any] | None = _read(record)
    if there is None or there.get("asked") != asked or file_changed(slide.path, there["file"]) or not path.exists():
        record.unlink(missing_ok=True)
        there = {**_cut(slide, options, most, path), "asked": asked}
        _write(record, there)
    if slide.her2_score is None:
        raise SlideError(f"slide {slide.slide_id} has no her2_score: fill it in, or leave the slide out")
    side = options.patch.patch_px
    return CutSlide(slide.slide_id, slide.case_id, slide.her2_score, path, there["n"], side, there["sha256"])


def _cut(slide: Slide, options: ReadOptions, most: int, path: Path) -> dict[str, Any]:
    """Writes the patches; returns what the record says of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    survey: SlideSurvey | None = None
    drawn = np.zeros(0, np.bool_)  # (planned,)
    n, digest = 0, hashlib.sha256()
    try:
        with partial.open("xb") as file:
            for item in read_slide(slide, options):
                if isinstance(item, SlideSurvey):
                    survey = item
                    drawn = np.zeros(len(item.coords), np.bool_)
                    drawn[row_order(slide.slide_id, item.coords)[:most]] = True
                elif isinstance(item, PatchBlock):
                    patches = item.patches[item.ok & drawn[item.start : item.start + len(item.ok)]]  # (k, px, px, 3)
                    n += len(patches)
                    digest.update(patches.data)
                    file.write(patches.data)
            file.flush()
            os.fsync(file.fileno())
        if not n or survey is None:
            raise SlideError(f"{slide.path}: none of the patches drawn from it can be decoded; look at the file")
        partial.replace(path)
    except OSError as error:
        raise SlideError(
            f"patches of {slide.path} cannot be kept in {path.parent} ({error}): the disk is full or not writable;"
            " name another --cache, or lower --max-patches"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    file_of = {key: survey.provenance[key] for key in ("bytes", "mtime_ns", "sha256")}
    return {"n": n, "px": options.patch.patch_px, "sha256": digest.hexdigest(), "file": file_of}


def _asked(slide: Slide, options: ReadOptions, most: int) -> str:
    """Digest of all that decides which patches are taken, but for the slide's file."""
    own = options_of(slide, options)
    document = {"patch": asdict(own.patch), "tissue": asdict(own.tissue), "most": most, "mpp": slide.mpp}
    return hashlib.sha256(canonical_json({**document, **selection_of(slide)}).encode()).hexdigest()


def _read(record: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"asked", "file", "n", "sha256"} <= found.keys() else None


def _write(record: Path, document: dict[str, Any]) -> None:
    partial = record.with_name(f".{record.name}.{uuid4().hex}")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(record)
