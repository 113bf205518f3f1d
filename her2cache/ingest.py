"""One slide in three functions: survey and read its blocks, embed a block, write the slide.

The cluster runs each in an actor of its own; run one after the other they are the whole of `embed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2cache.cohort import Slide
from her2cache.embedder import Augmentation, Embedder
from her2cache.errors import EmbedderError
from her2cache.pyramid import ReadPlan, plan_read
from her2cache.slide import MppSource, SlideReader, file_identity, open_slide, require_readable, resolve_mpp
from her2cache.tiling import PatchPlan, PatchSpec, plan_patches, read_bands
from her2cache.tissue import TissueMask, TissueSettings, find_tissue
from her2cache.units import Coords, PatchBatch

TISSUE_MPP = 8.0
"""Scale of the picture in which tissue is looked for, um/px: six pixels along a patch of 96 px at 0.5."""


@dataclass(frozen=True)
class ReadOptions:
    """How slides are read.

    Attributes:
        patch: what a patch is.
        tissue: thresholds.
        block: patches a block, which is the batch of the embedders.
        max_bad_patches: share of patches that may be undecodable, 0 to 1.
        assume_power: whether the objective's power may stand for a missing scale.
        allow_upsample: whether a slide coarser than the target may be enlarged.
    """

    patch: PatchSpec
    tissue: TissueSettings
    block: int = 64
    max_bad_patches: float = 0.01
    assume_power: bool = False
    allow_upsample: bool = False


@dataclass(frozen=True)
class SlideSurvey:
    """What is known of a slide before its patches are read.

    Attributes:
        slide_id: of the slide.
        coords: level-0 (x, y) of the planned patches, int32 (n_planned, 2).
        blocks: number of blocks that follow.
        patch_level0_px: side of a patch, level-0 px.
        provenance: what its commit record will say of the slide.
    """

    slide_id: str
    coords: Coords
    blocks: int
    patch_level0_px: float
    provenance: dict[str, Any]


@dataclass(frozen=True)
class PatchBlock:
    """Consecutive patches of a plan: one batch of the embedders.

    Attributes:
        slide_id: of the slide.
        start: plan index of the first.
        coords: level-0 (x, y), int32 (n, 2).
        patches: uint8 (n, patch_px, patch_px, 3).
        ok: bool (n,); False where the patch could not be decoded.
    """

    slide_id: str
    start: int
    coords: Coords
    patches: PatchBatch
    ok: NDArray[np.bool_]


@dataclass(frozen=True)
class FeatureBlock:
    """Features of a block, under each embedder.

    Attributes:
        start, ok: as in the block of patches.
        features: one float16 (views, n, dim) an embedder, or why that embedder has none.
    """

    start: int
    ok: NDArray[np.bool_]
    features: list[NDArray[np.float16] | EmbedderError]


@dataclass(frozen=True)
class ReadSummary:
    """What reading a slide took: segments decoded a level, and patches that could not be."""

    segments_decoded: list[int]
    failed: int = 0
    reasons: list[str] = field(default_factory=list[str])


def read_slide(slide: Slide, options: ReadOptions) -> Iterator[SlideSurvey | PatchBlock | ReadSummary]:
    """Reads a slide: first its survey, then its blocks in plan order, last a summary.

    A patch that cannot be decoded keeps its place in its block, so that a block's bytes depend on nothing
    but the slide's.

    Raises:
        SlideError: the slide cannot be opened, has no scale, no tissue, or too many bad patches.
    """
    with open_slide(slide.path) as reader:
        plan, survey = _survey(reader, slide, options)
        yield survey
        failed = 0
        reasons: list[str] = []
        for block in _blocks(reader, slide.slide_id, plan, options.block, reasons):
            failed += int((~block.ok).sum())
            reason = reasons[0] if reasons else ""
            require_readable(slide.path, failed, len(plan), options.max_bad_patches, reason)
            yield block
        yield ReadSummary(reader.decoded, failed, reasons[:3])


@dataclass(frozen=True)
class SlideLook:
    """A slide's scale and tissue: what the choice of its patches rests on.

    Attributes:
        mpp: of level 0, um/px.
        mpp_source: where that came from.
        read: the level patches are read from.
        tissue: where tissue is.
    """

    mpp: float
    mpp_source: MppSource
    read: ReadPlan
    tissue: TissueMask


def look_at(reader: SlideReader, slide: Slide, options: ReadOptions) -> SlideLook:
    """Finds the scale and the tissue of an open slide.

    Raises:
        SlideError: it has no scale, or is coarser than the target.
    """
    spec = options.patch
    mpp, mpp_source = resolve_mpp(reader, slide.mpp, assume_power=options.assume_power)
    read = plan_read(
        mpp,
        reader.downsamples,
        spec.mpp,
        snap_tolerance=spec.snap_tolerance,
        allow_upsample=options.allow_upsample,
    )
    tissue = find_tissue(reader.overview(TISSUE_MPP, mpp, reread=read.level), mpp, options.tissue)
    return SlideLook(mpp, mpp_source, read, tissue)


def _survey(reader: SlideReader, slide: Slide, options: ReadOptions) -> tuple[PatchPlan, SlideSurvey]:
    look = look_at(reader, slide, options)
    plan = plan_patches(options.patch, look.read, reader.level_sizes[look.read.level], look.tissue)
    path = slide.path.resolve()
    provenance = {
        "path": str(path),
        **file_identity(path),
        "reader": reader.reader,
        "width": reader.size[0],
        "height": reader.size[1],
        "mpp": look.mpp,
        "mpp_source": look.mpp_source,
        "read": asdict(look.read),
        "grid": list(plan.grid_shape),
    }
    survey = SlideSurvey(
        slide_id=slide.slide_id,
        coords=plan.coords,
        blocks=-(-len(plan) // options.block),
        patch_level0_px=options.patch.patch_px * look.read.factor * look.read.downsample,
        provenance=provenance,
    )
    return plan, survey


def _blocks(reader: SlideReader, slide_id: str, plan: PatchPlan, size: int, reasons: list[str]) -> Iterator[PatchBlock]:
    """Regroups the bands of a plan into blocks of one size; only the last is shorter."""
    side = plan.patch_px

    def empty(start: int) -> PatchBlock:
        coords = plan.coords[start : start + size]
        pixels = np.empty((len(coords), side, side, 3), np.uint8)
        return PatchBlock(slide_id, start, coords, pixels, np.empty(len(coords), np.bool_))

    block, filled = empty(0), 0
    for band in read_bands(reader, plan):
        reasons += band.reasons
        taken = 0
        while taken < len(band.ok):
            take = min(len(block.ok) - filled, len(band.ok) - taken)
            block.patches[filled : filled + take] = band.patches[taken : taken + take]
            block.ok[filled : filled + take] = band.ok[taken : taken + take]
            filled, taken = filled + take, taken + take
            if filled == len(block.ok):
                yield block
                block, filled = empty(block.start + filled), 0


def embed_block(
    block: PatchBlock, embedders: Sequence[Embedder], views: int = 1, augmentation: Augmentation | None = None
) -> FeatureBlock:
    """Makes every view of a block once and pushes it once through each embedder.

    Args:
        block: patches.
        embedders: one that fails does not stop the others.
        views: view 0 is the patch, the others are augmented.
        augmentation: ranges of these.
    """
    exact = [np.empty((views, len(block.ok), embedder.spec.dim), np.float32) for embedder in embedders]
    for view in range(views):
        pixels, noise = _view(block, view, augmentation or Augmentation())
        for features, embedder in zip(exact, embedders, strict=True):
            features[view] = embedder.embed(pixels, noise)
    stored = [_store(features, block.ok, embedder) for features, embedder in zip(exact, embedders, strict=True)]
    return FeatureBlock(block.start, block.ok, stored)


def _view(block: PatchBlock, view: int, augmentation: Augmentation) -> tuple[PatchBatch, NDArray[np.float32] | None]:
    """The patches of a view, and the noise that goes on top of their normalised tensor."""
    if view == 0:
        return block.patches, None
    from her2cache.augment import augment, draw_views, gaussian_noise  # torch, which readers do without

    side = block.patches.shape[1]
    draws = draw_views(augmentation, block.slide_id, block.coords, view, side)
    return augment(block.patches, draws, augmentation), gaussian_noise(draws, side, augmentation)


def _store(
    exact: NDArray[np.float32], ok: NDArray[np.bool_], embedder: Embedder
) -> NDArray[np.float16] | EmbedderError:
    """Features (views, n, dim) as they are stored, or why they cannot be."""
    with np.errstate(over="ignore"):
        stored = exact.astype(np.float16)
    if np.isfinite(stored[:, ok]).all():
        return stored
    largest = np.abs(exact[:, ok]).max()
    return EmbedderError(
        f"{embedder.spec.name} gives features up to {largest:.3g}, which float16 cannot hold: its weights"
        " or its normalisation are wrong, or it needs another dtype"
    )
