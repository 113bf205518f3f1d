"""Which jobs run, and how far they are: asked from outside, without touching them."""

from __future__ import annotations

from cluster.telemetry.notices import Found, read_notices

SILENT_S = 15.0
"""A job that has said nothing for so long is stopped, or its machine is too busy."""


def running_jobs(address: str) -> tuple[list[Found], list[str]]:
    """Jobs that run now.

    Args:
        address: "local" for all jobs of this user whose drivers are on this machine, whatever their Ray; "auto" or
            HOST:PORT for the jobs of that cluster, wherever their drivers are.

    Returns:
        Those that say how far they are, the oldest first, and the ids of those that do not answer.

    Raises:
        ConfigError: no Ray answers at the address.
    """
    if address == "local":
        return read_notices(), []
    from cluster.resources import ray_session
    from cluster.telemetry.board import read_board

    with ray_session(address):
        return read_board()
