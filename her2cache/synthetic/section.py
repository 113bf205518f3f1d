"""A stained section: anatomy and cells turned into optical densities, and those into pixels."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from her2cache.synthetic.anatomy import Anatomy
from her2cache.synthetic.noise import (
    TEXTURE_UM,
    Field,
    Window,
    resample,
    sample,
    smooth_field,
    soft_step,
    texture,
    uniform,
)
from her2cache.synthetic.nuclei import Nuclei, fibroblasts, lymphocytes, paint, tumour_nuclei
from her2cache.synthetic.sites import voronoi
from her2cache.synthetic.specimen import STAINS, Case, Staining, draw_staining
from her2cache.units import BoolImage, RgbImage

Stain = Literal["HE", "IHC"]

Densities = dict[str, Field]
"""Base-10 optical density of the stains of a section, by their letter in `STAINS`, (height, width) each."""

_HALO_UM = 24.0  # what lies this near outside a window can show inside it: nuclei, membranes, blur, folds
_FOLD_SHIFT_UM = (9.0, 13.0)
_CELL_MPP = 1.0
_COUNTERSTAIN = 0.7  # haematoxylin of an IHC section over that of an H&E section
_COUNTERSTAIN_OF_MATRIX = 0.3  # haematoxylin of an IHC section where an H&E section takes eosin
_UNSPECIFIC_DAB = 0.012
_SECTION_STREAM = {"HE": 1, "IHC": 2}
_DENSITY_DRIFT, _MEMBRANES, _GRAIN = 300, 301, 302


class Section:
    """One section of a case, stained H&E or for HER2 (IHC).

    Both sections of a case share their anatomy, as neighbouring cuts do, and have cells of their own.
    """

    def __init__(self, case: Case, stain: Stain) -> None:
        self.case = case
        self.stain: Stain = stain
        self.staining: Staining = draw_staining(case, stain)
        self._stream = _SECTION_STREAM[stain]

    def render(self, anatomy: Anatomy) -> RgbImage:
        """The section in the window of an anatomy, less its halo: (height, width, 3)."""
        crop = without_halo(anatomy.window)
        return develop(
            self._densities(anatomy), self.staining, anatomy.window, crop, self.case.key(self._stream, _GRAIN)
        )

    def _densities(self, anatomy: Anatomy) -> Densities:
        """Optical densities before the gains of the staining."""
        case, stream, window = self.case, self._stream, anatomy.window
        tumour = tumour_nuclei(case, stream, anatomy)
        cells = _tumour_cells(tumour, anatomy)
        h, e = _matrix(anatomy, cells)
        if self.stain == "IHC":
            h += np.float32(_COUNTERSTAIN_OF_MATRIX) * e
        for nuclei in (tumour, fibroblasts(case, stream, anatomy), lymphocytes(case, stream, anatomy)):
            paint(nuclei, window, h, e, eosin_inside=0.10)
        if self.stain == "HE":
            densities: Densities = {"H": h, "E": e}
        else:
            dab = self._dab(tumour, cells, anatomy) + np.float32(_UNSPECIFIC_DAB)
            densities = {"H": h * np.float32(_COUNTERSTAIN), "D": dab}
        drift = 1.0 + np.float32(0.06) * smooth_field(case.key(stream, _DENSITY_DRIFT), window, 120.0)
        present = anatomy.tissue * (1.0 - anatomy.lumen) * drift
        return {stain: _fold(density * present, anatomy.fold, window) for stain, density in densities.items()}

    def _dab(self, tumour: Nuclei, cells: TumourCells, anatomy: Anatomy) -> Field:
        """Density of DAB: on the membranes between tumour cells that stain, faint in strong cytoplasm."""
        case, grid = self.case, cells.grid
        if not len(tumour):
            return np.zeros((anatomy.window.height_px, anatomy.window.width_px), np.float32)
        key = case.key(self._stream, _MEMBRANES)
        # the border between two cells stains or not as a whole: keyed by the unordered pair
        first = np.minimum(cells.owner, cells.neighbour)
        second = np.maximum(cells.owner, cells.neighbour)
        code = tumour.sites.i * 100_003 + tumour.sites.j
        complete = uniform(key, code[first], code[second]) < case.dab_completeness
        strength = complete * (0.7 + 0.6 * uniform(key + 1, code[first], code[second]))
        patchy = 1.0 + 0.25 * smooth_field(key + 2, grid, 3.0)
        membrane = gaussian_filter((strength * patchy * cells.inside).astype(np.float32), 0.8)
        line = soft_step(1.15 - cells.border_um, 0.75) * anatomy.nest
        cytoplasm = np.float32(0.12 * case.dab_completeness) * anatomy.nest
        wanted = np.float32(case.dab_density) * np.maximum(resample(membrane, grid, anatomy.window), 0.0)
        return line * wanted + cytoplasm * np.float32(case.dab_density)


def halo_px(mpp: float) -> int:
    """The margin that a window needs around what is wanted of it."""
    return int(np.ceil(_HALO_UM / mpp))


def without_halo(window: Window) -> tuple[slice, slice]:
    """The part of a window that is wanted."""
    halo = halo_px(window.mpp)
    return slice(halo, -halo), slice(halo, -halo)


class TumourCells(NamedTuple):
    """The cells of the nests.

    Attributes:
        grid: a coarse window.
        inside, owner, neighbour: on the grid: in a nest; nucleus of the cell; nucleus of the next cell.
        border_um: distance to the border of the cell at full resolution; large outside nests.
        tint: how densely the cell's cytoplasm stains, mean 0 and SD 1 at full resolution.
    """

    grid: Window
    inside: BoolImage
    owner: NDArray[np.intp]
    neighbour: NDArray[np.intp]
    border_um: Field
    tint: Field


def _tumour_cells(tumour: Nuclei, anatomy: Anatomy) -> TumourCells:
    window = anatomy.window
    grid = window.aligned(_CELL_MPP)
    x, y = (axis.ravel().astype(np.float64) for axis in grid.centres())
    rows, columns = window.pixels(x, y)
    depth_um = anatomy.depth_um[np.ix_(rows, columns)]
    inside = (depth_um > -2.0) if len(tumour) > 1 else np.zeros_like(depth_um, np.bool_)
    if not inside.any():
        shape = (window.height_px, window.width_px)
        nobody = np.zeros(inside.shape, np.intp)
        return TumourCells(grid, inside, nobody, nobody, np.full(shape, 99.0, np.float32), np.zeros(shape, np.float32))
    bend_x, bend_y = (np.float32(0.9) * smooth_field(tumour.key + k, grid, 3.5) for k in (51, 52))
    cells = voronoi(tumour.sites, grid, inside, (bend_x, bend_y))
    tint = tumour.sites.normal(tumour.key + 50).astype(np.float32)[cells.owner] * inside
    # the outer cells of a nest end where it ends
    border_um = np.where(inside, np.minimum(cells.border_um, np.maximum(depth_um, 0.0)), 9.0)
    border_um = gaussian_filter(border_um.astype(np.float32), 0.6)
    return TumourCells(
        grid,
        inside,
        cells.owner,
        cells.neighbour,
        resample(border_um, grid, window),
        resample(gaussian_filter(tint, 0.6), grid, window),
    )


def _matrix(anatomy: Anatomy, cells: TumourCells) -> tuple[Field, Field]:
    """Haematoxylin and eosin of everything but nuclei: collagen, cytoplasm, walls of fat cells."""
    x, y = anatomy.window.centres()
    bundles = sample(texture("bundles", 20.0, 2.4), anatomy.fibre_u, anatomy.fibre_v)
    fibrils = sample(texture("fibrils", 9.0, 0.75), anatomy.fibre_u, anatomy.fibre_v)
    coarse = sample(texture("cytoplasm", 2.2, 2.2), x, y)
    fine = sample(texture("granules", 0.6, 0.6), x + np.float32(111.0), y + np.float32(57.0))
    # slits between bundles, frayed by fibrils
    gaps = soft_step(bundles + 0.55 * fibrils + 1.75, 0.35)
    stroma_e = (0.235 + 0.06 * bundles + 0.05 * fibrils + 0.012 * fine) * (0.15 + 0.85 * gaps)
    stroma_h = (0.04 + 0.012 * coarse) * gaps
    # stroma is looser beside a nest
    rim = 1.0 - 0.45 * soft_step(2.5 - np.abs(anatomy.depth_um + 1.8), 1.2)
    stroma_e, stroma_h = np.where(anatomy.fat, 0.20, stroma_e * rim), np.where(anatomy.fat, 0.04, stroma_h * rim)
    edge = soft_step(0.9 - cells.border_um, 0.8)
    cytoplasm_e = 0.19 + 0.022 * cells.tint + 0.022 * coarse + 0.018 * fine + 0.03 * edge
    cytoplasm_h = 0.12 + 0.018 * cells.tint + 0.022 * coarse + 0.015 * fine + 0.03 * edge
    nest = anatomy.nest * ~anatomy.fat
    e = stroma_e + nest * (cytoplasm_e - stroma_e)
    h = stroma_h + nest * (cytoplasm_h - stroma_h)
    return np.maximum(h, 0.0).astype(np.float32), np.maximum(e, 0.0).astype(np.float32)


def _fold(density: Field, fold: Field, window: Window) -> Field:
    """Adds the tissue that lies over itself."""
    if not fold.any():
        return density
    shift = tuple(round(um / window.mpp) for um in _FOLD_SHIFT_UM)
    return density + np.float32(0.85) * fold * np.roll(density, shift, axis=(0, 1))


def develop(
    densities: Densities,
    staining: Staining,
    window: Window,
    crop: tuple[slice, slice],
    key: int,
) -> RgbImage:
    """Light through stained tissue (Beer-Lambert), optics and sensor.

    Args:
        densities: how much of each stain there is.
        staining: stain vectors, gains, blur, noise and white level.
        window: where the densities lie.
        crop: the part of the window to return.
        key: of the sensor noise.

    Returns:
        Pixels of the crop, shape (height, width, 3).
    """
    x, y = window.centres()
    pixel = np.float32(TEXTURE_UM / window.mpp)  # one texture pixel a sensor pixel
    x, y = x[:, crop[1]] * pixel, y[crop[0]] * pixel
    shift = 512.0 * uniform(key, np.arange(8), np.zeros(8, np.int64)).astype(np.float32)
    white_noise = texture("sensor", 0.0, 0.0)
    shared = sample(white_noise, x + shift[0], y + shift[1])
    channels: list[NDArray[np.uint8]] = []
    for c in range(3):
        # Beer-Lambert: natural log of the light, a weighted sum of what is there
        weights = -np.log(10.0) * staining.vectors[:, c] * staining.gains
        absorbed = sum(densities[stain] * np.float32(weights[STAINS.index(stain)]) for stain in densities)
        light = np.exp(absorbed)
        light = gaussian_filter(light, staining.blur_um / window.mpp, truncate=3.0)[crop]
        own = sample(white_noise, x + shift[2 + 2 * c], y + shift[3 + 2 * c])
        noise = np.float32(staining.noise) * (np.float32(0.9) * shared + np.float32(0.19**0.5) * own)
        grey = light * np.float32(staining.white[c]) + noise
        channels.append(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    return np.stack(channels, axis=-1)
