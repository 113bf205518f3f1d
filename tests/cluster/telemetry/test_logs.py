"""Events as JSON lines: one a line whatever is in them, no secrets, and a full disk ends only the log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.telemetry.logs import EventLog, line_of, mask
from her2cache.errors import ConfigError


@given(st.text())
def test_an_event_is_one_line_of_printable_ascii(text: str) -> None:
    line = line_of({"reason": text})
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["reason"] == mask(text)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("s3://key:word@bucket/x failed", "s3://***@bucket/x failed"),
        ("https://h/x?X-Amz-Signature=abc&y=1", "https://h/x?X-Amz-Signature=***&y=1"),
        ("the key hunter2hunter2 was refused", "the key *** was refused"),
        ("mail a@b.org at 3://4", "mail a@b.org at 3://4"),
    ],
)
def test_what_opens_a_store_is_masked(text: str, masked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "")
    assert json.loads(line_of({"reason": text}))["reason"] == masked


def test_two_jobs_may_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    one, other = EventLog(path), EventLog(path)
    one.write("job begun", job="a")
    other.write("slide failed", "error", job="b", slide="s", attempt=2)
    one.close()
    one.write("too late")
    other.close()
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["event"], first["level"], first["job"]) == ("job begun", "info", "a")
    assert (second["level"], second["slide"], second["attempt"]) == ("error", "s", 2)
    assert first["time"] <= second["time"]


def test_a_full_disk_ends_the_log_alone() -> None:
    log = EventLog(Path("/dev/full"))
    with pytest.warns(UserWarning, match="no more events"):
        log.write("job begun")
    log.write("job ended")


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--log-file"):
        EventLog(tmp_path / "no" / "folder")
    EventLog(None).write("nobody listens")
