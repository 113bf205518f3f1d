"""A reader that hangs ends itself, and its job gives the slide up."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.deadline import SILENCE, SILENCE_S, in_time, silence
from her2cache.errors import ConfigError
from tests.commands import command
from tests.slides import texture, write_slide


def test_items_pass_whoever_takes_them_when(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SILENCE, "0.2")
    items = in_time(iter(range(3)))
    assert next(items) == 0
    time.sleep(0.5)  # nobody waits for the next one meanwhile
    assert list(items) == [1, 2]
    time.sleep(0.5)


def test_an_error_passes_and_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    monkeypatch.setenv(SILENCE, "0.2")
    with pytest.raises(OSError, match="no more"):
        list(in_time(broken()))
    time.sleep(0.5)


def test_native_code_that_keeps_the_lock_is_ended() -> None:
    code = "from itertools import count; from cluster.deadline import in_time; next(in_time(sum(count()) for _ in [1]))"
    began = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, SILENCE: "0.5"}, capture_output=True, check=False, timeout=60
    )
    assert run.returncode == 1
    assert b"Timeout" in run.stderr
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("given", ["", "soon", "0", "-1", "nan", "inf"])
def test_no_time(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(SILENCE, given)
    with pytest.raises(ConfigError, match=f"{SILENCE} is '{given}'"):
        silence()


def test_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SILENCE, raising=False)
    assert silence() == SILENCE_S


@pytest.mark.slow
def test_a_slide_that_cannot_be_opened_nor_refused(tmp_path: Path) -> None:
    """A lease on the file: whoever opens it waits for its holder, who does not answer, for 45 s."""
    stuck, good = (write_slide(tmp_path / f"{name}.tif", texture(480, 480)) for name in ("stuck", "good"))
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    held = os.open(stuck, os.O_RDWR)
    try:
        fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        os.close(held)
        pytest.skip(f"this file system gives no leases: {error}")
    try:
        arguments = ("--store", tmp_path / "store", "--embedder", "alexnet-random", "--max-attempts", "2", "--json")
        run = command("embed", stuck, good, *arguments, **{SILENCE: "4"})
    finally:
        os.close(held)
        signal.signal(signal.SIGIO, before)
    assert run.returncode == 1, run.stderr
    first, second = json.loads(run.stdout)["items"]
    assert (first["id"], first["status"], second["status"]) == ("stuck", "failed", "done")
    assert "the process working on it died 2 times" in first["reason"]
    assert "crashed or hung" in first["reason"]
