"""TensorBoard event files: every epoch once, however often processes died."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import google_crc32c
import pytest
from tensorboardX.proto.event_pb2 import Event

from cluster.events import EventFiles
from tests.plans import plan_of, steps_of
from trainers.plan import FitPlan

OPEN = Path("/proc/self/fd")


def _masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder: Path) -> list[Any]:
    """Records of the one event file of a run, checksums compared: length, its crc, data, its crc."""
    (file,) = folder.iterdir()
    assert file.name.startswith("events.out.tfevents.")
    data, found, at = file.read_bytes(), list[Any](), 0
    while at < len(data):
        length, crc = struct.unpack_from("<QI", data, at)
        assert crc == _masked(data[at : at + 8])
        body = data[at + 12 : at + 12 + length]
        assert struct.unpack_from("<I", data, at + 12 + length)[0] == _masked(body)
        found.append(Event.FromString(body))
        at += 16 + length
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


@pytest.fixture
def plan() -> FitPlan:
    return plan_of("a", rates=(1e-3, 1e-4))


def test_losses_of_every_run(plan: FitPlan, tmp_path: Path) -> None:
    files = EventFiles(tmp_path / "tensorboard")
    files.started(plan)
    assert not (tmp_path / "tensorboard").exists()
    files.stepped(plan, steps_of(plan, 1, 2, (1.0, 2.0)))
    files.stepped(plan, steps_of(plan, 3, 3, (1.0, 2.0)))
    live = scalars(tmp_path / "tensorboard" / plan.run_ids()[1])  # flushed before the end
    files.ended(plan, "")
    assert {p.name for p in (tmp_path / "tensorboard").iterdir()} == set(plan.run_ids())
    assert live == scalars(tmp_path / "tensorboard" / plan.run_ids()[1])
    assert live["val_loss"] == [(1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3))]
    assert live["train_loss"] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert live["val_accuracy"] == [(1, 0.25), (2, 0.25), (3, 0.25)]
    first, text = events(tmp_path / "tensorboard" / plan.run_ids()[1])[:2]
    assert first.file_version == "brain.Event:2"
    table = text.summary.value[0].tensor.string_val[0].decode()
    assert "|learning rate|0.0001|" in table
    assert "|embedder|a|" in table


@pytest.mark.parametrize("same_process", [True, False])
def test_a_fit_that_is_taken_up_again_writes_no_epoch_twice(plan: FitPlan, tmp_path: Path, same_process: bool) -> None:
    files = EventFiles(tmp_path)
    files.stepped(plan, steps_of(plan, 1, 5, (1.0, 2.0)))
    folder = tmp_path / plan.run_ids()[0]
    (folder / "events.out.tfevents.1.torn").write_bytes(b"half a rec")
    again = files if same_process else EventFiles(tmp_path)
    again.stepped(plan, steps_of(plan, 1, 3, (1.0, 2.0)))  # its checkpoint was older than its last report
    again.stepped(plan, steps_of(plan, 4, 6, (1.0, 2.0)))
    again.ended(plan, "")
    for run_id in plan.run_ids():
        assert [step for step, _ in scalars(tmp_path / run_id)["val_loss"]] == [1, 2, 3, 4, 5, 6]


def test_runs_leave_nothing_open(plan: FitPlan, tmp_path: Path) -> None:
    before = len(list(OPEN.iterdir()))
    files = EventFiles(tmp_path)
    files.stepped(plan, steps_of(plan, 1, 1, (1.0, 2.0)))
    assert len(list(OPEN.iterdir())) == before + 2
    files.ended(plan, "it failed")
    assert len(list(OPEN.iterdir())) == before
