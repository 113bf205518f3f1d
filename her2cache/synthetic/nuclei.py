"""Nuclei: which there are, how large and how irregular, and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from her2cache.synthetic.anatomy import Anatomy
from her2cache.synthetic.noise import TEXTURE_UM, Field, Window, normal, texture
from her2cache.synthetic.sites import Sites, hexagonal_sites
from her2cache.synthetic.specimen import PATCH_LATENT_SD, PATCH_SHARE_LOG_SD, Case

# what is drawn for each site, added to the key of its kind
_KEEP, _RADIUS, _ELONGATION, _ANGLE, _DENSITY, _NUCLEOLUS, _LOOK = range(10, 17)

PATCH_UM = 48.0
"""Side of the squares that share a latent: one 96 px patch at 0.5 um/px."""

MAX_RADIUS_UM = 11.0
_TUMOUR_RADIUS_UM = 5.25  # 10.5 px at 0.5 um/px
_LATTICE_SURPLUS = 1.35  # sites over nuclei: the surplus is thinned out, which hides the lattice
_EDGE_UM = 0.8  # how soft an outline is
_CHUNK = 256

_PATCH_LATENT, _PATCH_SHARE, _TUMOUR, _FIBROBLASTS, _LYMPHOCYTES = 200, 201, 210, 220, 230


@dataclass(frozen=True)
class Nuclei:
    """Nuclei of one kind, every array of shape (n,).

    Attributes:
        sites: centres.
        radius_um: radius of the circle of equal area.
        elongation: long axis over short axis.
        angle: of the long axis, radians.
        density: mean optical density of haematoxylin.
        nucleolus: 1 with a prominent nucleolus, else 0.
        roughness: relative amplitude of the outline's ripples.
        key: of what is drawn for each nucleus on the way.
    """

    sites: Sites
    radius_um: NDArray[np.float64]
    elongation: NDArray[np.float64]
    angle: NDArray[np.float64]
    density: NDArray[np.float64]
    nucleolus: NDArray[np.float64]
    roughness: float
    key: int

    def __len__(self) -> int:
        return len(self.radius_um)


def mean_radius_um(latent: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Median radius of tumour nuclei at a latent."""
    return _TUMOUR_RADIUS_UM * np.exp(0.12 * np.asarray(latent))


