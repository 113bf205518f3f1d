"""What Ray Tune costs a sweep: wall time over the same fits alone, its fixed cost, and the memory of a trial.

Wall time: 12 fits of about 20 s, one core each. Alone, they run one after the other in one process, without Ray, on one
thread; that time divided by the number of workers is the floor. As busy cores may slow each other down (memory
bandwidth, turbo), half of the fits are also run as plain processes side by side, one a worker. A sweep is timed with
reading its inputs and the start of Ray and of its processes, without imports, selection and tests.
Half of the fits run alone before the sweep and half after it; a round takes minutes, so there is one.

Fixed cost: sweeps of 4 and of 44 fits of one epoch of one batch; a line through the medians of 3 rounds gives the cost
of a sweep, and of a fit.

Memory: RssAnon of a trial's process at its peak over a process that has imported torch and Ray, on a store of several
hundred MB; features are memory maps and count as file pages, not as anonymous memory.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from benchmarks.harness import Row, main
from cluster.capacity import Terms, read_capacity
from cluster.fits import Fits
from cluster.limits import available_cpus
from cluster.progress import SweepProgress
from cluster.resources import ray_session
from her2cache.cohort import Slide, write_cohort
from her2cache.embedder import EmbedderSpec, FeatureSpace
from her2cache.store.reader import FeatureStore
from her2cache.store.writer import SlideShape
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from trainers.config import read_experiment
from trainers.study import open_study

SLIDES, PATCHES, DIM = 64, 4000, 1024
"""500 MB of features."""

FITS, FIT_SECONDS = 12, 20.0

EXPERIMENT = """\
[data]
cohort = "cohort.csv"
store = "store"
embedders = ["net"]
[splits]
folds = 2
test_slides = 8
[bags]
per_epoch = {bags}
validation = 200
[training]
epochs = {epochs}
batch_bags = {batch}
learning_rate = [{rates}]
weight_decay = [1e-5]
"""


def write_store(folder: Path) -> None:
    """Writes cohort.csv and a store of one space."""
    slides = [Slide(f"s{i:02d}", f"c{i:02d}", folder / f"s{i:02d}.svs", "HE", her2_score=i % 4) for i in range(SLIDES)]
    write_cohort(slides, folder / "cohort.csv")
    store = FeatureStore.create(folder / "store")
    spec = EmbedderSpec("net", DIM, 96, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "0" * 64)
    space = FeatureSpace(PatchSpec(), preset("HE"), spec, views=1)
    store.add_space(space)
    coords = np.stack([np.arange(PATCHES) * 96, np.zeros(PATCHES)], axis=1).astype(np.int32)
    rng = np.random.default_rng(0)
    for slide in slides:
        writer = store.writer(SlideShape(slide.slide_id, space.key, coords, 1, DIM, "float16", 96.0, {}))
        features = np.maximum(rng.standard_normal((1, PATCHES, DIM), np.float32) - 0.67, 0)
        writer.write(0, features.astype(np.float16), np.ones(PATCHES, np.bool_))
        writer.commit({})


def write_experiment(folder: Path, name: str, fits: int, epochs: int, bags: int, batch: int = 64) -> Path:
    """An experiment of so many fits of one run each, on two folds."""
    rates = ", ".join(f"{1e-4 * (1 + k)!r}" for k in range(fits // 2))
    path = folder / f"{name}.toml"
    path.write_text(EXPERIMENT.format(bags=bags, epochs=epochs, batch=batch, rates=rates))
    return path


def sweep(experiment: Path, out: Path) -> float:
    """Seconds of all fits under Tune on a Ray of their own."""
    start = time.perf_counter()
    study = open_study(read_experiment(experiment))
    out.mkdir()
    with ray_session():
        failures = Fits(study, 1, out).train(Terms(1), read_capacity(), SweepProgress())
        seconds = time.perf_counter() - start
    assert not failures, failures
    return seconds


_ALONE = """
import sys, time
from pathlib import Path
import torch
from trainers.config import read_experiment
from trainers.features import stored_features
from trainers.fit import fit
from trainers.study import open_study
torch.set_num_threads(1)
experiment, out, which = Path(sys.argv[1]), Path(sys.argv[2]), [int(k) for k in sys.argv[3].split(",")]
study = open_study(read_experiment(experiment))
plans = study.plans(1)
start = time.perf_counter()
for plan in [plans[k] for k in which]:
    slides = [s.slide_id for s in plan.training + plan.validation]
    fit(plan, stored_features(study.experiment.data.store, plan.space_key, slides), out)
