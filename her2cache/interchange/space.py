"""The feature space of features that another tool made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from her2cache.embedder import SCHEMA, EmbedderSpec, FeatureSpace, canonical_json
from her2cache.interchange.patches import SlidePatches
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset

_UNKNOWN = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ImportedSpace(FeatureSpace):
    """A feature space of which only the sizes and names are known.

    How tissue was found, how the network was fed and what its weights were is not known, so the document leaves that
    out (`tissue` is null), whatever the fields of the base class hold. Its key `imported` names the tool and what the
    tool calls the network; no space made here has it, so an imported space never has the key of one.

    Attributes:
        tool: that wrote the files: "clam", "trident" or "stamp".
        made_by: what its files call the network; None where they do not say.
        overlap_px: of neighbouring patches, px; None where it is not known.
    """

    tool: str = ""
    made_by: str | None = None
    overlap_px: int | None = None

    def document(self) -> dict[str, Any]:
        """The JSON document that the key is the digest of."""
        patch: dict[str, Any] = {"mpp": self.patch.mpp, "patch_px": self.patch.patch_px}
        if self.overlap_px is not None:
            patch["stride_px"] = self.patch.stride_px
        return {
            "schema": SCHEMA,
            "views": self.views,
            "dtype": self.dtype,
            "patch": patch,
            "tissue": None,
            "embedder": {
                "name": self.embedder.name,
                "dim": self.embedder.dim,
                "weights_sha256": self.embedder.weights_sha256,
            },
            "imported": {"tool": self.tool, "made_by": self.made_by},
        }


def imported_space(patches: SlidePatches, tool: str, name: str, dtype: str) -> ImportedSpace:
    """The space that a slide's features belong to.

    Its `weights_sha256` is no digest of weights, which nobody has: it is that of the canonical JSON of the tool, the
    names of the embedder and the sizes. So features of one network are told from another's, and never taken for those
    of weights at hand.

    Args:
        patches: of any of its slides.
        tool: that wrote the files.
        name: of the embedder, for people.
        dtype: in which features are stored.
    """
    dim, side = patches.features.shape[1], patches.patch_px
    identity = {
        "tool": tool,
        "embedder": name,
        "made_by": patches.made_by,
        "dim": dim,
        "patch_px": side,
        "mpp": patches.mpp,
        "overlap_px": patches.overlap_px,
    }
    digest = hashlib.sha256(canonical_json(identity).encode()).hexdigest()
    return ImportedSpace(
        patch=PatchSpec(mpp=patches.mpp, patch_px=side, stride_px=max(1, side - (patches.overlap_px or 0))),
        tissue=preset("HE"),
        embedder=EmbedderSpec(name, dim, side, _UNKNOWN, _UNKNOWN, digest),
        dtype=dtype,
        tool=tool,
        made_by=patches.made_by,
        overlap_px=patches.overlap_px,
    )


def difference(one: ImportedSpace, other: ImportedSpace) -> str:
    """In what two spaces differ, for people: "dim 1024 instead of 512"."""
    mine, theirs = _measures(one), _measures(other)
    return ", ".join(f"{name} {mine[name]} instead of {theirs[name]}" for name in mine if mine[name] != theirs[name])


def _measures(space: ImportedSpace) -> dict[str, Any]:
    return {
        "dim": space.embedder.dim,
        "patch_px": space.patch.patch_px,
        "mpp": space.patch.mpp,
        "overlap": space.overlap_px,
        "network": space.made_by,
    }
