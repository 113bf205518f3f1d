"""From a synthetic cohort to the report and the viewer by the commands of the README, then looked at in a browser.

The pictures of the README are its screenshots of the demo: after `make demo`,
`HER2CACHE_SWEEP=demo-out/sweep HER2CACHE_SCREENSHOTS=FOLDER pytest tests/browser/test_whole_path.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import SCREENSHOTS
from tests.commands import COMMAND, command
from tests.processes import eventually

pytestmark = [pytest.mark.browser, pytest.mark.slow]

EXPERIMENT = """\
[data]
cohort = "cohort/cohort.csv"
store = "store"
embedders = ["alexnet-random", "alexnet-random-s1"]
[splits]
test_slides = 4
folds = 2
[bags]
per_epoch = 320
validation = 100
test = 100
[training]
epochs = 3
learning_rate = [1e-3]
weight_decay = [1e-3, 1e-5]
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if there := os.environ.get("HER2CACHE_SWEEP"):
        return Path(there).absolute()
    folder = tmp_path_factory.mktemp("path")
    (folder / "experiment.toml").write_text(EXPERIMENT)
    embedders = ["--embedder", "alexnet-random", "--embedder", "alexnet-random=1"]
    for arguments in (
        ["synth", folder / "cohort", "--slides", "12", "--width", "1536"],
        ["embed", folder / "cohort/cohort.csv", "--store", folder / "store", *embedders],
        ["sweep", folder / "experiment.toml", "--out", folder / "sweep"],
        ["report", folder / "sweep"],
    ):
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
    return folder / "sweep"


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    own, failures = browser.new_page(viewport={"width": 1360, "height": 850}), list[str]()
    own.on("console", lambda message: message.type == "error" and failures.append(message.text))
    own.on("pageerror", lambda error: failures.append(str(error)))
    own.on("response", lambda answer: answer.status >= 400 and failures.append(f"{answer.status} {answer.url}"))
    yield own
    own.close()
    assert failures == []


def test_the_report(page: Any, sweep: Path) -> None:
    page.goto((sweep / "report.html").as_uri())
    page.wait_for_function("() => Bokeh.documents.length > 0")
    assert page.locator("h1").inner_text().startswith("HER2 score from H&E slides")
    assert page.locator("img[src^='data:image']").count() >= 4  # a map of each test slide
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.evaluate("document.getElementById('h-curves').scrollIntoView()")
    page.wait_for_timeout(1500)  # charts are drawn when they come into view
    page.screenshot(path=SCREENSHOTS / "report.png")


def test_the_viewer(page: Any, sweep: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        served = subprocess.Popen([COMMAND, "view", str(sweep)], stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        assert eventually(lambda: "token=" in log.read_text(), 60), log.read_text()
        page.goto(next(word for word in log.read_text().split() if word.startswith("http")))
        page.wait_for_function("() => window.her2cache && window.her2cache.ready")
        page.wait_for_function("() => performance.getEntriesByType('resource').some((e) => e.name.includes('/ihc/'))")
        page.wait_for_load_state("networkidle")
        page.locator("nav tbody tr:nth-child(2) a").click()
        page.wait_for_function("() => window.her2cache && window.her2cache.ready")
        page.wait_for_timeout(1000)
        box = page.locator(".plot").first.bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.locator("#patch").wait_for()
        page.wait_for_function("() => document.getElementById('patch-picture').naturalWidth > 0")
        assert "attention-weighted score" in page.locator("#patch-values").inner_text()
        page.wait_for_timeout(1000)  # the tiles are drawn
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / "viewer.png")
        served.send_signal(signal.SIGINT)
        assert served.wait(timeout=30) == 0
    finally:
        served.kill()
        served.wait()
