"""The same commands on several real Ray nodes: the single machine's digests and tables, also when nodes die or join."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from her2cache.store.audit import verify
from her2cache.store.reader import FeatureStore
from tests.commands import COMMAND, command
from tests.nodes import Nodes
from tests.processes import descendants, eventually, title
from tests.slides import texture, write_slide

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    return [
        write_slide(folder / f"s{k}.tif", texture(96 * 40, 96 * (12 + 2 * k), seed=k), segment_px=(256, 256))
        for k in range(6)
    ]


@pytest.fixture(scope="module")
def alone(slides: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the single-machine run."""
    store = tmp_path_factory.mktemp("alone") / "store"
    assert command(*embed(slides, store)).returncode == 0
    return digests(store)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with Nodes(1, 1, 1) as cluster:
        yield cluster


def embed(slides: list[Path], store: Path) -> list[str]:
    return ["embed", *map(str, slides), "--store", str(store), "--embedder", "alexnet-random"]


def digests(store: Path) -> dict[str, str]:
    opened = FeatureStore.open(store)
    (space,) = opened.spaces()
    return {slide_id: opened.record(slide_id, space.key).digest for slide_id in opened.slides(space.key)}


def begin(slides: list[Path], store: Path, nodes: Nodes, *options: str) -> subprocess.Popen[str]:
    arguments = [*embed(slides, store), "--address", nodes.address, "--json", *options]
    return subprocess.Popen(
        [COMMAND, *arguments], stdout=subprocess.PIPE, text=True, env={**os.environ, **nodes.environment}
    )


def work(raylet: int, kind: str) -> list[int]:
    """Actors of a kind at work on a node."""
    return [pid for pid in descendants(raylet) if title(pid).startswith(f"ray::{kind}")]


def test_three_nodes_give_what_one_gives(
    slides: list[Path], alone: dict[str, str], nodes: Nodes, tmp_path: Path
) -> None:
    job = begin(slides, tmp_path / "store", nodes)
    raylets = [nodes.raylet(k) for k in range(3)]
    assert eventually(lambda: all(work(raylet, "Embed") for raylet in raylets), 120)
    assert eventually(lambda: all(work(raylet, "Reader") and work(raylet, "Writer") for raylet in raylets), 120)
    said = json.loads(job.communicate(timeout=300)[0])
    assert {item["status"] for item in said["items"]} == {"done"}
    assert digests(tmp_path / "store") == alone
    assert eventually(lambda: not any(work(raylet, "Embed") for raylet in raylets), 60)


def test_a_lost_node_costs_no_slide_and_no_attempt(
    slides: list[Path], alone: dict[str, str], nodes: Nodes, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    job = begin(slides, store, nodes, "--max-attempts", "1")
    assert eventually(lambda: bool(work(nodes.raylet(2), "Reader") and work(nodes.raylet(2), "Writer")), 120)
    nodes.lose(2)
    said = json.loads(job.communicate(timeout=300)[0])
    assert {item["status"] for item in said["items"]} == {"done"}
    assert digests(store) == alone
    assert not [each for each in verify(FeatureStore.open(store).records) if each.problem]


def test_a_node_that_joins_late_takes_part(
    slides: list[Path], alone: dict[str, str], nodes: Nodes, tmp_path: Path
) -> None:
    job = begin(slides, tmp_path / "store", nodes)
    assert eventually(lambda: bool(work(nodes.raylet(0), "Embed")), 120)
    nodes.join(1)
    taken = eventually(lambda: bool(work(nodes.raylet(3), "Writer")) or job.poll() is not None, 200)
    part = bool(work(nodes.raylet(3), "Writer"))
    said = json.loads(job.communicate(timeout=300)[0])
    assert taken
    assert part
    assert {item["status"] for item in said["items"]} == {"done"}
    assert digests(tmp_path / "store") == alone


def test_a_slide_that_a_node_cannot_see(slides: list[Path], nodes: Nodes, tmp_path: Path) -> None:
    missing = tmp_path / "elsewhere.tif"
    said = command(*embed([slides[0], missing], tmp_path / "store"), "--address", nodes.address, **nodes.environment)
    assert said.returncode == 1
    assert str(missing) in said.stdout + said.stderr
    assert "on node 127.0.0." in said.stdout + said.stderr
