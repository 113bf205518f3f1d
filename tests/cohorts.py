"""Cohort tables and slide files for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from her2cache.cohort import check_cohort

HEADER = "slide_id,case_id,path,stain,her2_score,split,mpp"


def table(folder: Path, *lines: str, name: str = "cohort.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def slide_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((64, 64, 3), 240, np.uint8)
    tifffile.imwrite(path, pixels, tile=(32, 32), photometric="rgb", resolution=(20_000, 20_000))
    return path


def places(path: Path) -> list[tuple[int | None, str | None]]:
    return [(fault.row, fault.column) for fault in check_cohort(path)]
