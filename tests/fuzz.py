"""Damaged slides read as `embed` reads them, each in a process that may hang or die, and held against another reader.

What is asked of a reader: it ends in time, in the memory that a healthy slide needs, with patches or a `SlideError`;
and each patch that it gives out is what tiffslide (of DICOM: OpenSlide) sees in the same damaged file at its place.
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tiffslide
from PIL import Image

from her2cache.cohort import Slide
from her2cache.errors import SlideError
from her2cache.ingest import PatchBlock, ReadOptions, ReadSummary, SlideSurvey, read_slide
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from her2cache.units import PatchBatch, RgbImage
from tests.mutants import Mutant, mutant, write_healthy

DEADLINE_S = 20.0
MEMORY_MIB = 48.0
"""What reading a slide of 256 x 192 px may add to a process; a healthy one adds 3."""
_ADDRESS_BYTES = 8 << 30
_SIDE = 32
_SCALES = (0.5, 1.0, 0.7)  # of level 0, of level 1, and between them


@dataclass(frozen=True)
class Finding:
    """What became of a damaged slide.

    Attributes:
        number, container, change: of the mutant.
        kind: name of the error that refused it; or "whole", "in part" (patches were left out), or "altered" (patches
            that differ from the healthy slide's, as they do in the file).
        reason: of an error, or of the first patch that was left out.
        seconds: that reading took.
        mib: that reading added to the process at its peak.
        patches, left_out, altered: planned, left out, and given out though they differ from the healthy slide's.
        faults: what the reader must not do.
        notes: where OpenSlide sees something else in a TIFF.
    """

    number: int
    container: str
    change: str
    kind: str
    reason: str = ""
    seconds: float = 0.0
    mib: float = 0.0
    patches: int = 0
    left_out: int = 0
    altered: int = 0
    faults: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])


def fuzz(folder: Path, seed: int, numbers: Sequence[int], workers: int = 2) -> Iterator[Finding]:
    """Reads the mutants of some numbers, in any order.

    Args:
        folder: for the files.
        seed: of the mutants.
        numbers: which.
        workers: processes.
    """
    healthy = write_healthy(folder / "healthy")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fuzz"])
    todo, hands = deque(numbers), list[_Hand]()
    try:
        hands += [_Hand(context, folder / f"worker-{k}", seed) for k in range(min(workers, len(numbers)))]
        while todo or any(hand.number is not None for hand in hands):
            for hand in hands:
                if hand.number is None and todo:
                    hand.give(todo.popleft())
            wait([hand.ear for hand in hands if hand.number is not None], timeout=0.5)
            for hand in hands:
                if (finding := hand.take(healthy)) is not None:
                    yield finding
    finally:
        for hand in hands:
            hand.end()


class _Hand:
    """A process that reads one mutant after the other; a new one takes its place where it dies or hangs."""

    def __init__(self, context: Any, folder: Path, seed: int) -> None:
        self._context, self._folder, self._seed = context, folder, seed
        self.number: int | None = None
        self._since = 0.0
        self._start()

    def _start(self) -> None:
        self.ear, mouth = self._context.Pipe()
        self._process = self._context.Process(target=_work, args=(mouth, self._folder, self._seed), daemon=True)
        self._process.start()
        mouth.close()
        self._stage = "start"
        if not self.ear.poll(120) or self.ear.recv() != "ready":
            raise RuntimeError("a worker does not start")

    def give(self, number: int) -> None:
        self.number, self._since, self._stage = number, time.monotonic(), "start"
        self.ear.send(number)

    def take(self, healthy: dict[str, Path]) -> Finding | None:
        """A finding, when there is one."""
        if self.number is None:
            return None
        fault = ""
        try:
            while self.ear.poll():
                said = self.ear.recv()
                if isinstance(said, Finding):
                    self.number = None
                    return said
                self._stage, self._since = said, time.monotonic()
        except (EOFError, ConnectionError):
            self._process.join()
            fault = f"crash while {self._stage} (exit {self._process.exitcode})"
        if not fault and time.monotonic() - self._since > DEADLINE_S:
            fault = f"hang while {self._stage}"
        if not fault:
            return None
        self.end()
        made = mutant(healthy, self._seed, self.number)
        self.number = None
        self._start()
        blame = [] if "OpenSlide" in fault else [fault]  # which is asked to learn, not to judge
        return Finding(made.number, made.container, made.change, fault, faults=blame, notes=[fault])

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.ear.close()


def _work(mouth: Connection, folder: Path, seed: int) -> None:
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    healthy = write_healthy(folder / "healthy")
    whole: dict[tuple[str, float], _Reading] = {}
    _read(healthy["svs-jpeg"], 0.5)  # what is imported and built once is not the mutants' doing
    _read(healthy["dicom-jpeg"], 0.5)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_BYTES, _ADDRESS_BYTES))
    mouth.send("ready")
    while True:
        try:
            number = mouth.recv()
        except EOFError:
            return
        made = mutant(healthy, seed, number)
        mpp = _SCALES[number // len(healthy) % len(_SCALES)]
        if (made.container, mpp) not in whole:
            whole[made.container, mpp] = _read(healthy[made.container], mpp)
        mouth.send("reading")
        mouth.send(examine(folder, made, mpp, whole[made.container, mpp], mouth.send))


@dataclass(frozen=True)
class _Reading:
    survey: SlideSurvey
    patches: PatchBatch
    ok: np.ndarray
    summary: ReadSummary


def _read(path: Path, mpp: float) -> _Reading:
    options = ReadOptions(PatchSpec(mpp, _SIDE, _SIDE), preset("HE"), block=16, max_bad_patches=1.0)
    survey, *rest = read_slide(Slide("s", "c", path, "HE"), options)
    blocks = [(item.patches.copy(), item.ok) for item in rest if isinstance(item, PatchBlock)]
    assert isinstance(survey, SlideSurvey)
    assert isinstance(rest[-1], ReadSummary)
    patches, ok = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return _Reading(survey, patches, ok, rest[-1])


def examine(folder: Path, made: Mutant, mpp: float, whole: _Reading, say: Any = lambda _: None) -> Finding:
    """Reads a mutant as `embed` does, and compares.

    Args:
        folder: for its file.
        made: the mutant.
        mpp: of the patches.
        whole: the healthy slide, read the same way.
        say: told before the other readers begin.
    """
    (folder / "mutant").mkdir(parents=True, exist_ok=True)
    path = folder / "mutant" / f"m{made.suffix}"  # alone, as DICOM looks at what lies beside
    path.write_bytes(made.content)
    found = Finding(made.number, made.container, made.change, "")
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, began = _status("VmRSS"), time.perf_counter()
    reading: _Reading | None = None
    try:
        reading = _read(path, mpp)
        kind, reason = "whole", ""
    except SlideError as error:
        kind, reason = type(error).__name__, str(error)
    except Exception as error:  # noqa: BLE001 - that is what we look for
        kind, reason = "unforeseen", f"{type(error).__name__}: {error}"
        found.faults.append(f"unforeseen {reason}")
    found = replace(found, seconds=time.perf_counter() - began, mib=(_status("VmHWM") - before) / 1024)
    if found.mib > MEMORY_MIB:
        found.faults.append(f"took {found.mib:.0f} MiB")
    if "MemoryError" in reason or "\n" in reason:
        found.faults.append(f"reason: {reason}")
    if reading is None:
        return replace(found, kind=kind, reason=reason)
    altered = _altered(reading, whole)
    left_out = int((~reading.ok).sum())
    kind = "altered" if altered else "in part" if left_out else kind
    reason = reading.summary.reasons[0] if left_out else ""
    say("comparing")
    if made.container.startswith("dicom"):
        found.faults.extend(_against_openslide(path, reading, blame=True))
    else:
        found.faults.extend(_against_tiffslide(path, reading))
        say("asking OpenSlide")
        found.notes.extend(_against_openslide(path, reading, blame=False))
    return replace(found, kind=kind, reason=reason, patches=len(reading.ok), left_out=left_out, altered=altered)


def _status(name: str) -> int:
    """A figure of this process, KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise AssertionError(name)


def _altered(reading: _Reading, whole: _Reading) -> int:
    """How many patches are given out that the healthy slide does not have at their place."""
    known = dict(zip(map(tuple, whole.survey.coords.tolist()), whole.patches, strict=True))
    places = map(tuple, reading.survey.coords.tolist())
    each = zip(places, reading.patches, reading.ok, strict=True)
    return sum(bool(ok) and not (at in known and np.array_equal(patch, known[at])) for at, patch, ok in each)


def _windows(reading: _Reading) -> Iterator[tuple[int, np.ndarray, tuple[int, int, int, int]]]:
    """Of each patch that is given out: its index, its box (x0, y0, x1, y1) in level px, and the pixels it touches."""
    read = reading.survey.provenance["read"]
    side = _SIDE * read["factor"]
    for k in np.flatnonzero(reading.ok).tolist():
        corner = np.rint(reading.survey.coords[k] / read["downsample"] / side) * side
        box = np.array([*corner, *(corner + side)])
        near = np.where(np.abs(box - np.rint(box)) < 1e-6, np.rint(box), box)
        x0, y0, x1, y1 = (int(v) for v in (*np.floor(near[:2]), *np.ceil(near[2:])))
        yield k, box, (x0, y0, x1, y1)


def _against_tiffslide(path: Path, reading: _Reading) -> list[str]:
    read = reading.survey.provenance["read"]
    level, downsample = read["level"], read["downsample"]
    try:
        slide = tiffslide.TiffSlide(path)
        located = (slide.properties.get("tiffslide.series-composition") or {}).get("located_series") or {}
    except Exception as error:  # noqa: BLE001 - so this slide should have been refused
        return [f"given out, and tiffslide refuses it: {error}"]
    top, left = next(iter(located.values()), [(0, 0)])[0][:2]  # of an SCN it counts from the corner of the glass
    with slide:
        page = slide.ts_tifffile.series[slide.properties["tiffslide.series-index"]].levels[level].pages[0]
        for k, box, (x0, y0, x1, y1) in _windows(reading):
            corner = int(left + (x0 + 0.5) * downsample), int(top + (y0 + 0.5) * downsample)
            try:
                region = np.array(slide.read_region(corner, level, (x1 - x0, y1 - y0), as_array=True))[..., :3]
            except NotImplementedError:  # Aperio's JPEG 2000 with less chroma
                return _against_openslide(path, reading, blame=True)
            except Exception as error:  # noqa: BLE001 - so this patch should have been left out
                return [f"patch {k} is given out, and tiffslide raises {type(error).__name__}: {error}"]
            if page.compression == 33003:
                region = np.asarray(Image.fromarray(region, "YCbCr").convert("RGB"))
            region = _with_white(region, page, x0, y0)
            if not np.array_equal(_scaled(region, box - [x0, y0, x0, y0]), reading.patches[k]):
                worst = np.abs(_scaled(region, box - [x0, y0, x0, y0]).astype(int) - reading.patches[k]).max()
                return [f"patch {k} differs from tiffslide's by up to {worst}"]
    return []


def _with_white(region: RgbImage, page: Any, x0: int, y0: int) -> RgbImage:
    """Segments that the file leaves out are black to tiffslide."""
    region = np.array(region)
    width, height = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
    columns = -(-page.imagewidth // width)
    for index, count in enumerate(page.databytecounts):
        if count == 0:
            x, y = index % columns * width - x0, index // columns * height - y0
            region[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)] = 255
    return region


def _scaled(region: RgbImage, box: np.ndarray) -> RgbImage:
    if region.shape[0] == region.shape[1] == _SIDE:
        return region
    size = [region.shape[1], region.shape[0]] * 2
    bounds = tuple(float(v) for v in np.clip(box, 0, size))
    return np.asarray(Image.fromarray(region).resize((_SIDE, _SIDE), Image.Resampling.BOX, box=bounds))


def _against_openslide(path: Path, reading: _Reading, *, blame: bool) -> list[str]:
    """Where OpenSlide differs. What it refuses as a whole counts only where it is the reader (`blame`)."""
    read = reading.survey.provenance["read"]
    limit = 0 if reading.survey.provenance["reader"] == "openslide/dicom" else 3
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        return [f"OpenSlide refuses it: {error}"] if not blame else [f"only ours opens it: {error}"]
    with suppress(openslide.OpenSlideError), slide:
        try:
            factor = slide.level_downsamples[read["level"]]
            left, top = (int(slide.properties.get(f"openslide.bounds-{axis}", 0)) for axis in "xy")
            left, top = (0, 0) if blame else (left, top)  # of an SCN it counts from the corner of the glass
            for k, box, (x0, y0, x1, y1) in _windows(reading):
                corner = left + round(x0 * factor), top + round(y0 * factor)
                region = np.asarray(slide.read_region(corner, read["level"], (x1 - x0, y1 - y0))).astype(int)
                alpha = region[..., 3:]
                region = ((region[..., :3] * alpha + 255 * (255 - alpha)) // 255).astype(np.uint8)
                differ = np.abs(_scaled(region, box - [x0, y0, x0, y0]).astype(int) - reading.patches[k]).max()
                if differ > limit:
                    return [f"patch {k} differs from OpenSlide's by up to {differ}"]
        except IndexError:
            return ["OpenSlide has no such level"]
        except openslide.OpenSlideError as error:
            return [f"patch is given out, and OpenSlide raises {error}"]
    return []
