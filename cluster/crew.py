"""The actors of an embed job: where they run, how many there are, and new ones for those that are lost.

Embedders go where Ray finds room for them. A reader and a writer, a *lane*, go to a node where an embedder is ready,
and work with the embedders of that node: patches do not cross nodes. Only where patches come too slowly do readers go
to nodes without an embedder as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.job import Task
from cluster.reasons import last_line
from her2cache.backbones.device import best_device
from her2cache.errors import EmbedderError
from her2cache.ingest import ReadSummary, SlideSurvey

_ANSWER_S, _DISCARD_S = 5.0, 10.0
_LOOK_S = 2.0
"""How often nodes are looked at that came or went."""

_HUNGRY = 0.3
"""Share of the time that an embedder may wait for patches before there is one more reader."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster, as Ray knows it.

    Attributes:
        id: Ray's.
        cpus, gpus: that Ray may give.
    """

    id: str
    cpus: float
    gpus: float


def nodes() -> list[Node]:
    """Those that are alive."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [Node(n["NodeID"], n["Resources"].get("CPU", 0.0), n["Resources"].get("GPU", 0.0)) for n in alive]


def device_of_cluster() -> str:
    """What embedders run on: "cuda" where the cluster has GPUs (on one machine: that torch can use), else "cpu"."""
    found = nodes()
    if not any(node.gpus >= 1 for node in found):
        return "cpu"
    return best_device() if len(found) == 1 else "cuda"


@dataclass(eq=False)
class Station:
    """An embedder.

    Attributes:
        actor: its handle.
        starting: what will say that it is ready, and where; None once it is.
        node: where it is.
        made: provenance of what it makes.
    """

    actor: Any
    starting: Any
    node: str = ""
    made: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Pending:
    """A call to a writer that is under way: which embedder works for it, and on how many patches."""

    station: Station | None
    patches: int


@dataclass(eq=False)
class Lane:
    """A reader and a writer of one node, and the slide they are at."""

    node: str
    reader: Any
    writer: Any
    task: Task | None = None
    stream: Any = None  # what the reader yields
    survey: SlideSurvey | None = None
    taken: int = 0  # blocks of the stream
    drained: bool = True
    summary: ReadSummary | None = None
    written: int = 0  # patches
    pending: dict[Any, Pending] = field(default_factory=dict[Any, Pending])
    committing: Any = None
    doubt: tuple[Any, Exception] | None = None  # what will say whether its node lives, and why that is asked
    made: dict[str, Any] = field(default_factory=dict[str, Any])  # provenance, of an embedder that works for it


