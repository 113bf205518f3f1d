"""How Ray is started: on loopback alone, silently, with the cores that there are; or joined, or refused."""

from __future__ import annotations

import os
import socket
import time

import pytest
import ray

from cluster.limits import available_cpus
from cluster.resources import ray_session, start_ray
from her2cache.errors import ConfigError
from tests.processes import descendants, listening_addresses

LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, ::1 and ::ffff:127.0.0.1 in /proc/net/tcp and tcp6 on a little-endian machine."""


@pytest.mark.usefixtures("local_ray")
class TestLocal:
    def test_it_listens_on_loopback_alone(self) -> None:
        """Authentication is off, so anyone who reaches a port may run code."""

        @ray.remote(num_cpus=0)
        class Actor:
            def pid(self) -> int:
                return os.getpid()

        actor = Actor.remote()
        ours = [os.getpid(), *descendants()]
        assert ray.get(actor.pid.remote()) in [*ours, *descendants()]
        addresses = listening_addresses([os.getpid(), *descendants()])
        assert addresses
        assert addresses <= LOOPBACK

    def test_the_death_of_a_worker_prints_nothing(self, capfd: pytest.CaptureFixture[str]) -> None:
        """stdout belongs to the result of a verb, `--json` above all."""

        @ray.remote(num_cpus=0)
        class Actor:
            def die(self) -> None:
                os._exit(3)

        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(Actor.remote().die.remote())
        time.sleep(2)  # Ray reports it a moment later, from a thread
        assert capfd.readouterr() == ("", "")

    def test_it_has_the_cores_of_this_process(self) -> None:
        assert ray.cluster_resources()["CPU"] == available_cpus()
        assert len(ray.nodes()) == 1

    def test_a_session_within_a_connection_leaves_it(self) -> None:
        with ray_session("local"):
            pass
        assert ray.is_initialized()

    def test_joining_a_cluster_later_is_not_confined_to_loopback(self) -> None:
        assert ray._private.ray_constants.ENABLE_RAY_CLUSTER


class TestRefused:
    def test_ray_client(self) -> None:
        with pytest.raises(ConfigError, match=r"ray job submit"):
            start_ray("ray://head:10001")

    def test_a_port_where_nothing_listens_at_once(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
            started = time.monotonic()
            with pytest.raises(ConfigError, match=f"no Ray cluster answers at --address {address}"):
                start_ray(address)
            assert time.monotonic() - started < 15

    @pytest.mark.parametrize("address", ["127.0.0.1:99999", "no-such-host.invalid:6379"])
    def test_what_is_no_address(self, address: str) -> None:
        with pytest.raises(ConfigError, match="no Ray cluster answers"):
            start_ray(address)
