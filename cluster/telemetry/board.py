"""Running jobs, where others can see them: on this machine as files, on a cluster as named actors as well.

An embedded Ray has an address that nobody knows, and a second driver on it would take from the job what it has; files
need neither. On a cluster the driver may be on another machine, so there an actor that belongs to the job keeps its
state beside the driver: Ray ends it with the driver, however that ends.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Any, Protocol

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.telemetry.logs import LOG_FILE, EventLog, Level, mask
from cluster.telemetry.notices import Found, Notice

NAMESPACE = "her2cache"
"""Of the actors that keep states."""

POST_S = 1.0
"""Seconds between two posts of a job's state."""

_ANSWER_S = 5.0


class Source(Protocol):
    """What a job's state is taken from, by another thread than the job's."""

    def snapshot(self) -> dict[str, Any]:
        """The counts of a moment, as JSON has them."""
        ...


class Job:
    """A running job.

    Args:
        kind: "embed", "sweep" or "pretrain".
        address: of its Ray, as the user gave it.
        about: what it works on.
        log: of its events.

    Attributes:
        id: a name that no other job has.
    """

    def __init__(self, kind: str, address: str, about: str, log: EventLog) -> None:
        self.id = f"{kind}-{secrets.token_hex(4)}"
        self._where = {"node": ray.util.get_node_ip_address(), "pid": os.getpid()}
        self._facts = {
            "job": self.id,
            "kind": kind,
            "about": mask(about),
            "address": mask(address),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._log = log
        self._source: Source | None = None

    def event(self, name: str, level: Level = "info", **facts: Any) -> None:
        """Logs an event. Those of actors give `node` and `pid` of theirs."""
        self._log.write(name, level, **{"job": self.id, **self._where, **facts})

    def show(self, source: Source) -> None:
        """From now on the job's state has these counts too."""
        self._source = source

    def state(self) -> dict[str, Any]:
        """What others are to see."""
        return self._facts | (self._source.snapshot() if self._source else {})


@contextmanager
def running_job(kind: str, address: str, about: str) -> Generator[Job]:
    """A job on a Ray that is started, to be seen and logged as long as this lasts.

    Nothing that goes wrong with being seen concerns the job.

    Args:
        kind: "embed", "sweep" or "pretrain".
        address: of its Ray, as the user gave it; "local" is not to be seen but from this machine.
        about: what it works on.

    Raises:
        ConfigError: the file of events cannot be written.
    """
    log, began = EventLog(LOG_FILE.get()), time.monotonic()
    job = Job(kind, address, about, log)
    job.event("job begun", kind=kind, about=about, address=address, host=socket.gethostname())
    poster = _Poster(job, on_cluster=address != "local")
    poster.start()
    try:
        yield job
        job.event("job ended", seconds=round(time.monotonic() - began, 3))
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        job.event("job failed", "error", reason=reason, seconds=round(time.monotonic() - began, 3))
        raise
    finally:
        poster.stop()
        log.close()


class _Poster(Thread):
    """Posts the state of a job every second."""

    def __init__(self, job: Job, *, on_cluster: bool) -> None:
        super().__init__(name=f"post {job.id}", daemon=True)
        self._job, self._ended = job, Event()
        self._notice: Notice | None = None
        with suppress(OSError):
            self._notice = Notice(job.id)
        self._pin = _Pin(job.id) if on_cluster else None

    def run(self) -> None:
        while not self._ended.is_set():
            with suppress(Exception):  # a job that cannot be seen goes on, and is tried again
                state = self._job.state()
                if self._notice:
                    self._notice.post(state)
                if self._pin:
                    self._pin.post(state)
            self._ended.wait(POST_S)
        with suppress(Exception):
            self._job.state()  # which tells Prometheus how it ended

    def stop(self) -> None:
        self._ended.set()
        self.join(_ANSWER_S)
        if self._notice:
            self._notice.close()
        if self._pin:
            self._pin.remove()


class Kept:
    """An actor's body: the last state of a job, and how old it is by one clock."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}
        self._at = time.monotonic()

    def post(self, state: Mapping[str, Any]) -> None:
        self._state, self._at = dict(state), time.monotonic()

    def read(self) -> tuple[dict[str, Any], float]:
        return self._state, time.monotonic() - self._at


class _Pin:
    """The actor that keeps the state of one job, beside its driver. One that dies is replaced."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._actor: Any = None
        self._posting: Any = None

    def post(self, state: Mapping[str, Any]) -> None:
        if self._posting is not None:
            if not ray.wait([self._posting], timeout=0)[0]:
                return  # it starts, or its machine is busy: states do not queue up
            try:
                ray.get(self._posting)
            except RayError:
                self._actor = None
        if self._actor is None:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            options = {"name": self._job, "namespace": NAMESPACE, "num_cpus": 0, "scheduling_strategy": here}
            self._actor = ray.remote(Kept).options(**options).remote()
        self._posting = self._actor.post.remote(state)

    def remove(self) -> None:
        if self._actor is not None:
            with suppress(RayError):
                ray.kill(self._actor)


def read_board() -> tuple[list[Found], list[str]]:
    """Jobs on the Ray that this process is connected to.

    Returns:
        Those that answered, the oldest first, and the ids of those that did not.
    """
    asked: dict[Any, str] = {}
    for named in ray.util.list_named_actors(all_namespaces=True):
        if named["namespace"] == NAMESPACE:  # pyright: ignore[reportArgumentType,reportCallIssue] - dicts, with it
            job = str(named["name"])  # pyright: ignore[reportArgumentType,reportCallIssue]
            with suppress(ValueError):  # it has just ended
                asked[ray.get_actor(job, namespace=NAMESPACE).read.remote()] = job
    if not asked:
        return [], []
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
    found: list[Found] = []
    for answer in answered:
        with suppress(RayError):  # it has ended meanwhile
            state, age = ray.get(answer)
            if state:
                found.append(Found(state, age))
    return sorted(found, key=lambda job: job.state["since"]), sorted(asked[answer] for answer in silent)
