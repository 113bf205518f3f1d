"""What is drawn once for a case and once for a slide: the latent morphology, the staining, the optics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from her2cache.synthetic.noise import make_key

SCORES = (0, 1, 2, 3)
RHO = 0.85
"""Correlation of the latent morphology with the standardised score (the link that is put in)."""

PATCH_LATENT_SD = 0.5
"""SD of what each 48 um patch adds to the latent of its slide."""

PATCH_SHARE_LOG_SD = 0.23
"""SD of the log share of nuclei that each 48 um patch adds; with the slide's own 0.10 it makes 0.25."""
_SLIDE_SHARE_LOG_SD = 0.10

STAINS = ("H", "E", "D")
"""Haematoxylin, eosin and DAB (diaminobenzidine): the rows of stain vectors, the order of gains."""

# optical density in red, green, blue: Ruifrok and Johnston 2001
STAIN_VECTORS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
_VECTOR_JITTER = 0.06
_LOG_GAIN_SD = 0.25

_DAB_DENSITY = (0.0, 0.15, 0.35, 0.80)
_DAB_COMPLETENESS = (0.0, 0.3, 0.8, 1.0)

_STREAMS = {"case": 0, "HE": 1, "IHC": 2}


@dataclass(frozen=True)
class Case:
    """The specimen of one patient, before staining.

    Attributes:
        seed: seed of the cohort.
        number: from 1; everything is keyed by (seed, number), so a case does not depend on the cohort's size.
        score: HER2 score, 0 to 3.
        latent: z, which sets size, variation and nucleoli of tumour nuclei; correlation `RHO` with the score.
        tumour_share: area of tumour nests over area of tissue; independent of the score.
        nuclear_share: area of nuclei over area of a nest; independent of the score.
        fat_share: area of fat over area of tissue.
        dab_density: base-10 optical density of a stained membrane in the IHC section.
        dab_completeness: share of membranes that stain.
    """

    seed: int
    number: int
    score: int
    latent: float
    tumour_share: float
    nuclear_share: float
    fat_share: float
    dab_density: float
    dab_completeness: float

    def key(self, *stream: int) -> int:
        """The key of one random field of this case."""
        return make_key(self.seed, self.number, *stream)


@dataclass(frozen=True)
class Staining:
    """How one section was stained and scanned.

    Attributes:
        vectors: optical density per unit of each of `STAINS` in R, G, B, shape (3, 3), rows of length 1.
        gains: factor on the amount of each stain, shape (3,).
        blur_um: sigma of the optics.
        noise: SD of the sensor noise in grey levels.
        white: grey level of blank glass in R, G, B, shape (3,).
    """

    vectors: NDArray[np.float64]
    gains: NDArray[np.float64]
    blur_um: float
    noise: float
    white: NDArray[np.float64]


def draw_case(seed: int, number: int) -> Case:
    """Draws a case; the scores of consecutive cases cycle through 0 to 3."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, number, _STREAMS["case"])))
    score = SCORES[(number - 1) % len(SCORES)]
    standardised = (score - np.mean(SCORES)) / np.std(SCORES)
    return Case(
        seed=seed,
        number=number,
        score=score,
        latent=float(RHO * standardised + np.sqrt(1 - RHO**2) * rng.standard_normal()),
        tumour_share=float(rng.uniform(0.35, 0.70)),
        nuclear_share=float(0.30 * np.exp(_SLIDE_SHARE_LOG_SD * rng.standard_normal())),
        fat_share=float(rng.uniform(0.0, 0.12)),
        dab_density=float(_DAB_DENSITY[score] * np.exp(0.45 * rng.standard_normal()) + rng.uniform(0.0, 0.06)),
        dab_completeness=float(np.clip(_DAB_COMPLETENESS[score] + 0.15 * rng.standard_normal(), 0.0, 1.0)),
    )


def draw_staining(case: Case, stain: str) -> Staining:
    """Draws the staining of one section of a case; independent of its score."""
    rng = np.random.default_rng(np.random.SeedSequence((case.seed, case.number, _STREAMS[stain])))
    vectors = np.clip(STAIN_VECTORS + _VECTOR_JITTER * rng.standard_normal((3, 3)), 0.01, None)
    return Staining(
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        gains=np.exp(_LOG_GAIN_SD * rng.standard_normal(3)),
        blur_um=float(rng.uniform(0.3, 0.6)),  # 0.6 to 1.2 px at 0.5 um/px
        noise=float(rng.uniform(2.0, 4.0)),
        white=rng.uniform(232.0, 246.0) + rng.uniform(-1.0, 1.0, 3),
    )
