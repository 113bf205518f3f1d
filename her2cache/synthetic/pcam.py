"""Synthetic patches in PatchCamelyon's form: is there tumour in the middle of the patch?

What lies under the folder, as PatchCamelyon is published (github.com/basveeling/pcam), but uncompressed:

    camelyonpatch_level_2_split_{train,valid,test}_x.h5     `x` uint8 (n, 96, 96, 3) at 0.97 um/px
    camelyonpatch_level_2_split_{train,valid,test}_y.h5     `y` uint8 (n, 1, 1, 1): 1 where the centre 32 px show tumour

Every case gives as many patches with tumour as without, so staining does not tell the classes apart; parts share no
case with one another or with the synthetic cohort. Nothing but the seed and the number of patches changes a byte.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from her2cache.errors import ConfigError
from her2cache.synthetic.anatomy import AnatomyModel
from her2cache.synthetic.noise import Window
from her2cache.synthetic.section import Section, halo_px, without_halo
from her2cache.synthetic.specimen import draw_case
from her2cache.synthetic.writer import write_whole
from her2cache.units import BoolImage, PatchBatch

Scalar = TypeVar("Scalar", bound=np.generic)

PX = 96
MPP = 0.97
CENTRE_PX = 32

STEP = 16
"""Numbers of training patches are multiples of it: the other parts have an eighth each, and parts two equal classes."""

_SIDE = 8  # patches along a side of the piece of tissue that is rendered of a case
_SECTION = 1.6  # side of the section over that of the piece, which lies in its middle: little glass
_TUMOUR_SHARES = (0.10, 0.30)  # so that as many patches are without tumour; a lymph node has less of it than a biopsy
_MIN_TISSUE = 0.5
_FIRST_CASE = {"train": 1_000_001, "valid": 2_000_001, "test": 3_000_001}  # far above those of a cohort
_PICK = 400  # stream of `Case.key`


@dataclass(frozen=True)
class _CaseJob:
    seed: int
    number: int


def write_synthetic_pcam(
    out: Path,
    patches: int,
    *,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes seeded patches with labels: training, and an eighth as many each for validation and test.

    Args:
        out: folder to write into; files of the same name are replaced.
        patches: for training, a multiple of 16.
        seed: of everything.
        workers: processes; default the number of CPUs; 1 works in this process.
        progress: called with (patches done, patches in all) after each case.

    Returns:
        The folder.

    Raises:
        ConfigError: an argument is out of range, or the folder cannot be written.
    """
    check_patches(patches)
    if seed < 0:
        raise ConfigError(f"the seed is {seed}; it must be 0 or more")
    if workers is not None and workers < 1:
        raise ConfigError(f"{workers} worker processes were asked for; ask for at least 1")
    sizes = {"train": patches, "valid": patches // 8, "test": patches // 8}
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if progress:
            progress(done, sum(sizes.values()))

    workers = workers or os.cpu_count() or 1
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _processes(workers) as pool:
            for part, n in sizes.items():
                jobs = (_CaseJob(seed, number) for number in count(_FIRST_CASE[part]))
                with closing(_rendered(jobs, pool, ahead=workers + 1)) as cases:
                    _write_part(out, part, n, cases, advance)
    except OSError as error:
        raise ConfigError(
            f"cannot write the synthetic patches to {out}: {error.strerror or error}; "
            "the folder may be a file, read-only or on a full disk; name another one"
        ) from error
    return out


def check_patches(patches: int) -> None:
    """Says whether so many training patches can be written.

    Raises:
        ConfigError: it is no multiple of 16.
    """
    if patches < STEP or patches % STEP:
        raise ConfigError(f"{patches} PCam training patches were asked for; ask for a multiple of {STEP}")


def has_tumour(tumour: BoolImage) -> NDArray[np.bool_]:
    """Whether the centre of each patch shows tumour: (height, width) of pixels -> (rows, columns) of patches."""
    edge = (PX - CENTRE_PX) // 2
    return np.any(_patches(tumour)[:, :, edge:-edge, edge:-edge], axis=(2, 3))


def _write_part(
    out: Path, part: str, n: int, cases: Iterator[tuple[PatchBatch, PatchBatch]], advance: Callable[[int], None]
) -> None:
    """Both files of a part; neither has its name before the patches are complete."""

    def write_patches(path: Path) -> None:
        with h5py.File(path, "w") as file:
            x = file.create_dataset("x", (n, PX, PX, 3), np.uint8)
            start = 0
            while start < n:
                without, within = next(cases)
                pairs = min(len(without), len(within), (n - start) // 2)
                x[start : start + 2 * pairs : 2], x[start + 1 : start + 2 * pairs : 2] = without[:pairs], within[:pairs]
                start += 2 * pairs
                advance(2 * pairs)

    def write_labels(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file["y"] = (np.arange(n, dtype=np.uint8) % 2).reshape(n, 1, 1, 1)

    for member, write in (("x", write_patches), ("y", write_labels)):
        write_whole(out / f"camelyonpatch_level_2_split_{part}_{member}.h5", write)


@contextmanager
def _processes(workers: int) -> Generator[ProcessPoolExecutor | None]:
    """None, which works in this process, for one worker."""
    if workers == 1:
        yield None
        return
    # spawn: a fork of a process that runs Ray or torch threads may hang
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _rendered(
    jobs: Iterator[_CaseJob], pool: ProcessPoolExecutor | None, ahead: int
) -> Generator[tuple[PatchBatch, PatchBatch]]:
    """`_render` of each job, in order; `ahead` of them are begun at once."""
    if pool is None:
        yield from map(_render, jobs)
        return
    pending = deque[Future[tuple[PatchBatch, PatchBatch]]]()
    try:
        while True:
            pending += [pool.submit(_render, next(jobs)) for _ in range(ahead - len(pending))]
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _render(job: _CaseJob) -> tuple[PatchBatch, PatchBatch]:
    """The patches of a case without and with tumour, each uint8 (n, 96, 96, 3) in random order."""
    case = draw_case(job.seed, job.number)
    rng = np.random.default_rng(case.key(_PICK))
    case = replace(case, tumour_share=float(rng.uniform(*_TUMOUR_SHARES)))
    side_um = _SIDE * PX * MPP
    model = AnatomyModel(case, _SECTION * side_um, _SECTION * side_um)
    margin_um = (_SECTION - 1) / 2 * side_um
    anatomy = model.window(Window(margin_um, margin_um, _SIDE * PX, _SIDE * PX, MPP).grown(halo_px(MPP)))
    inside = without_halo(anatomy.window)
    is_tissue = _patches(anatomy.tissue[inside] > 0.5).mean(axis=(2, 3)) >= _MIN_TISSUE  # (rows, columns)
    is_tumour = has_tumour(anatomy.tumour[inside])
    pixels = _patches(Section(case, "HE").render(anatomy))  # (rows, columns, px, px, 3)
    without, within = (rng.permutation(pixels[is_tissue & (is_tumour == label)]) for label in (False, True))
    return without, within


def _patches(image: NDArray[Scalar]) -> NDArray[Scalar]:
    """(height, width, ...) -> (rows, columns, px, px, ...)."""
    height, width = image.shape[:2]
    return image.reshape(height // PX, PX, width // PX, PX, *image.shape[2:]).swapaxes(1, 2)
