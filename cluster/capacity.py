"""What a Ray has to give to fits, and how many runs a fit may then train in lockstep."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ray
import ray.exceptions

from cluster.limits import available_cpus, available_memory
from her2cache.errors import ConfigError
from her2cache.store.reader import FeatureStore
from trainers.sizing import largest_stack, run_bytes
from trainers.study import Study

_SPARE = 0.8
"""Of the memory that is free: what fits may take."""

_PROCESS_BYTES = 400 << 20
"""A process that has imported torch and Ray."""

_CONTEXT_BYTES = 600 << 20
"""What a process takes of a GPU before its first tensor."""

_GPU_WAIT_S = 120.0

_MOST_ON_A_GPU = 2
"""Fits at once on one GPU by default. On an H100 two stacks of 20 together were 1.4 times as fast as one after the
other, and four no faster than two: they take turns on it."""


@dataclass(frozen=True)
class Capacity:
    """What there is.

    Attributes:
        cpus, gpus: of the whole Ray.
        memory: bytes free for one fit on this machine when every core has one.
        gpu_memory: bytes of one GPU.
    """

    cpus: int
    gpus: float = 0.0
    memory: int = 0
    gpu_memory: int = 0


@dataclass(frozen=True)
class Terms:
    """What every fit of a sweep gets.

    Attributes:
        stack: most runs that it trains in lockstep.
        gpus: share of a GPU; 0 trains on the processor.
    """

    stack: int
    gpus: float = 0.0


def read_capacity(gpus_per_fit: float | None = None) -> Capacity:
    """The capacity of the Ray that this process is connected to; GPUs are not asked when none is wanted (0)."""
    has = ray.cluster_resources()
    cpus, gpus = max(1, int(has.get("CPU", 1))), 0.0 if gpus_per_fit == 0 else has.get("GPU", 0.0)
    memory = int(available_memory() * _SPARE) // min(cpus, available_cpus()) - _PROCESS_BYTES
    return Capacity(cpus, gpus, memory, _gpu_memory() if gpus else 0)


def _gpu_memory() -> int:
    """Bytes of one GPU.

    Raises:
        ConfigError: none is free.
    """
    try:
        return ray.get(_gpu_bytes.remote(), timeout=_GPU_WAIT_S)
    except ray.exceptions.GetTimeoutError as error:
        raise ConfigError(
            f"for {_GPU_WAIT_S:.0f} s no GPU of this Ray was free: wait for the jobs that have them (`ray status`), or "
            "train on processors with --gpus-per-fit 0"
        ) from error


@ray.remote(num_gpus=0.01, max_calls=1)  # the process ends with the call, and gives the GPU back
def _gpu_bytes() -> int:
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0


def choose_terms(
    study: Study, capacity: Capacity, configurations: int, gpus_per_fit: float | None, stack: int | None = None
) -> Terms:
    """Stack size and share of a GPU for the fits of a study.

    On processors a stack is as large as memory allows, but no larger than leaves a fit for every core: cores gain
    more than stacks do. On a GPU it is the other way round.

    Args:
        study: what is swept.
        capacity: what there is.
        configurations: of each feature space and fold.
        gpus_per_fit: a share that the user asks for; None leaves it to memory, 0 trains on processors.
        stack: a size that the user asks for, or that the sweep was begun with; None leaves it to memory.

    Raises:
        ConfigError: a GPU was asked for, and there is none.
    """
    if gpus_per_fit and not capacity.gpu_memory:
        raise ConfigError(
            f"--gpus-per-fit {gpus_per_fit:g} needs a GPU, and this Ray has none that torch can use: leave it out, or "
            "start Ray where there is one"
        )
    if gpus_per_fit == 0 or not capacity.gpu_memory:
        most = _largest(study, capacity.memory, None)
        places = sum(of.splits.folds for of in study.rounds) * len(study.spaces)
        at_least = min(configurations, math.ceil(capacity.cpus / places))
        return Terms(stack or _even(configurations, most, at_least))
    batch, features = study.experiment.training.batch_bags, _feature_bytes(study)
    room = int(capacity.gpu_memory * (gpus_per_fit or 1) * _SPARE) - _CONTEXT_BYTES
    # features that do not fit stay with the host, see `trainers.feeds`
    stack = stack or _even(configurations, _largest(study, room - (features if features < room / 2 else 0), batch))
    if gpus_per_fit:
        return Terms(stack, gpus_per_fit)
    need = (_CONTEXT_BYTES + features + stack * _run_bytes(study, batch)) / (capacity.gpu_memory * _SPARE)
    at_once = min(_MOST_ON_A_GPU, max(1, math.floor(1 / need)))
    return Terms(stack, 1 / at_once)


def _even(configurations: int, most: int, at_least: int = 1) -> int:
    """The size of equal stacks, each of at most `most` runs, at least `at_least` of them."""
    return math.ceil(configurations / max(at_least, math.ceil(configurations / most)))


def _largest(study: Study, budget: int, whole_batch: int | None) -> int:
    e = study.experiment
    classes = len(e.classification.classes)
    return min(
        largest_stack(space.dim, classes, e.model, e.bags, budget=budget, whole_batch=whole_batch)
        for space in study.spaces.values()
    )


def _run_bytes(study: Study, whole_batch: int) -> int:
    e = study.experiment
    classes = len(e.classification.classes)
    return max(
        run_bytes(space.dim, classes, e.model, e.bags, whole_batch=whole_batch) for space in study.spaces.values()
    )


def _feature_bytes(study: Study) -> int:
    """Of the largest space: every view of all slides."""
    store = FeatureStore.open(study.experiment.data.store)
    slides = [s.slide_id for s in study.splits.slides]
    sizes = [sum(r.bytes for r in store.committed(space.key, slides)) for space in study.spaces.values()]
    return int(max(sizes) * study.fraction)
