"""Damaged slides do not hang, crash, eat memory, or give out pixels that another reader does not see."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests import fuzz
from tests.fuzz import DEADLINE_S, MEMORY_MIB, Finding
from tests.mutants import mutants, write_healthy


def _none_at_fault(found: list[Finding]) -> None:
    assert [finding for finding in found if finding.faults] == []
    assert max(finding.seconds for finding in found) < DEADLINE_S
    assert max(finding.mib for finding in found) < MEMORY_MIB
    assert {"unforeseen"}.isdisjoint(finding.kind for finding in found)


def test_some(tmp_path: Path) -> None:
    found = list(fuzz.fuzz(tmp_path, seed=1, numbers=range(60), workers=1))
    assert sorted(finding.number for finding in found) == list(range(60))
    _none_at_fault(found)
    kinds = Counter(finding.kind for finding in found)
    assert kinds["SlideOpenError"] > 5
    assert kinds["in part"] > 5


@pytest.mark.slow
def test_many(tmp_path: Path) -> None:
    found = list(fuzz.fuzz(tmp_path, seed=2, numbers=range(624)))
    _none_at_fault(found)
    containers = Counter(finding.container for finding in found)
    assert len(containers) == 13
    assert set(containers.values()) == {48}
    kinds = Counter(finding.kind for finding in found)
    assert kinds["SlideOpenError"] > 50
    assert kinds["in part"] > 50


def test_mutants_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = (write_healthy(tmp_path / name) for name in "ab")
    assert [m.content for m in mutants(first, 3, 26)] == [m.content for m in mutants(second, 3, 26)]
    assert len({m.content for m in mutants(first, 3, 130)}) > 120


class TestTheHarness:
    """It can find what it looks for."""

    @pytest.fixture
    def healthy(self, tmp_path: Path) -> dict[str, Path]:
        return write_healthy(tmp_path / "healthy")

    def _finding(self, healthy: dict[str, Path], folder: Path, name: str = "tiff-jpeg") -> Finding:
        whole = fuzz._read(healthy[name], 0.5)
        made = next(m for m in mutants(healthy, 4, 13) if m.container == name)
        return fuzz.examine(folder, fuzz.replace(made, content=healthy[name].read_bytes()), 0.5, whole)

    @pytest.mark.parametrize("name", ["tiff-jpeg", "svs-jpeg2000", "scn", "ndpi", "dicom-jpeg"])
    def test_a_healthy_slide_is_whole(self, healthy: dict[str, Path], tmp_path: Path, name: str) -> None:
        found = self._finding(healthy, tmp_path, name)
        assert (found.kind, found.faults, found.patches, found.left_out) == ("whole", [], 48, 0)

    def test_other_pixels(self, healthy: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = fuzz._read(healthy["tiff-jpeg"], 0.5)
        other = whole.patches.copy()
        other[7, 3, 5] += 1
        monkeypatch.setattr("tests.fuzz._read", lambda path, mpp: fuzz.replace(whole, patches=other))
        found = self._finding(healthy, tmp_path)
        assert found.faults == ["patch 7 differs from tiffslide's by up to 1"]

    def test_memory(self, healthy: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = fuzz._read(healthy["tiff-jpeg"], 0.5)

        def greedy(path: Path, mpp: float) -> fuzz._Reading:
            np.ones(100 << 20, np.uint8)
            return whole

        monkeypatch.setattr("tests.fuzz._read", greedy)
        (fault,) = self._finding(healthy, tmp_path).faults
        assert fault.startswith("took ")

    def test_hangs_and_crashes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tests.fuzz.DEADLINE_S", 1.0)
        healthy = write_healthy(tmp_path / "healthy")
        hand = fuzz._Hand(fuzz.multiprocessing.get_context("forkserver"), tmp_path / "worker", 5)
        try:
            for blow, said in ((19, "hang while"), (9, "crash while")):
                hand.give(0)
                hand._stage = "reading"
                os.kill(hand._process.pid or 0, blow)
                found = None
                end = time.monotonic() + 30
                while found is None and time.monotonic() < end:
                    found = hand.take(healthy)
                    time.sleep(0.02)
                assert found is not None
                assert said in found.kind
                assert found.faults
        finally:
            hand.end()
