"""Random fields and cells are functions of a place, not of the window they are asked for in."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from her2cache.synthetic.noise import Window, make_key, smooth_field, uniform
from her2cache.synthetic.sites import hexagonal_sites, voronoi

keys = st.integers(0, 2**32).map(make_key)
offsets = st.integers(0, 400)


@settings(max_examples=25, deadline=None)
@given(key=keys, dx=offsets, dy=offsets, sigma_um=st.floats(2.0, 60.0))
def test_a_field_is_the_same_in_every_window(key: int, dx: int, dy: int, sigma_um: float) -> None:
    whole = smooth_field(key, Window(-50.0, 10.0, 500, 480, 0.5), sigma_um)
    part = smooth_field(key, Window(-50.0 + 0.5 * dx, 10.0 + 0.5 * dy, 80, 60, 0.5), sigma_um)
    np.testing.assert_allclose(part, whole[dy : dy + 60, dx : dx + 80], atol=1e-3)


@settings(max_examples=10, deadline=None)
@given(key=keys)
def test_a_field_is_standard_normal(key: int) -> None:
    field = smooth_field(key, Window(0.0, 0.0, 600, 600, 2.0), 4.0)
    assert abs(field.mean()) < 0.05
    assert abs(field.std() - 1) < 0.05


@settings(max_examples=10, deadline=None)
@given(key=keys)
def test_numbers_of_a_lattice_are_uniform_and_independent(key: int) -> None:
    grid = np.arange(-100, 100)
    values = uniform(key, grid[None, :], grid[:, None])
    assert ((values > 0) & (values < 1)).all()
    assert np.abs(np.histogram(values, 10, (0, 1))[0] / values.size - 0.1).max() < 0.01
    for other in (values[1:, :-1], values[:-1, 1:], uniform(key + 1, grid[None, :], grid[:, None])[:-1, :-1]):
        assert abs(np.corrcoef(values[:-1, :-1].ravel(), other.ravel())[0, 1]) < 0.03


@settings(max_examples=25, deadline=None)
@given(key=keys, dx=offsets, dy=offsets, spacing_um=st.floats(6.0, 30.0), jitter=st.floats(0.0, 0.45))
def test_sites_are_the_same_in_every_window(key: int, dx: int, dy: int, spacing_um: float, jitter: float) -> None:
    whole = hexagonal_sites(key, Window(0.0, 0.0, 600, 600, 0.5), spacing_um, jitter=jitter)
    part_window = Window(0.5 * dx, 0.5 * dy, 150, 120, 0.5)
    part = hexagonal_sites(key, part_window, spacing_um, jitter=jitter)
    inside = (np.abs(whole.x_um - part_window.x_um - 37.5) <= 37.5) & (
        np.abs(whole.y_um - part_window.y_um - 30.0) <= 30.0
    )
    assert sorted(zip(part.x_um, part.y_um, strict=True)) == sorted(
        zip(whole.x_um[inside], whole.y_um[inside], strict=True)
    )
    if len(whole.x_um) > 300:
        density = len(whole.x_um) / 300.0**2
        assert abs(density * spacing_um**2 * np.sqrt(3) / 2 - 1) < 0.15


@settings(max_examples=10, deadline=None)
@given(key=keys)
def test_voronoi_cells_agree_with_all_distances(key: int) -> None:
    window = Window(0.0, 0.0, 40, 30, 1.0)
    sites = hexagonal_sites(key, window.grown(20), 9.0, jitter=0.3)
    where = np.ones((30, 40), np.bool_)
    where[:5] = False
    cells = voronoi(sites, window, where)
    for row, column in [(6, 3), (17, 22), (29, 39)]:
        place = np.array([column + 0.5, row + 0.5])
        centres = np.column_stack([sites.x_um, sites.y_um])
        first, second = np.argsort(np.linalg.norm(centres - place, axis=1))[:2]
        assert (cells.owner[row, column], cells.neighbour[row, column]) == (first, second)
        middle, normal = (centres[first] + centres[second]) / 2, centres[second] - centres[first]
        border = (middle - place) @ normal / np.linalg.norm(normal)
        assert abs(cells.border_um[row, column] - border) < 1e-3
    assert not cells.border_um[:5].any()
