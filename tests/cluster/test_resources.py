"""How Ray is started: on loopback alone, silently, with the cores that there are; or joined, or refused."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
import ray

from cluster import resources
from cluster.resources import available_cpus, ray_session, start_ray
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


class TestCpus:
    def test_affinity(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
        allowed = os.sched_getaffinity(0)
        assert 1 <= available_cpus() <= len(allowed)
        try:
            os.sched_setaffinity(0, {min(allowed)})
            assert available_cpus() == 1
        finally:
            os.sched_setaffinity(0, allowed)

    @pytest.mark.parametrize(("granted", "most"), [("1", 1), ("512", None), ("", None), ("0", 1), ("two", None)])
    def test_slurm(self, monkeypatch: pytest.MonkeyPatch, granted: str, most: int | None) -> None:
        monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
        without = available_cpus()
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", granted)
        assert available_cpus() == (most or without)

    @pytest.mark.parametrize(
        ("files", "cores"),
        [
            ({"cpu.max": "150000 100000\n"}, 1.5),
            ({"cpu.max": "max 100000\n"}, None),
            ({"cpu.max": "\n"}, None),
            ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
            ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
            ({}, None),
        ],
    )
    def test_cgroup_quota(self, tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        assert resources._cgroup_cpus(tmp_path) == cores