class Crew:
    """All actors of a job.

    Attributes:
        stations: embedders, those that are starting among them.
        lanes: readers and writers.
        made: provenance, of the embedder that was ready last.
    """

    def __init__(
        self,
        device: str,
        new_embedder: Callable[[], Any],
        new_reader: Callable[[Any], Any],
        new_writer: Callable[[Any], Any],
        *,
        most: int,
        attempts: int,
    ) -> None:
        """Starts nothing yet.

        Args:
            device: "cuda" for an embedder a GPU, "cpu" for one a core.
            new_embedder: starts one.
            new_reader, new_writer: start one where a scheduling strategy of Ray says.
            most: slides there are to do; no more lanes are of use.
            attempts: how often an embedder may die as it starts, while none is ready.
        """
        self.stations: list[Station] = []
        self.lanes: list[Lane] = []
        self.made: dict[str, Any] = {}
        self._device = device
        self._new_embedder, self._new_reader, self._new_writer = new_embedder, new_reader, new_writer
        self._most, self._attempts = most, attempts
        self._nodes = nodes()
        self._alone = len(self._nodes) == 1
        self._more: dict[str, int] = {}  # node -> lanes beyond those that its embedders need
        self._looked = time.monotonic()
        self._hungry = 0.0
        self._died_starting = 0

    # -- who is there

    def ready(self) -> list[Station]:
        return [station for station in self.stations if station.starting is None]

    def near(self, lane: Lane) -> list[Station]:
        """The embedders that a lane's patches go to: those of its node, if there are any."""
        if self._alone:  # where the starting ones will be is known
            return self.stations
        ready = self.ready()
        return [station for station in ready if station.node == lane.node] or ready

    def starting(self) -> dict[Any, Station]:
        return {station.starting: station for station in self.stations if station.starting is not None}

    def load(self) -> dict[Station, int]:
        """Unfinished blocks of each embedder."""
        load = dict.fromkeys(self.stations, 0)
        for lane in self.lanes:
            for pending in lane.pending.values():
                if pending.station in load:
                    load[pending.station] += 1
        return load

    def has(self, node: str) -> bool:
        """Whether a node is alive."""
        return any(node == each.id for each in self._nodes)

    # -- what changes

    def look(self, queued: int, *, now: bool = False) -> None:
        """Follows the cluster: starts embedders where there is room, and lanes beside them; every few seconds.

        Args:
            queued: slides that no lane has.
            now: whether to look even though it is not time yet.
        """
        since = time.monotonic() - self._looked
        if not now and since < _LOOK_S:
            return
        self._looked = time.monotonic()
        self._nodes = nodes()
        self._alone = self._alone and len(self._nodes) == 1
        for lane in [lane for lane in self.lanes if lane.task is None and not self.has(lane.node)]:
            self.drop_lane(lane)
        self._balance_stations(queued)
        if self._hungry > _HUNGRY * since and queued:
            self._add_reader()
        self._hungry = 0.0
        self._balance_lanes(queued)

    def waited(self, seconds: float, starved: bool) -> None:
        """Is told how long the job waited, and whether an embedder had nothing to do meanwhile."""
        self._hungry += seconds if starved else 0.0

    def started(self, station: Station) -> None:
        """Takes in an embedder that has answered, or died instead.

        Raises:
            EmbedderError: none is ready, and they die again and again.
        """
        try:
            made = cast(dict[str, Any], ray.get(station.starting))
        except RayError as error:
            self.drop_station(station)
            self._died_starting += 1
            if self._died_starting >= self._attempts and not self.ready():
                raise EmbedderError(
                    f"the embedders do not start ({last_line(error)}): a package is missing where Ray runs them, or"
                    " memory is short; install the same packages on every machine"
                ) from error
            return
        self._died_starting = 0
        station.starting, station.node, station.made = None, made.pop("node"), made
        self.made = made

    def drop_station(self, station: Station) -> None:
        ray.kill(station.actor)
        self.stations.remove(station)

    def drop_lane(self, lane: Lane) -> None:
        ray.kill(lane.reader)
        ray.kill(lane.writer)
        self.lanes.remove(lane)

    def mend(self, lane: Lane, used: Sequence[Station]) -> None:
        """New actors for those that died under a lane.

        Args:
            lane: whose slide was interrupted.
            used: the embedders that worked for it.
        """
        for station in used:
            if station in self.stations and not answers(station.actor):
                self.drop_station(station)
        if not answers(lane.writer):
            lane.writer = self._new_writer(_at(lane.node))

    def new_reader(self, lane: Lane) -> None:
        """Ends a lane's reader and starts another."""
        ray.kill(lane.reader)
        lane.reader = self._new_reader(_at(lane.node))

    def end(self) -> None:
        """Lets writers remove the attempts that are under way, then ends every process of the job."""
        discarded = [lane.writer.discard.remote() for lane in self.lanes]
        if discarded:
            ray.wait(discarded, num_returns=len(discarded), timeout=_DISCARD_S)
        for lane in list(self.lanes):
            self.drop_lane(lane)
        for station in list(self.stations):
            self.drop_station(station)

    # -- how many

    def _balance_stations(self, queued: int) -> None:
        """An embedder a core or GPU; one more waits for a node to come as long as slides wait."""
        slots = sum(map(self._slots, self._nodes))
        wanted = max(1, slots) + (0 if self._alone or not queued else max(1, slots // 4))
        self.stations += [self._start() for _ in range(wanted - len(self.stations))]
        surplus = len(self.stations) - wanted
        for station in list(self.starting().values())[: max(0, surplus)]:
            self.drop_station(station)

    def _slots(self, node: Node) -> int:
        """Embedders that a node has room for, when nothing else is there."""
        return int(node.gpus if self._device == "cuda" else node.cpus)

    def _start(self) -> Station:
        actor = self._new_embedder()
        return Station(actor, actor.ready.remote())

    def _balance_lanes(self, queued: int) -> None:
        """Two lanes a node and one more for two embedders: some wait for the disk. None takes more than its share."""
        working = sum(bool(self._slots(node)) for node in self._nodes)
        share = -(-self._most // max(1, working))
        if self._alone:  # nobody need wait for the embedders: they will all be here
            embedders = {self._nodes[0].id: len(self.stations)}
        else:
            ready = self.ready()
            embedders = {node: sum(s.node == node for s in ready) for node in {s.node for s in ready}}
        idle = sum(lane.task is None for lane in self.lanes)
        for node in sorted({*embedders, *self._more}):
            count = embedders.get(node, 0)
            wanted = min(share, 2 + -(-count // 2) if count else 0) + self._more.get(node, 0)
            there = sum(lane.node == node for lane in self.lanes)
            for _ in range(min(wanted - there, queued - idle, self._most - len(self.lanes))):
                self.lanes.append(Lane(node, self._new_reader(_at(node)), self._new_writer(_at(node))))
                idle += 1

    def _add_reader(self) -> None:
        """One more lane, where most cores have none."""
        free = {node.id: node.cpus - sum(lane.node == node.id for lane in self.lanes) for node in self._nodes}
        node = max(free, key=lambda each: free[each])
        if free[node] >= 1:
            self._more[node] = self._more.get(node, 0) + 1


def answers(actor: Any) -> bool:
    """Whether an actor is alive, as far as Ray knows."""
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=_ANSWER_S)
    except GetTimeoutError:
        return True  # busy; of one that is dead Ray says so at once
    except RayError:
        return False
    return True


def _at(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)
