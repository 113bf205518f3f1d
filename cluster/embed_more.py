"""Embedding more slides into a feature space that a store already has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.embed_job import EmbedReport, batching_made, embed_slides
from cluster.job import EmbedOptions
from her2cache.backbones.registry import load_recipe
from her2cache.cohort import Slide
from her2cache.embedder import Recipe
from her2cache.errors import EmbedderError, WeightsMismatchError
from her2cache.ingest import ReadOptions
from her2cache.remote import slide_path
from her2cache.store.reader import FeatureStore, SpaceInfo
from her2cache.store.schema import CommitRecord
from her2cache.tiling import PatchSpec
from her2cache.tissue import TissueSettings


def embed_more(
    slides: Sequence[Slide], space: SpaceInfo, store: FeatureStore, options: EmbedOptions | None = None
) -> EmbedReport:
    """Embeds slides exactly as those that a space already holds.

    Args:
        slides: which; those already there are skipped.
        space: of the store; its document says how patches are cut and tissue is found.
        store: where features go.
        options: of the job.

    Raises:
        WeightsMismatchError: the weights at hand are not those of the space.
        EmbedderError: the weights are not at hand.
    """
    recipe, reading = inputs_of(space)
    options = options or EmbedOptions()
    precision = precision_of(store, space)
    return embed_slides(slides, [recipe], store, reading, options, views=space.views, precision=precision)


def precision_of(store: FeatureStore, space: SpaceInfo) -> str:
    """What to ask for so that new features are computed as those are that a space has: "auto" or "float32"."""
    made = batching_made(store, space.key, store.slides(space.key))
    return "auto" if made is None or made.get("precision") == "float16" else "float32"


def inputs_of(space: SpaceInfo) -> tuple[Recipe, ReadOptions]:
    """The embedder and the reading that a space was made with.

    Raises:
        WeightsMismatchError: the weights at hand are not those of the space.
        EmbedderError: the weights are not at hand, or the features were imported.
    """
    if imported := space.document.get("imported"):
        raise EmbedderError(
            f"space {space.key[:12]} holds features that {imported['tool']} made, so no slide can be embedded into it:"
            " make them there, and `her2cache store import` them (--replace for a slide that is damaged)"
        )
    patch = PatchSpec(**space.document["patch"])
    request = space.name if space.weights is None else f"{space.name}={space.weights}"
    recipe = load_recipe(request, patch.patch_px)
    expected = space.document["embedder"]["weights_sha256"]
    if recipe.spec.weights_sha256 != expected:
        raise WeightsMismatchError(
            f"{request} holds weights {recipe.spec.weights_sha256[:12]}, space {space.key[:12]} was made with"
            f" {expected[:12]}: the file was replaced; put the old one back, or embed the slide with `her2cache embed`"
        )
    return recipe, ReadOptions(patch=patch, tissue=TissueSettings(**space.document["tissue"]))


def slide_of(record: CommitRecord) -> Slide:
    """The row of a cohort table that a committed slide was embedded from, as far as its record tells."""
    made = record.slide
    regions = made.get("regions")
    return Slide(
        slide_id=record.slide_id,
        case_id=record.slide_id,
        path=slide_path(made["path"]),
        stain="HE",
        mpp=made["mpp"] if made.get("mpp_source") == "cohort" else None,
        regions=Path(regions["path"]) if regions else None,
        thresholds=tuple(made.get("thresholds", {}).items()),
    )
