"""Where cells sit and how far each reaches: jittered lattices and their Voronoi cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from her2cache.synthetic.noise import Field, Window, normal, uniform
from her2cache.units import BoolImage


class Sites(NamedTuple):
    """Places in um and the lattice point each belongs to, four arrays of shape (n,)."""

    x_um: NDArray[np.float64]
    y_um: NDArray[np.float64]
    i: NDArray[np.int64]
    j: NDArray[np.int64]

    def subset(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> Sites:
        """The sites where a mask of shape (n,) is true, or at some indices."""
        return Sites(self.x_um[chosen], self.y_um[chosen], self.i[chosen], self.j[chosen])

    def uniform(self, key: int) -> NDArray[np.float64]:
        """A uniform number for each site, the same in every window."""
        return uniform(key, self.i, self.j)

    def normal(self, key: int) -> NDArray[np.float64]:
        """A standard normal number for each site, the same in every window."""
        return normal(key, self.i, self.j)


class VoronoiCells(NamedTuple):
    """Which cell a pixel belongs to, arrays of shape (height, width).

    Attributes:
        owner: index of the nearest site; 0 where not asked for.
        neighbour: index of the second nearest site.
        border_um: distance to the border with the neighbour; 0 where not asked for.
    """

    owner: NDArray[np.intp]
    neighbour: NDArray[np.intp]
    border_um: Field


def hexagonal_sites(key: int, window: Window, spacing_um: float, *, jitter: float) -> Sites:
    """The sites of a jittered hexagonal lattice that lie in a window.

    Args:
        key: sets orientation, phase and jitter; the same key gives the same sites in every window.
        window: where to look.
        spacing_um: distance of neighbours before jitter.
        jitter: greatest shift of a site over the spacing.
    """
    turn = uniform(key, np.array([0, 1, 2]), np.array([-1, -1, -1]))
    angle = turn[0] * np.pi
    basis = spacing_um * np.array(
        [
            [np.cos(angle), np.sin(angle)],
            [np.cos(angle + np.pi / 3), np.sin(angle + np.pi / 3)],
        ]
    )
    x1, y1 = window.x_um + window.width_px * window.mpp, window.y_um + window.height_px * window.mpp
    corners = np.array([(x, y) for x in (window.x_um, x1) for y in (window.y_um, y1)])
    steps = corners @ np.linalg.inv(basis)
    low, high = np.floor(steps.min(axis=0)).astype(int) - 2, np.ceil(steps.max(axis=0)).astype(int) + 2
    i, j = (axis.ravel() for axis in np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1])))
    shift = jitter * spacing_um * np.sqrt(uniform(key + 1, i, j))
    direction = 2 * np.pi * uniform(key + 2, i, j)
    x = (i + turn[1]) * basis[0, 0] + (j + turn[2]) * basis[1, 0] + shift * np.cos(direction)
    y = (i + turn[1]) * basis[0, 1] + (j + turn[2]) * basis[1, 1] + shift * np.sin(direction)
    inside = (x >= window.x_um) & (x < x1) & (y >= window.y_um) & (y < y1)
    return Sites(x, y, i, j).subset(inside)


def voronoi(sites: Sites, window: Window, where: BoolImage, bend_um: tuple[Field, Field] | None = None) -> VoronoiCells:
    """The Voronoi cells of at least two sites, at the pixels of a window where a mask is true.

    Args:
        sites: centres of the cells.
        window: shape (height, width).
        where: which of its pixels are asked for, shape (height, width).
        bend_um: shift of each pixel in x and y before the search, which makes straight borders wavy.
    """
    x, y = window.centres()
    rows, columns = np.nonzero(where)
    pixels = np.column_stack([x[0, columns], y[rows, 0]]).astype(np.float64)
    if bend_um is not None:
        pixels += np.column_stack([shift[rows, columns] for shift in bend_um])
    tree = KDTree(np.column_stack([sites.x_um, sites.y_um]))
    distances, nearest = tree.query(pixels, k=2)
    near, far = np.asarray(distances, np.float64).T
    first, second = np.asarray(nearest, np.intp).T
    between = np.hypot(sites.x_um[second] - sites.x_um[first], sites.y_um[second] - sites.y_um[first])
    owner, neighbour = np.zeros(where.shape, np.intp), np.zeros(where.shape, np.intp)
    border = np.zeros(where.shape, np.float32)
    owner[rows, columns], neighbour[rows, columns] = first, second
    border[rows, columns] = (far**2 - near**2) / np.maximum(2 * between, 1e-6)
    return VoronoiCells(owner, neighbour, border)
