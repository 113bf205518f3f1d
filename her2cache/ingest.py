"""One slide in three functions: survey and read its blocks, embed a block, write the slide.

The cluster runs each in an actor of its own; run one after the other they are the whole of `embed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from her2cache.cohort import Slide
from her2cache.colour import ColourSums
from her2cache.embedder import Augmentation, Embedder
from her2cache.errors import EmbedderError, EmptyPlanError, SlideError
from her2cache.focus import edge_strength
from her2cache.identity import require_unchanged, state_of
from her2cache.pyramid import ReadPlan, plan_read
from her2cache.regions import Regions, read_regions
from her2cache.remote import RemotePath, SlidePath
from her2cache.slide import MppSource, SlideReader, file_identity, open_slide, require_readable, resolve_mpp
from her2cache.tiling import PatchPlan, PatchSpec, plan_patches, read_blocks
from her2cache.tissue import Overview, TissueMask, TissueSettings, find_tissue
from her2cache.units import Coords, PatchBatch


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
        seconds: that each embedder took.
    """

    start: int
    ok: NDArray[np.bool_]
    features: list[NDArray[np.float16] | EmbedderError]
    seconds: list[float]


@dataclass(frozen=True)
class ReadSummary:
    """What reading a slide took.

    Attributes:
        segments_decoded: of each level.
        failed: patches that could not be decoded, and the first reasons for it.
        blurred: patches left out because they are not in focus.
        colour: of the patches that were not left out, see `colour.ColourSums`.
    """

    segments_decoded: list[int]
    failed: int = 0
    blurred: int = 0
    colour: list[float] = field(default_factory=list[float])
    reasons: list[str] = field(default_factory=list[str])


def read_slide(slide: Slide, options: ReadOptions) -> Iterator[SlideSurvey | PatchBlock | ReadSummary]:
    """Reads a slide: first its survey, then its blocks in plan order, last a summary.

    A patch that is left out, undecodable or blurred, keeps its place in its block, so that a block's bytes depend on
    nothing but the slide's.

    Raises:
        SlideError: the slide cannot be opened, has no scale, no tissue, too many bad patches, or none in focus; or it
            disappeared, or was written to, while it was read.
    """
    try:
        yield from _read(slide, options_of(slide, options))
    except OSError as error:
        raise SlideError(
            f"{slide.path} cannot be read to its end ({error.strerror or error}): it disappeared, or its storage fails;"
            " see that the file is there and can be copied, and embed it again"
        ) from error


def _read(slide: Slide, options: ReadOptions) -> Iterator[SlideSurvey | PatchBlock | ReadSummary]:
    before = _known_of(slide.path)
    with open_slide(slide.path) as reader:
        plan, survey = _survey(reader, slide, options)
        if before is not None:  # its identity, which was taken meanwhile, is that of the file that was opened
            require_unchanged(slide.path, before)
        yield survey
        failed = blurred = 0
        colour = ColourSums()
        reasons: list[str] = []
        for block in _blocks(reader, slide.slide_id, plan, options.block, reasons):
            failed += int((~block.ok).sum())
            reason = reasons[0] if reasons else ""
            require_readable(slide.path, failed, len(plan), options.max_bad_patches, reason)
            if options.patch.min_edges > 0:
                sharp = edge_strength(block.patches) >= options.patch.min_edges  # (n,)
                blurred += int((block.ok & ~sharp).sum())
                block = replace(block, ok=block.ok & sharp)  # noqa: PLW2901
            colour.add(block.patches[block.ok])
            yield block
        if blurred and failed + blurred == len(plan):
            raise EmptyPlanError(
                f"{slide.path}: none of its {len(plan)} patches is in focus (edge strength below"
                f" {options.patch.min_edges:g} grey levels): scan the slide again, or embed it without --skip-blurred"
            )
        require_unchanged(slide.path, survey.provenance)
        yield ReadSummary(reader.decoded, failed, blurred, colour.statistics(), reasons[:3])


def _known_of(path: SlidePath) -> dict[str, int] | None:
    """Bytes and time of a slide before it is opened; None where it is read from a copy, or opening it will say why."""
    with suppress(OSError):
        found = None if isinstance(path, RemotePath) else state_of(path)
        return None if found is None else {"bytes": found[0], "mtime_ns": found[1]}
    return None


def options_of(slide: Slide, options: ReadOptions) -> ReadOptions:
    """The options with what the cohort table says of this slide alone."""
    given = dict(slide.thresholds)
    min_tissue = given.pop("min_tissue", options.patch.min_tissue)
    patch, tissue = replace(options.patch, min_tissue=min_tissue), replace(options.tissue, **given)
    return replace(options, patch=patch, tissue=tissue)


