"""How Ray is started or joined, and what it has to give."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import ray
import ray._private.ray_constants
import ray._private.worker

from cluster.limits import available_cpus
from her2cache.errors import ConfigError

_LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps the sockets of a local Ray on loopback
    "RAY_AUTH_MODE": "disabled",  # loopback only; a cluster keeps its tokens
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}

_OBJECT_STORE_BYTES = 512 << 20
"""Of an embedded Ray: blocks in flight are bounded to far less."""

_ANSWER_S = 10.0


@contextmanager
def ray_session(address: str = "local") -> Generator[None]:
    """A connection to Ray for the length of a job.

    Args:
        address: "local" starts a Ray of this process's own, on loopback; "auto" or HOST:PORT joins a
            cluster. A connection that is there already is used, and left as it is.

    Raises:
        ConfigError: the address is of Ray Client, or no cluster answers there.
    """
    if ray.is_initialized():
        yield
        return
    start_ray(address)
    try:
        yield
    finally:
        ray.shutdown()


def start_ray(address: str = "local") -> None:
    """Starts or joins Ray; see `ray_session`, which also ends it."""
    if address.startswith("ray://"):
        raise ConfigError(
            f"--address {address} is Ray Client, which cannot stream patches between actors; run the command on a node"
            " of the cluster with --address auto, or submit it with `ray job submit`"
        )
    os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # of calls that the job gave up when an actor died under a slide
    # Ray prints what it has to say of a dead worker on stdout, whatever log_to_driver says; the job reports it
    ray._private.worker._worker_logs_enabled = False  # pyright: ignore[reportPrivateUsage]
    if address != "local":
        _require_answer(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _no_cluster(address, error) from error
        return
    os.environ.update(_LOCAL_ENVIRONMENT)
    constants = ray._private.ray_constants
    constants.ENABLE_RAY_CLUSTER, clusters = False, constants.ENABLE_RAY_CLUSTER  # the import of ray has read it
    try:
        ray.init(
            address="local",
            num_cpus=available_cpus(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=_short_temp_dir(),
        )
    finally:
        constants.ENABLE_RAY_CLUSTER = clusters


def _require_answer(address: str) -> None:
    """Refuses a HOST:PORT where nothing listens, for which Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", or for Ray to judge
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"no Ray cluster answers at --address {address} ({error}); check it with `ray status`, or use local"
    )


def _short_temp_dir() -> str:
    """Ray's sockets lie under it and a socket's path is at most 107 bytes, so a long TMPDIR does not do."""
    folder = Path(tempfile.gettempdir()) / "ray"
    return str(folder if len(str(folder)) < 40 else Path("/tmp/ray"))
