"""A third party's embedder, the whole of it: mean and spread of each colour of a patch.

It is made known by the entry point in the folder beside this file, as pip writes it from

    [project.entry-points."her2cache.embedders"]
    colour-moments = "colour_moments:load"
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from her2cache.embedder import Batching, EmbedderSpec
from her2cache.errors import EmbedderError


@dataclass(frozen=True)
class Recipe:
    spec: EmbedderSpec
    source: str | None = None
    card: None = None

    def build(self, batching: Batching) -> ColourMoments:
        del batching  # numpy on a processor, whatever the device
        return ColourMoments(self.spec)


class ColourMoments:
    def __init__(self, spec: EmbedderSpec) -> None:
        self.spec = spec

    def embed(self, patches: NDArray[np.uint8], noise: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        features = np.empty((len(patches), self.spec.dim), np.float32)
        for k, patch in enumerate(patches):  # one by one: no number depends on how many there are
            x = np.ascontiguousarray(patch.transpose(2, 0, 1), np.float32) / 255  # (3, px, px)
            if noise is not None:
                x += noise[k]
            features[k] = np.concatenate([x.mean((1, 2)), x.std((1, 2))])
        return features


def load(weights: str, patch_px: int, offline: bool) -> Recipe:
    del offline
    if weights:
        raise EmbedderError("colour-moments has no weights; leave out =WEIGHTS")
    spec = EmbedderSpec("colour-moments", 6, patch_px, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), weights_sha256="none")
    return Recipe(spec)