def selection_of(slide: Slide) -> dict[str, Any]:
    """What the cohort table says of the choice of this slide's patches, as its commit record keeps it.

    Raises:
        SlideError: the file of its regions cannot be read.
    """
    found: dict[str, Any] = {}
    if slide.thresholds:
        found["thresholds"] = dict(slide.thresholds)
    if slide.regions is not None:
        found["regions"] = {"path": str(slide.regions.resolve()), "sha256": read_regions(slide.regions).sha256}
    return found


def selection_changed(slide: Slide, committed: Mapping[str, Any]) -> bool:
    """Whether a slide's thresholds or regions are others than those it was committed with.

    Args:
        slide: as the cohort table has it now.
        committed: `CommitRecord.slide`.

    Raises:
        SlideError: the file of its regions cannot be read.
    """
    now = selection_of(slide)
    regions = (now.get("regions") or {}).get("sha256"), (committed.get("regions") or {}).get("sha256")
    return now.get("thresholds") != committed.get("thresholds") or regions[0] != regions[1]


@dataclass(frozen=True)
class SlideLook:
    """A slide's scale and tissue: what the choice of its patches rests on.

    Attributes:
        mpp: of level 0, um/px.
        mpp_source: where that came from.
        read: the level patches are read from.
        overview: picture of the whole slide.
        tissue: where tissue is in it.
        regions: of interest, the only ones that patches are taken from; None for the whole slide.
    """

    mpp: float
    mpp_source: MppSource
    read: ReadPlan
    overview: Overview
    tissue: TissueMask
    regions: Regions | None


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
    regions = None if slide.regions is None else read_regions(slide.regions)
    overview = reader.overview(options.tissue.mpp, mpp, reread=read.level)
    return SlideLook(mpp, mpp_source, read, overview, find_tissue(overview, mpp, options.tissue), regions)


def _survey(reader: SlideReader, slide: Slide, options: ReadOptions) -> tuple[PatchPlan, SlideSurvey]:
    look = look_at(reader, slide, options)
    plan = plan_patches(options.patch, look.read, reader.level_sizes[look.read.level], look.tissue, look.regions)
    path = slide.path.resolve()
    provenance = {
        "path": str(path),
        **(reader.identity or file_identity(path)),
        "reader": reader.reader,
        "width": reader.size[0],
        "height": reader.size[1],
        "mpp": look.mpp,
        "mpp_source": look.mpp_source,
        "read": asdict(look.read),
        "grid": list(plan.grid_shape),
        **selection_of(slide),
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
    """The patches of a plan in blocks of one size; only the last is shorter."""
    for block in read_blocks(reader, plan, size):
        reasons += block.reasons
        coords = plan.coords[block.start : block.start + size]
        yield PatchBlock(slide_id, block.start, coords, block.patches, block.ok)


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
    from her2cache.backbones.sharing import embed_with_each  # torch, which readers do without

    sides = {embedder.spec.input_px for embedder in embedders}
    stored: list[NDArray[np.float16] | EmbedderError] = [
        np.empty((views, len(block.ok), embedder.spec.dim), np.float16) for embedder in embedders
    ]
    seconds = [0.0] * len(embedders)
    for view in range(views):
        pixels, noises = _view(block, view, augmentation or Augmentation(), sides)
        for k, (features, took) in enumerate(embed_with_each(embedders, pixels, noises)):
            stored[k] = _stored(stored[k], view, features, block.ok, embedders[k].spec.name)
            seconds[k] += took
    return FeatureBlock(block.start, block.ok, stored, seconds)


def _view(
    block: PatchBlock, view: int, augmentation: Augmentation, sides: Set[int]
) -> tuple[PatchBatch, dict[int, NDArray[np.float32]]]:
    """The patches of a view, and the noise that goes on top of their normalised tensor, by the tensor's side."""
    if view == 0:
        return block.patches, {}
    from her2cache.augment import augment, draw_views, gaussian_noise  # torch, which readers do without

    draws = draw_views(augmentation, block.slide_id, block.coords, view, block.patches.shape[1])
    noises = {side: gaussian_noise(draws, side, augmentation) for side in sides}
    return augment(block.patches, draws, augmentation), noises


def _stored(
    stored: NDArray[np.float16] | EmbedderError,
    view: int,
    features: NDArray[np.float32] | EmbedderError,
    ok: NDArray[np.bool_],
    name: str,
) -> NDArray[np.float16] | EmbedderError:
    """What is stored of a block, (views, n, dim), once it has a view's features; or why there can be nothing."""
    if isinstance(stored, EmbedderError):
        return stored
    if isinstance(features, EmbedderError):
        return features
    with np.errstate(over="ignore"):
        stored[view] = features
    if np.isfinite(stored[view, ok]).all():
        return stored
    largest = np.abs(features[ok]).max()
    return EmbedderError(
        f"{name} gives features up to {largest:.3g}, which float16 cannot hold: its weights or its normalisation are"
        " wrong; or, where it ran on a GPU, its layers need --precision float32"
    )
