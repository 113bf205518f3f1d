"""A space of a store, as the files that another tool reads: rows in raster order, whole files or none."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from her2cache.errors import ConfigError, Her2CacheError, StoreUnreachableError
from her2cache.interchange.files import publish
from her2cache.interchange.layouts import TARGETS
from her2cache.interchange.patches import SlidePatches, raster_order
from her2cache.interchange.torchmil import patch_size
from her2cache.store.reader import FeatureStore, SpaceInfo

_NO_FILE_NAME = re.compile(r"^\.|[/\\\x00-\x1f\x7f]")


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and where to.

    Attributes:
        tool: that shall read it, of `TARGETS`.
        out: folder that the files go below.
        view: of the features; 0 is the patches themselves.
        her2_scores: slide_id -> 0 to 3, for the tools that keep labels with the features.
        replace: whether files that are there with other content may go.
    """

    tool: str
    out: Path
    view: int = 0
    her2_scores: Mapping[str, int] | None = None
    replace: bool = False


@dataclass(frozen=True)
class Exported:
    """What became of a slide.

    Attributes:
        slide_id, status, reason: as in every verb.
        patches: exported.
        patch_level0_px: side of one, level-0 px; None where the slide failed.
        patch_size: that torchmil's WSIDataset must be told, level-0 px.
    """

    slide_id: str
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    patches: int = 0
    patch_level0_px: float | None = None
    patch_size: float | None = None


def export_features(
    store: FeatureStore,
    space: SpaceInfo,
    options: ExportOptions,
    slides: Sequence[str] = (),
    watch: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[Exported]:
    """Writes the files of some slides. One that fails does not stop the others.

    A slide whose files are there already with this content is skipped, so an export that was cut off goes on when it is
    run again. One slide at a time is held in memory.

    Args:
        store: to read.
        space: of the features.
        options: which tool's files, and where.
        slides: ids; all slides of the space by default.
        watch: called with slides done and slides in all.

    Raises:
        ConfigError: a slide is not in the space, or the space has no such view.
    """
    committed = store.slides(space)
    if lacking := sorted(set(slides) - set(committed)):
        raise ConfigError(f"{store.uri} has no features of {lacking[0]!r} in space {space.key[:12]}; correct --slide")
    if not 0 <= options.view < space.views:
        raise ConfigError(
            f"space {space.key[:12]} has views 0 to {space.views - 1}, not {options.view}; correct --view"
        )
    chosen = list(dict.fromkeys(slides)) or committed
    done: list[Exported] = []
    for k, slide_id in enumerate(chosen):
        watch(k, len(chosen))
        done.append(_export(store, space, options, slide_id))
    watch(len(chosen), len(chosen))
    return done


def stored_patches(store: FeatureStore, space: SpaceInfo, slide_id: str, view: int = 0) -> SlidePatches:
    """A committed slide, its rows in raster order.

    Raises:
        StoreError: it is not committed, or its bytes are not what was.
    """
    record = store.record(slide_id, space)
    coords = store.coords(slide_id, space)
    order = raster_order(coords)
    patch: dict[str, Any] = space.document["patch"]
    mpp, side = float(patch["mpp"]), int(patch["patch_px"])
    read = record.slide.get("read") or {}
    width, height = (record.slide.get(name) for name in ("width", "height"))
    return SlidePatches(
        features=np.asarray(store.features(slide_id, space, view))[order],
        coords=np.asarray(coords)[order],
        patch_level0_px=float(record.patch_level0_px),
        patch_px=side,
        mpp=mpp,
        slide_mpp=record.slide.get("mpp") or mpp * side / record.patch_level0_px,
        overlap_px=side - patch["stride_px"] if "stride_px" in patch else None,
        level=read.get("level", 0),
        downsample=read.get("downsample", 1.0),
        size=(width, height) if width and height else None,
    )


def _export(store: FeatureStore, space: SpaceInfo, options: ExportOptions, slide_id: str) -> Exported:
    try:
        if _NO_FILE_NAME.search(slide_id):
            raise ConfigError(
                f"slide_id {slide_id!r} can be no file name of {options.tool}'s (it has a separator, or begins with a"
                " dot): list the slide in the cohort table under another id and embed it again"
            )
        patches = stored_patches(store, space, slide_id, options.view)
        if options.her2_scores is not None:
            patches = replace(patches, her2_score=options.her2_scores.get(slide_id))
        files = TARGETS[options.tool](options.out, slide_id, patches, space.name)
        written = publish(files, replace=options.replace)
    except StoreUnreachableError:
        raise  # concerns every slide
    except Her2CacheError as error:
        return Exported(slide_id, "failed", str(error))
    return Exported(
        slide_id,
        "done" if written else "skipped",
        "" if written else "its files are there already, with this content",
        len(patches.coords),
        patches.patch_level0_px,
        patch_size(patches.coords, patches.patch_level0_px),
    )
