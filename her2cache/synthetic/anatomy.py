"""Where things lie in a specimen: tissue outline, tumour nests, fat, collagen, folds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from her2cache.synthetic.noise import Field, Window, resample, smooth_field, soft_step
from her2cache.synthetic.sites import hexagonal_sites, voronoi
from her2cache.synthetic.specimen import Case
from her2cache.units import BoolImage

_OVERVIEW_MPP = 8.0
_OVERVIEW_PART_PX = 1024
_GRID_MPP = 2.0  # anatomy is smooth over some 4 um, so it is worked out on this grid and interpolated
_ADIPOCYTE_SPACING_UM = 58.0
_ADIPOCYTE_ROUNDING_UM = 5.0
_ADIPOCYTE_WALL_UM = 4.25  # threshold on the rounded distance to the border, which is 4 um on the border itself
_NEST_SLOPE_UM = 22.0  # um that one unit of the nest potential spans at a nest's edge, about

# streams of `Case.key`, one a field
_SHAPE = 100
_OUTLINE_COARSE, _OUTLINE_FINE, _OUTLINE_FRAYED = 110, 111, 112
_NEST_COARSE, _NEST_FINE, _NEST_RAGGED = 120, 121, 122
_FAT, _ADIPOCYTES = 130, 131
_FLOW_U, _FLOW_V, _WAVES = 140, 150, 160
_FOLD, _FOLD_EXTENT = 170, 171
_LYMPHOCYTES = 180


@dataclass(frozen=True)
class Anatomy:
    """The anatomy in a window; every array has shape (height, width).

    Attributes:
        window: where it is.
        tissue: 1 inside the section, 0 on glass, soft at the edge.
        nest: 1 inside a tumour nest, soft at the edge.
        depth_um: how deep in a nest, roughly; negative in stroma.
        lumen: 1 inside an adipocyte (washed out, so blank), 0 on its wall and elsewhere.
        fat: True in adipose tissue, walls included.
        fold: 1 where the section lies double.
        inflamed: potential of lymphocyte infiltrates, mean 0 and SD 1.
        fibre_u, fibre_v: place along and across the collagen, um.
    """

    window: Window
    tissue: Field
    nest: Field
    depth_um: Field
    lumen: Field
    fat: BoolImage
    fold: Field
    inflamed: Field
    fibre_u: Field
    fibre_v: Field

    @property
    def tumour(self) -> BoolImage:
        """Truth of a pixel: it shows a tumour nest."""
        return (self.nest > 0.5) & (self.tissue > 0.5) & ~self.fat


class AnatomyModel:
    """The anatomy of a case on a section of a given size.

    Thresholds that fix area shares are found once on a coarse overview of the whole section; after that any
    window can be asked for.
    """

    def __init__(self, case: Case, width_um: float, height_um: float) -> None:
        self._case = case
        self._width_um = width_um
        self._height_um = height_um
        rng = np.random.default_rng(case.key(_SHAPE))
        self._roundness = float(rng.uniform(2.6, 3.6))
        self._shear = float(rng.uniform(-0.1, 0.1))
        self._fibre_angle = float(rng.uniform(0.0, np.pi))
        self._fold_level = float(rng.normal(0.0, 0.5))

        overview = Window(0.0, 0.0, round(width_um / _OVERVIEW_MPP), round(height_um / _OVERVIEW_MPP), _OVERVIEW_MPP)
        nest: list[Field] = []
        fat: list[Field] = []
        for part in overview.parts(_OVERVIEW_PART_PX):
            inside = self._outline_um(part) > 0
            nest.append(self._nest_potential(part)[inside])
            fat.append(self._fat_potential(part)[inside])
        self._nest_level = float(np.quantile(np.concatenate(nest), 1.0 - case.tumour_share))
        self._fat_level = float(np.quantile(np.concatenate(fat), 1.0 - case.fat_share))

    def window(self, window: Window) -> Anatomy:
        """The anatomy at the pixels of a window."""
        grid = window.aligned(_GRID_MPP, margin=16)  # wide enough for the rounding of fat cells
        depth_um = _NEST_SLOPE_UM * (self._nest_potential(grid) - np.float32(self._nest_level))
        fibre_u, fibre_v = self._fibres(grid)
        fat, lumen_um = self._adipocytes(grid)

        def fine(values: Field) -> Field:
            return resample(values, grid, window)

        fine_depth_um = fine(depth_um)
        return Anatomy(
            window=window,
            tissue=soft_step(fine(self._outline_um(grid)), 0.8),
            nest=soft_step(fine_depth_um, 0.8),
            depth_um=fine_depth_um,
            lumen=soft_step(fine(lumen_um), 0.7),
            fat=fine(fat) > 0.5,
            fold=soft_step(fine(self._fold(grid)), 0.01),
            inflamed=fine(smooth_field(self._case.key(_LYMPHOCYTES), grid, 28.0)),
            fibre_u=fine(fibre_u),
            fibre_v=fine(fibre_v),
        )

    def _outline_um(self, window: Window) -> Field:
        """Signed distance to the edge of the tissue, roughly; positive inside."""
        case = self._case
        x, y = window.centres()
        u, v = x / np.float32(self._width_um / 2) - 1.0, y / np.float32(self._height_um / 2) - 1.0
        u, v = np.abs(u + self._shear * v), np.abs(v - self._shear * u)
        radius = (u**self._roundness + v**self._roundness) ** (1.0 / self._roundness)
        extent_um = min(self._width_um, self._height_um) / 2
        return (
            extent_um * (0.97 - radius)
            + 0.10 * extent_um * (smooth_field(case.key(_OUTLINE_COARSE), window, 0.2 * extent_um) - 0.3)
            + 6.0 * smooth_field(case.key(_OUTLINE_FINE), window, 16.0)
            + 2.0 * smooth_field(case.key(_OUTLINE_FRAYED), window, 4.0)
        )

    def _nest_potential(self, window: Window) -> Field:
        case = self._case
        return (
            0.88 * smooth_field(case.key(_NEST_COARSE), window, 30.0)
            + 0.45 * smooth_field(case.key(_NEST_FINE), window, 13.0)
            + 0.06 * smooth_field(case.key(_NEST_RAGGED), window, 4.0)
        )

    def _fat_potential(self, window: Window) -> Field:
        nests = smooth_field(self._case.key(_NEST_COARSE), window, 30.0)
        return smooth_field(self._case.key(_FAT), window, 75.0) - 0.7 * nests

    def _fibres(self, window: Window) -> tuple[Field, Field]:
        """Coordinates along and across the collagen: a turned frame, bent gently, around nests as well."""
        case = self._case
        x, y = window.centres()
        cos, sin = np.float32(np.cos(self._fibre_angle)), np.float32(np.sin(self._fibre_angle))
        nests = smooth_field(case.key(_NEST_COARSE), window, 30.0)
        bend = 30.0 * smooth_field(case.key(_FLOW_V), window, 60.0) + 13.0 * nests
        waves = 2.6 * smooth_field(case.key(_WAVES), window, 11.0)
        along = x * cos + y * sin + 30.0 * smooth_field(case.key(_FLOW_U), window, 60.0)
        return along, y * cos - x * sin + bend + waves

    def _adipocytes(self, window: Window) -> tuple[Field, Field]:
        """Adipose tissue (1 inside) as a union of cells, and the depth inside their lumina, um."""
        shape = (window.height_px, window.width_px)
        nothing = np.zeros(shape, np.float32), np.full(shape, -_ADIPOCYTE_WALL_UM, np.float32)
        around = window.grown(int(3 * _ADIPOCYTE_SPACING_UM / window.mpp))
        potential = self._fat_potential(around)
        if potential.max() <= self._fat_level:
            return nothing
        sites = hexagonal_sites(self._case.key(_ADIPOCYTES), around, _ADIPOCYTE_SPACING_UM, jitter=0.3)
        is_fat = potential[around.pixels(sites.x_um, sites.y_um)] > self._fat_level
        cells = voronoi(sites, window, np.ones(shape, np.bool_))
        sigma = _ADIPOCYTE_ROUNDING_UM / window.mpp
        fat = gaussian_filter(is_fat[cells.owner].astype(np.float32), 0.5 * sigma)
        rounded_um = gaussian_filter(cells.border_um, sigma)
        edge_um = 1.25 * _ADIPOCYTE_ROUNDING_UM * (fat - 0.7)  # inverse of the slope of the blurred edge
        return fat, np.minimum(rounded_um - _ADIPOCYTE_WALL_UM, edge_um)

    def _fold(self, window: Window) -> Field:
        """Positive where the section lies double: a piece of a contour line of a smooth field."""
        case = self._case
        ridge = smooth_field(case.key(_FOLD), window, 140.0) - np.float32(self._fold_level)
        extent = smooth_field(case.key(_FOLD_EXTENT), window, 110.0)
        return np.minimum(0.05 - np.abs(ridge), 0.1 * (extent - 0.9))
