"""A slide that may not be read is recorded, the run goes on, and `--on-error fail` stops at it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from her2cache.store.reader import FeatureStore
from tests.commands import COMMAND
from tests.slides import texture, write_slide

_DROP_FROM_BOUNDING_SET, _DAC_OVERRIDE, _DAC_READ_SEARCH = 24, 1, 2  # prctl(2), capabilities(7)
_LIBC = ctypes.CDLL(None, use_errno=True)


def _give_up_privileges() -> None:
    """What makes root read everything, given up in a child for good; other users have nothing to give up."""
    if os.geteuid() == 0:
        for capability in (_DAC_OVERRIDE, _DAC_READ_SEARCH):
            if _LIBC.prctl(_DROP_FROM_BOUNDING_SET, capability, 0, 0, 0):
                os._exit(99)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    for name in ("a-good", "b-closed", "c-good"):
        write_slide(tmp_path / f"{name}.tif", texture(480, 480))
    (tmp_path / "b-closed.tif").chmod(0o000)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    write_slide(hidden / "d-hidden.tif", texture(480, 480))
    hidden.chmod(0o000)
    yield tmp_path
    hidden.chmod(0o700)


def _embed(folder: Path, store: str, *options: str) -> tuple[int, dict[str, str], dict[str, str]]:
    """Exit code, statuses and reasons."""
    rows = [f"{Path(n).name},{Path(n).name},{n}.tif,HE,0" for n in ("b-closed", "a-good", "hidden/d-hidden", "c-good")]
    (folder / "cohort.csv").write_text("\n".join(["slide_id,case_id,path,stain,her2_score", *rows]) + "\n")
    arguments = [
        COMMAND,
        "embed",
        folder / "cohort.csv",
        "--store",
        folder / store,
        "--embedder",
        "alexnet-random",
        "--json",
    ]
    run = subprocess.run(
        [*map(str, arguments), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        preexec_fn=_give_up_privileges,
    )
    if run.returncode == 99:
        pytest.skip("this user cannot give up its privileges")
    assert run.stderr == ""
    items = json.loads(run.stdout)["items"]
    return run.returncode, {i["id"]: i["status"] for i in items}, {i["id"]: i["reason"] for i in items}


@pytest.mark.slow
def test_what_may_not_be_read(folder: Path) -> None:
    code, statuses, reasons = _embed(folder, "store")
    assert code == 1
    assert statuses == {"b-closed": "failed", "a-good": "done", "d-hidden": "failed", "c-good": "done"}
    store = FeatureStore.open(folder / "store")
    (space,) = store.spaces()
    failures = {failure.slide_id: failure for failure in store.failures(space.key)}
    assert set(failures) == {"b-closed", "d-hidden"}
    for name, failure in failures.items():
        assert (failure.error, failure.reason) == ("SlideOpenError", reasons[name])
        assert "may not be read by this user (Permission denied); change its permissions" in failure.reason
    assert store.slides(space.key) == ["a-good", "c-good"]

    (folder / "b-closed.tif").chmod(0o600)  # mended: the same command does the rest
    code, statuses, _ = _embed(folder, "store")
    assert (code, statuses["b-closed"], statuses["a-good"], statuses["d-hidden"]) == (1, "done", "skipped", "failed")

    (folder / "b-closed.tif").chmod(0o000)
    code, statuses, reasons = _embed(folder, "other", "--on-error", "fail")
    assert code == 1
    assert "failed" in {statuses["b-closed"], statuses["d-hidden"]}
    assert "skipped" in statuses.values()
    assert any("the job stopped at the first failure" in reason for reason in reasons.values())
