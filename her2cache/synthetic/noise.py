"""Random fields that can be asked for anywhere: a value depends on a key and a place, never on the window.

All places are in um from the upper left corner of a section, so the same tissue can be rendered at any
scale and window by window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.special import ndtri

Field = NDArray[np.floating[Any]]
"""One number a pixel, shape (height, width); float32 in fact, which numpy's types lose in arithmetic."""

TEXTURE_UM = 0.5  # side of a texture pixel
_TEXTURE_PX = 1024  # a power of two, so that wrapping is a bit mask
_SMOOTH_GAIN = np.float32(2.0 * np.sqrt(np.pi))  # SD of white noise after a Gaussian of sigma 1 is 1 / this


@dataclass(frozen=True)
class Window:
    """A rectangle of a section: upper left corner in um, size in px, scale in um/px."""

    x_um: float
    y_um: float
    width_px: int
    height_px: int
    mpp: float

    def grown(self, margin_px: int) -> Window:
        """The window with a margin on every side."""
        shift_um = margin_px * self.mpp
        return Window(
            self.x_um - shift_um,
            self.y_um - shift_um,
            self.width_px + 2 * margin_px,
            self.height_px + 2 * margin_px,
            self.mpp,
        )

    def aligned(self, mpp: float, margin: int = 2) -> Window:
        """A coarser window around this one whose pixels lie on a grid that does not depend on this one."""
        x0, y0 = (int(np.floor(start / mpp)) - margin for start in (self.x_um, self.y_um))
        x1 = int(np.ceil((self.x_um + self.width_px * self.mpp) / mpp)) + margin
        y1 = int(np.ceil((self.y_um + self.height_px * self.mpp) / mpp)) + margin
        return Window(x0 * mpp, y0 * mpp, x1 - x0, y1 - y0, mpp)

    def parts(self, side_px: int) -> list[Window]:
        """The window in pieces of at most `side_px` squared."""
        return [
            Window(
                self.x_um + x * self.mpp,
                self.y_um + y * self.mpp,
                min(side_px, self.width_px - x),
                min(side_px, self.height_px - y),
                self.mpp,
            )
            for y in range(0, self.height_px, side_px)
            for x in range(0, self.width_px, side_px)
        ]

    def centres(self) -> tuple[Field, Field]:
        """x of the columns, shape (1, width), and y of the rows, shape (height, 1), in um."""
        x = self.x_um + (np.arange(self.width_px) + 0.5) * self.mpp
        y = self.y_um + (np.arange(self.height_px) + 0.5) * self.mpp
        return x.astype(np.float32)[None, :], y.astype(np.float32)[:, None]

    def pixels(self, x_um: NDArray[np.float64], y_um: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Row and column of the pixel that holds each place; places outside go to the nearest edge."""
        rows = np.clip((y_um - self.y_um) / self.mpp, 0, self.height_px - 1).astype(np.intp)
        columns = np.clip((x_um - self.x_um) / self.mpp, 0, self.width_px - 1).astype(np.intp)
        return rows, columns


def make_key(*parts: int) -> int:
    """A key of a tuple of non-negative integers; 63 bits, so that small numbers may be added to it."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def uniform(key: int, ix: NDArray[np.int64], iy: NDArray[np.int64]) -> NDArray[np.float64]:
    """A uniform number in (0, 1) for each lattice point, by the mixer of SplitMix64 (Steele et al. 2014)."""
    h = np.uint64(key) + ix.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    h = _mix(h) + iy.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    return ((_mix(h) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal(key: int, ix: NDArray[np.int64], iy: NDArray[np.int64]) -> NDArray[np.float64]:
    """A standard normal number for each lattice point."""
    return ndtri(uniform(key, ix, iy))


def _mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def smooth_field(key: int, window: Window, sigma_um: float) -> Field:
    """A stationary Gaussian field of mean 0 and SD 1, smooth over `sigma_um`, at the pixels of a window.

    White noise on a lattice of step sigma, filtered by a Gaussian of the same sigma, interpolated bicubically.
    """
    lattice = window.aligned(sigma_um, margin=8)  # Gaussian reaches 4 steps, the bicubic kernel 2
    ix = np.arange(lattice.width_px)[None, :] + round(lattice.x_um / sigma_um)
    iy = np.arange(lattice.height_px)[:, None] + round(lattice.y_um / sigma_um)
    white = normal(key, ix, iy).astype(np.float32)
    return resample(gaussian_filter(white, 1.0, mode="nearest") * _SMOOTH_GAIN, lattice, window)


def soft_step(signed: Field, width: float) -> Field:
    """0 below zero and 1 above it, linear within a width on both sides."""
    return np.clip(signed * np.float32(0.5 / width) + np.float32(0.5), 0.0, 1.0)


def resample(values: Field, source: Window, target: Window) -> Field:
    """Bicubic interpolation of a field from the pixels of one window to those of a finer one inside it."""
    left = (target.x_um - source.x_um) / source.mpp
    top = (target.y_um - source.y_um) / source.mpp
    width, height = (n * target.mpp / source.mpp for n in (target.width_px, target.height_px))
    image = Image.fromarray(values).resize(
        (target.width_px, target.height_px),
        Image.Resampling.BICUBIC,
        box=(left, top, left + width, top + height),
    )
    return np.asarray(image)


@lru_cache(maxsize=16)
def texture(name: str, sigma_u_um: float, sigma_v_um: float) -> Field:
    """A periodic Gaussian texture of SD 1, smooth over sigma_u along rows and sigma_v along columns.

    It is the same for all slides: they differ in where and how they sample it.
    """
    rng = np.random.default_rng([*name.encode()])
    white = rng.standard_normal((_TEXTURE_PX, _TEXTURE_PX), dtype=np.float32)
    fu = np.fft.rfftfreq(_TEXTURE_PX, TEXTURE_UM)[None, :]
    fv = np.fft.fftfreq(_TEXTURE_PX, TEXTURE_UM)[:, None]
    kernel = np.exp(-2.0 * np.pi**2 * ((fu * sigma_u_um) ** 2 + (fv * sigma_v_um) ** 2)).astype(np.float32)
    smooth = np.fft.irfft2(np.fft.rfft2(white) * kernel, s=white.shape)
    result = ((smooth - smooth.mean()) / smooth.std()).astype(np.float32)
    result.flags.writeable = False
    return result


def sample(periodic: Field, u_um: Field, v_um: Field) -> Field:
    """A periodic texture at places (u, v), nearest pixel; u and v broadcast against each other."""
    mask = np.int32(_TEXTURE_PX - 1)
    columns = np.floor(u_um * np.float32(1.0 / TEXTURE_UM)).astype(np.int32) & mask
    rows = np.floor(v_um * np.float32(1.0 / TEXTURE_UM)).astype(np.int32) & mask
    return periodic[rows, columns]
