"""A synthetic cohort on disk: slides, truth maps and the table.

What lies under the folder:

    cohort.csv                  a row a slide; `case-001-HE` and `case-001-IHC` are two sections of `case-001`
    slides/<slide_id>.tif       pyramidal tiled JPEG; the file carries its mpp
    truth/<slide_id>.npz        of each H&E slide: `tumour_fraction` float32 (rows, columns), the share of each
                                patch that shows tumour, on the grid of `patch_px` (96) at `mpp` (0.5 um/px)
                                from the upper left corner; patches that stick out are left out

Everything about a slide is keyed by (seed, case number): neither the size of the cohort nor the number of
workers changes a byte of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from her2cache.cohort import Slide, write_cohort
from her2cache.errors import ConfigError
from her2cache.synthetic.anatomy import Anatomy, AnatomyModel
from her2cache.synthetic.noise import Window
from her2cache.synthetic.section import Section, Stain, halo_px, without_halo
from her2cache.synthetic.specimen import draw_case
from her2cache.synthetic.writer import write_regions, write_whole
from her2cache.units import BoolImage, RgbImage

TRUTH_PATCH_PX = 96
TRUTH_MPP = 0.5
SCALES = (0.25, 0.5)
_MIN_WIDTH_UM = 192.0
_STAINS: tuple[Stain, ...] = ("HE", "IHC")


@dataclass(frozen=True)
class _CaseJob:
    out: Path
    seed: int
    number: int
    width_px: int
    mpp: float


def write_synthetic_cohort(
    out: Path,
    *,
    slides: int = 32,
    width_px: int = 1536,
    mpp: float = 0.5,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes a seeded cohort of H&E slides, each with its IHC sister and truth map.

    The scores 0 to 3 follow each other case by case. Nuclear size, its variation and nucleoli of the tumour
    carry the score (correlation 0.85 with the latent); colour, staining and density do not.

    Args:
        out: folder to write into; files of the same name are replaced.
        slides: number of cases, that is of H&E slides.
        width_px: width and height of every slide in px.
        mpp: scale of level 0, 0.25 or 0.5 um/px.
        seed: of everything.
        workers: processes; default the number of CPUs; 1 works in this process.
        progress: called with (cases done, cases in all) after each case.

    Returns:
        The path of `cohort.csv`.

    Raises:
        ConfigError: an argument is out of range, or the folder cannot be written.
    """
    _check(slides, width_px, mpp, seed, workers)
    jobs = [_CaseJob(out, seed, number, width_px, mpp) for number in range(1, slides + 1)]
    try:
        for folder in (out / "slides", out / "truth"):
            folder.mkdir(parents=True, exist_ok=True)
        _run(jobs, min(workers or os.cpu_count() or 1, slides), progress or _no_progress)
        table = out / "cohort.csv"
        write_cohort((row for job in jobs for row in _rows(job)), table)
    except OSError as error:
        raise ConfigError(
            f"cannot write the synthetic cohort to {out}: {error.strerror or error}; "
            "the folder may be a file, read-only or on a full disk; name another one"
        ) from error
    return table


def tumour_fraction(tumour: BoolImage, mpp: float) -> NDArray[np.float32]:
    """The share of each patch that shows tumour.

    Args:
        tumour: truth of each pixel, shape (height, width).
        mpp: scale of its pixels, um/px; a patch must be a whole number of them.

    Returns:
        float32 (rows, columns) on the grid of 96 px at 0.5 um/px from the upper left corner.
    """
    side = _patch_side(mpp)
    rows, columns = tumour.shape[0] // side, tumour.shape[1] // side
    blocks = tumour[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return blocks.mean(axis=(1, 3), dtype=np.float64).astype(np.float32)


def _check(slides: int, width_px: int, mpp: float, seed: int, workers: int | None) -> None:
    if slides < 1:
        raise ConfigError(f"a cohort of {slides} slides was asked for; ask for at least 1")
    if mpp not in SCALES:
        raise ConfigError(f"synthetic slides at {mpp} um/px were asked for; choose 0.25 or 0.5")
    if width_px * mpp < _MIN_WIDTH_UM:
        raise ConfigError(
            f"a slide {width_px} px wide at {mpp} um/px is too small to hold tissue; "
            f"ask for at least {_MIN_WIDTH_UM / mpp:.0f} px"
        )
    if seed < 0:
        raise ConfigError(f"the seed is {seed}; it must be 0 or more")
    if workers is not None and workers < 1:
        raise ConfigError(f"{workers} worker processes were asked for; ask for at least 1")


def _run(jobs: list[_CaseJob], workers: int, progress: Callable[[int, int], None]) -> None:
    if workers == 1:
        for done, job in enumerate(jobs, start=1):
            _write_case(job)
            progress(done, len(jobs))
        return
    # spawn: a fork of a process that runs Ray or torch threads may hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_write_case, job) for job in jobs]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                progress(done, len(jobs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _write_case(job: _CaseJob) -> None:
    """Writes both slides of a case and its truth map."""
    case = draw_case(job.seed, job.number)
    side_um = job.width_px * job.mpp
    model = AnatomyModel(case, side_um, side_um)
    anatomy_at = lru_cache(maxsize=1)(model.window)  # one region is all of a small slide, and serves both sections
    side = _patch_side(job.mpp)
    truth = np.zeros((job.width_px // side, job.width_px // side), np.float32)

    def region(x: int, y: int, width: int, height: int) -> Anatomy:
        return anatomy_at(Window(x * job.mpp, y * job.mpp, width, height, job.mpp).grown(halo_px(job.mpp)))

    def render(stain: Stain, x: int, y: int, width: int, height: int) -> RgbImage:
        anatomy = region(x, y, width, height)
        if stain == "HE":
            fraction = tumour_fraction(anatomy.tumour[without_halo(anatomy.window)], job.mpp)
            truth[y // side :, x // side :][: fraction.shape[0], : fraction.shape[1]] = fraction
        return Section(case, stain).render(anatomy)

    for row, stain in zip(_rows(job), _STAINS, strict=True):
        write_regions(_slide_file(job, stain), (job.width_px, job.width_px), partial(render, stain), job.mpp)
        if stain == "HE":
            _write_truth(job.out / "truth" / f"{row.slide_id}.npz", truth)


def _write_truth(path: Path, fraction: NDArray[np.float32]) -> None:
    write_whole(
        path,
        lambda unfinished: np.savez(
            unfinished,
            tumour_fraction=fraction,
            patch_px=np.int32(TRUTH_PATCH_PX),
            mpp=np.float64(TRUTH_MPP),
        ),
    )


def _patch_side(mpp: float) -> int:
    """Side of a patch of the truth map, px of a slide; regions of a slide are whole multiples of it."""
    return round(TRUTH_PATCH_PX * TRUTH_MPP / mpp)


def _case_id(job: _CaseJob) -> str:
    return f"case-{job.number:03d}"


def _slide_file(job: _CaseJob, stain: Stain) -> Path:
    return job.out / "slides" / f"{_case_id(job)}-{stain}.tif"


def _rows(job: _CaseJob) -> list[Slide]:
    """The two rows of a case in the cohort table."""
    case_id = _case_id(job)
    return [
        Slide(
            slide_id=f"{case_id}-{stain}",
            case_id=case_id,
            path=_slide_file(job, stain),
            stain=stain,
            her2_score=draw_case(job.seed, job.number).score,
            split=None,
            mpp=None,
        )
        for stain in _STAINS
    ]


def _no_progress(done: int, total: int) -> None:
    del done, total