print(time.perf_counter() - start)
"""


def alone(experiment: Path, out: Path, fits: Sequence[int], side_by_side: int = 1) -> float:
    """Seconds of some fits without Ray, dealt to so many processes; imports are left out."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _ALONE, str(experiment), str(out), ",".join(map(str, fits[k::side_by_side]))],
            stdout=subprocess.PIPE,
            text=True,
        )
        for k in range(side_by_side)
    ]
    answers = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes)
    return max(float(answer) for answer in answers)


def calibrated(folder: Path) -> int:
    """Epochs of 640 bags that make a fit of about `FIT_SECONDS`."""
    probe = 4
    seconds = alone(write_experiment(folder, "probe", 2, probe, 640), folder / "probe", [0, 1]) / 2
    return max(2, round(FIT_SECONDS * probe / seconds))


def wall_rows(folder: Path) -> list[Row]:
    workers, half = available_cpus(), FITS // 2
    experiment = write_experiment(folder, "wall", FITS, calibrated(folder), 640)
    first = alone(experiment, folder / "alone", range(half))
    swept = sweep(experiment, folder / "sweep")
    single = first + alone(experiment, folder / "alone", range(half, FITS))
    beside = 2 * alone(experiment, folder / "beside", range(half), workers)
    floor, each = single / workers, single / FITS
    return [
        Row(
            f"wall: {FITS} fits of {each:.0f} s under Tune over them alone / {workers} workers",
            swept, "s", floor, swept / floor, "lower", 1.15,
        ),
        Row(f"the same over {workers} plain processes side by side", swept, "s", beside, swept / beside, "lower"),
    ]  # fmt: skip


def fixed_rows(folder: Path) -> list[Row]:
    few, many = 4, 44
    seconds: dict[int, list[float]] = {0: [], few: [], many: []}
    experiments = {fits: write_experiment(folder, f"trivial{fits}", fits, 1, 16, 16) for fits in (few, many)}
    for k in range(3):
        start = time.perf_counter()
        with ray_session():
            pass
        seconds[0].append(time.perf_counter() - start)
        for fits, experiment in experiments.items():
            seconds[fits].append(sweep(experiment, folder / f"trivial{fits}-{k}"))
    bare, short, long = (statistics.median(times) for times in seconds.values())
    each = (long - short) / (many - few)
    itself = alone(experiments[many], folder / "trivial-alone", range(many)) / many
    fixed = short - few * each
    return [
        Row(
            "fixed cost of a sweep of trivial fits, over starting and ending Ray",
            fixed,
            "s",
            bare,
            fixed / bare,
            "lower",
        ),
        Row("a trivial fit more, over the same fit alone", each * 1e3, "ms", itself * 1e3, each / itself, "lower"),
    ]


class _Watch(threading.Thread):
    """Peak anonymous and file pages of every trial's process, MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = self.file = 0.0
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.05):
            for status in Path("/proc").glob("[0-9]*/status"):
                with suppress(OSError, ValueError):
                    if status.with_name("cmdline").read_bytes().startswith((b"ray::ResourceTrainable", b"ray::_Trial")):
                        anonymous, file = (_mb(status, key) for key in ("RssAnon:", "RssFile:"))
                        self.anonymous, self.file = max(self.anonymous, anonymous), max(self.file, file)

    def stop(self) -> None:
        self._done.set()
        self.join()


def _mb(status: Path, key: str) -> float:
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith(key))


def _imported_mb() -> tuple[float, float]:
    """Anonymous and file pages of a Ray actor that has imported what a trial imports, and has done nothing."""
    import ray

    @ray.remote(num_cpus=1)
    class Bare:
        def pages(self) -> tuple[float, float]:
            import torch  # noqa: F401

            import cluster.trials  # noqa: F401

            status = Path("/proc/self/status")
            return _mb(status, "RssAnon:"), _mb(status, "RssFile:")

    return ray.get(Bare.remote().pages.remote())


def memory_rows(folder: Path) -> list[Row]:
    experiment = write_experiment(folder, "memory", 4, 3, 1280)
    with ray_session():
        bare, bare_file = _imported_mb()
        watch = _Watch()
        watch.start()
        sweep(experiment, folder / "memory")
        watch.stop()
    stored = SLIDES * PATCHES * DIM * 2 / 2**20
    added = watch.anonymous - bare
    return [
        Row(f"memory a trial adds, store of {stored:.0f} MB", added, "MB", stored, added / stored, "lower"),
        Row("anonymous memory of a process with torch and Ray", bare, "MB", 1, bare, "lower"),
        Row("mapped file pages a trial adds, shared by all", watch.file - bare_file, "MB", stored,
            (watch.file - bare_file) / stored, "higher"),
    ]  # fmt: skip


def measure() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_store(folder)
        return [*memory_rows(folder), *fixed_rows(folder), *wall_rows(folder)]


if __name__ == "__main__":
    main("bench_sweep: Ray Tune around fits", measure)
