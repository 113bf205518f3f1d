"""Several real Ray nodes on this machine, each at a loopback address of its own; they may die and join."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import Any

from tests.processes import descendants, kill

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # loopback only
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "0",
}

_PROGRAM = """
import json, sys
from ray.cluster_utils import Cluster

def options(k, cpus):
    return {"num_cpus": cpus, "node_ip_address": f"127.0.0.{k + 2}", "object_store_memory": 128 << 20}

head, *others = json.loads(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={**options(0, head), "include_dashboard": False})
nodes = [cluster.head_node] + [cluster.add_node(**options(k, cpus)) for k, cpus in enumerate(others, 1)]
while True:
    told = {"address": cluster.address, "raylets": [n.all_processes["raylet"][0].process.pid for n in nodes]}
    print(json.dumps(told), flush=True)
    line = sys.stdin.readline()
    if not line:
        break
    nodes.append(cluster.add_node(**options(len(nodes), json.loads(line))))
cluster.shutdown()
"""


class Nodes:
    """A cluster; a context manager that ends it, and with it every process it began.

    Attributes:
        address: HOST:PORT of the head.
        environment: what a command needs that joins it.
    """

    def __init__(self, *cpus: int) -> None:
        """Starts a node for each number, with as many cores; the first is the head."""
        self.environment = _ENVIRONMENT
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **_ENVIRONMENT},
        )
        self._raylets: list[int] = []
        self.address = str(self._told()["address"])

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        below = descendants(self._process.pid)
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        for pid in (self._process.pid, *below):
            kill(pid)

    def join(self, cpus: int) -> None:
        """Another node joins."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{cpus}\n")
        self._process.stdin.flush()
        self._told()

    def lose(self, node: int) -> None:
        """kill -9 of a node: of its raylet and of every process below it."""
        raylet = self._raylets[node]
        below = descendants(raylet)
        for pid in (raylet, *below):
            kill(pid)

    def raylet(self, node: int) -> int:
        """Its process id; what runs on the node descends from it."""
        return self._raylets[node]

    def _told(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the nodes do not start")
        told = json.loads(line)
        self._raylets = told["raylets"]
        return told