def radius_log_sd(latent: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """SD of the log radius of tumour nuclei at a latent."""
    return 0.14 * np.exp(0.3 * np.asarray(latent))


def mean_area_um2(latent: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Mean area of tumour nuclei at a latent (second moment of the log-normal radius)."""
    return np.pi * mean_radius_um(latent) ** 2 * np.exp(2 * radius_log_sd(latent) ** 2)


def tumour_nuclei(case: Case, section: int, anatomy: Anatomy) -> Nuclei:
    """Nuclei of the tumour: the latent sets size, variation and nucleoli, never the area they cover."""
    key, window = case.key(section, _TUMOUR), anatomy.window
    lattice_density = _LATTICE_SURPLUS * case.nuclear_share / mean_area_um2(case.latent)
    spacing_um = float(np.sqrt(2.0 / np.sqrt(3.0) / lattice_density))
    sites = hexagonal_sites(key, window, spacing_um, jitter=0.25)
    patch = np.floor(sites.x_um / PATCH_UM).astype(np.int64), np.floor(sites.y_um / PATCH_UM).astype(np.int64)
    latent = case.latent + PATCH_LATENT_SD * normal(case.key(_PATCH_LATENT), *patch)
    share = case.nuclear_share * np.exp(PATCH_SHARE_LOG_SD * normal(case.key(_PATCH_SHARE), *patch))
    at = window.pixels(sites.x_um, sites.y_um)
    wanted = share / mean_area_um2(latent) / lattice_density
    chosen = (sites.uniform(key + _KEEP) < wanted) & (anatomy.depth_um[at] > 1.5) & anatomy.tumour[at]
    sites, latent = sites.subset(chosen), latent[chosen]
    radius = mean_radius_um(latent) * np.exp(radius_log_sd(latent) * sites.normal(key + _RADIUS))
    return Nuclei(
        sites=sites,
        radius_um=np.clip(radius, 2.0, MAX_RADIUS_UM),
        elongation=1.12 + 0.35 * sites.uniform(key + _ELONGATION),
        angle=np.pi * sites.uniform(key + _ANGLE),
        density=0.46 * np.exp(0.18 * sites.normal(key + _DENSITY)),
        nucleolus=(sites.uniform(key + _NUCLEOLUS) < expit(-1.0 + 0.8 * latent)).astype(np.float64),
        roughness=0.05,
        key=key + _LOOK,
    )


def fibroblasts(case: Case, section: int, anatomy: Anatomy) -> Nuclei:
    """Spindle nuclei of the stroma, along its fibres."""
    key, window = case.key(section, _FIBROBLASTS), anatomy.window
    sites = hexagonal_sites(key, window, 15.0, jitter=0.45)
    rows, columns = window.pixels(sites.x_um, sites.y_um)
    stroma = (anatomy.depth_um < -2.0) & (anatomy.tissue > 0.9) & (anatomy.lumen < 0.1)
    chosen = stroma[rows, columns] & (sites.uniform(key + _KEEP) < 0.55)
    sites, rows, columns = sites.subset(chosen), rows[chosen], columns[chosen]
    across = anatomy.fibre_v
    down = across[np.minimum(rows + 1, window.height_px - 1), columns] - across[rows, columns]
    right = across[rows, np.minimum(columns + 1, window.width_px - 1)] - across[rows, columns]
    return Nuclei(
        sites=sites,
        radius_um=2.3 * np.exp(0.15 * sites.normal(key + _RADIUS)),
        elongation=2.2 + 2.6 * sites.uniform(key + _ELONGATION),
        angle=np.arctan2(-right, down) + 0.25 * sites.normal(key + _ANGLE),
        density=0.55 * np.exp(0.15 * sites.normal(key + _DENSITY)),
        nucleolus=np.zeros(len(sites.x_um)),
        roughness=0.06,
        key=key + _LOOK,
    )


def lymphocytes(case: Case, section: int, anatomy: Anatomy) -> Nuclei:
    """Small dark round nuclei: infiltrates in the stroma, a few among tumour cells."""
    key, window = case.key(section, _LYMPHOCYTES), anatomy.window
    sites = hexagonal_sites(key, window, 8.2, jitter=0.3)
    at = window.pixels(sites.x_um, sites.y_um)
    infiltrate = np.where(anatomy.depth_um[at] < -1.0, expit((anatomy.inflamed[at] - 1.45) / 0.18), 0.006)
    present = (anatomy.tissue[at] > 0.9) & ~anatomy.fat[at]
    chosen = present & (sites.uniform(key + _KEEP) < 0.02 + 0.8 * infiltrate)
    sites = sites.subset(chosen)
    return Nuclei(
        sites=sites,
        radius_um=3.1 * np.exp(0.08 * sites.normal(key + _RADIUS)),
        elongation=1.0 + 0.2 * sites.uniform(key + _ELONGATION),
        angle=np.pi * sites.uniform(key + _ANGLE),
        density=0.72 * np.exp(0.10 * sites.normal(key + _DENSITY)),
        nucleolus=np.zeros(len(sites.x_um)),
        roughness=0.03,
        key=key + _LOOK,
    )


def paint(nuclei: Nuclei, window: Window, haematoxylin: Field, eosin: Field, *, eosin_inside: float) -> None:
    """Draws nuclei over the stain densities of a window, in place.

    Args:
        nuclei: what to draw.
        window: where the two fields lie.
        haematoxylin: optical density, shape (height, width).
        eosin: optical density, shape (height, width).
        eosin_inside: optical density of eosin inside a nucleus.
    """
    inside = np.float32(eosin_inside)
    for start in range(0, len(nuclei), _CHUNK):
        stamps = _draw(nuclei, np.arange(start, min(start + _CHUNK, len(nuclei))), window)
        size = stamps.cover.shape[1]
        for k, (top, left) in enumerate(zip(stamps.top, stamps.left, strict=True)):
            y0, x0 = max(top, 0), max(left, 0)
            y1, x1 = min(top + size, window.height_px), min(left + size, window.width_px)
            if y0 >= y1 or x0 >= x1:
                continue
            part = k, slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
            cover, h, e = stamps.cover[part], haematoxylin[y0:y1, x0:x1], eosin[y0:y1, x0:x1]
            h += cover * (stamps.density[part] - h)
            e += cover * (inside - e)


class _Stamps(NamedTuple):
    """Small images of n nuclei: corners (n,) in px of the window; cover and density, (n, size, size)."""

    top: NDArray[np.intp]
    left: NDArray[np.intp]
    cover: NDArray[np.float32]
    density: NDArray[np.float32]


def _draw(nuclei: Nuclei, chunk: NDArray[np.intp], window: Window) -> _Stamps:
    radius, elongation = nuclei.radius_um[chunk], nuclei.elongation[chunk]
    sites = nuclei.sites.subset(chunk)
    reach_um = float((radius * np.sqrt(elongation)).max() * (1 + 3 * nuclei.roughness)) + 1.0
    half = int(np.ceil(reach_um / window.mpp))
    column = (sites.x_um - window.x_um) / window.mpp - 0.5
    row = (sites.y_um - window.y_um) / window.mpp - 0.5
    left, top = np.round(column).astype(np.intp) - half, np.round(row).astype(np.intp) - half
    steps = np.arange(2 * half + 1)
    dx = ((left - column)[:, None, None] + steps[None, None, :]) * window.mpp  # (n, 1, size)
    dy = ((top - row)[:, None, None] + steps[None, :, None]) * window.mpp  # (n, size, 1)
    dx, dy = dx.astype(np.float32), dy.astype(np.float32)

    # the place relative to the nucleus, turned and stretched so that its outline is about the unit circle
    cos, sin = _cube(np.cos(nuclei.angle[chunk])), _cube(np.sin(nuclei.angle[chunk]))
    stretch, r = _cube(np.sqrt(elongation)), _cube(radius)
    place = ((dx * cos + dy * sin) / stretch + 1j * (dy * cos - dx * sin) * stretch) / r  # (n, size, size)
    draws = [sites.uniform(nuclei.key + k) for k in range(8)]
    inside_um = _inside(place, draws[:3], nuclei.roughness) * r / np.sqrt(stretch)
    cover = np.clip(inside_um / np.float32(_EDGE_UM) + np.float32(0.5), 0.0, 1.0)

    rim = np.exp(-((np.maximum(inside_um, 0.0) / 1.0) ** 2)) * np.minimum(r / 5.0, 1.0) ** 2
    pattern = 0.75 + 0.45 * rim + 0.22 * _grain(draws[3], draws[4], steps - half, window.mpp)
    spot = _cube(0.35 * np.sqrt(draws[5]) * np.exp(2j * np.pi * draws[6]), np.complex64)
    spot_um = _cube(1.25 + 0.35 * draws[7]) - np.abs(place - spot) * r
    pattern += 1.1 * _cube(nuclei.nucleolus[chunk]) * np.clip(spot_um / np.float32(_EDGE_UM) + 0.5, 0.0, 1.0)
    pattern = np.maximum(pattern, 0.15)
    # the same mean density whatever the pattern: size and nucleoli must not carry a colour
    mean = (pattern * cover).sum(axis=(1, 2)) / np.maximum(cover.sum(axis=(1, 2)), 1e-6)
    density = pattern * _cube(nuclei.density[chunk] / mean)
    return _Stamps(top, left, cover.astype(np.float32), density.astype(np.float32))


def _cube(values: NDArray[Any], dtype: type[Any] = np.float32) -> NDArray[Any]:
    """A number a nucleus, as (n, 1, 1)."""
    return values.astype(dtype)[:, None, None]


def _inside(place: NDArray[Any], phases: list[NDArray[np.float64]], roughness: float) -> NDArray[Any]:
    """How far inside a rippled unit circle each place is, in radii: (n, size, size)."""
    rho = np.abs(place)
    direction = place / np.maximum(rho, 1e-6)
    wave, ripple = direction, np.zeros_like(rho)
    for phase in phases:  # 2, 3 and 4 waves around the circle
        wave = wave * direction
        ripple += (wave * _cube(np.exp(2j * np.pi * phase), np.complex64)).real
    return 1.0 + np.float32(roughness) * ripple - rho


def _grain(u: NDArray[np.float64], v: NDArray[np.float64], steps: NDArray[np.intp], mpp: float) -> Field:
    """Chromatin of each nucleus, cut from one texture around (u, v) in 0 to 1: (n, size, size)."""
    clumps = texture("chromatin", 0.7, 0.7)
    shift = np.floor(steps * (mpp / TEXTURE_UM)).astype(np.intp)
    rows, columns = (((start * len(clumps)).astype(np.intp)[:, None] + shift) % len(clumps) for start in (u, v))
    return clumps[rows[:, :, None], columns[:, None, :]]
