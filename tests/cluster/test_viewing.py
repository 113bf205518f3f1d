"""The slides of a sweep as the viewer shows them, and the command that serves them."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest

from cluster.scoring import open_models
from cluster.viewing import SweepScenes
from her2cache.errors import ConfigError, SlideOpenError, SweepError
from tests.commands import COMMAND
from tests.processes import eventually
from tests.scored import COORDS, SIDE, scored_sweep
from trainers.maps import MapChoice, partition_bags, patch_maps


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scored_sweep(tmp_path_factory.mktemp("viewing"))


def test_the_list_has_the_models_predictions(sweep: Path) -> None:
    entries = SweepScenes(sweep).entries()
    models = open_models(sweep)
    assert models.embedder == "two"
    assert [e.slide_id for e in entries] == ["s0", "s1", "s2", "s3"]
    assert [e.truth for e in entries] == ["0", "1+", "2+", "3+"]
    assert {e.part for e in entries} == {"test"}
    for entry, slide in zip(entries, models.test_slides(sweep), strict=True):
        score = models.score(slide, 1000)
        assert (entry.predicted, entry.expected_score) == (models.task.classes[score.predicted], score.expected_score)


def test_a_slide_has_the_maps_of_the_best_fold(sweep: Path) -> None:
    scene = SweepScenes(sweep).open("s0")
    best = open_models(sweep, best_fold=True)
    (slide,) = [s for s in best.test_slides(sweep) if s.slide_id == "s0"]
    (scores,) = best.patch_scores(slide)
    maps = patch_maps(scores, partition_bags(len(COORDS), 1000, 20, np.random.default_rng(0)))
    by_name = {layer.name: layer for layer in scene.layers}
    assert next(iter(by_name)) == "attention-weighted score"
    assert np.allclose(by_name["attention-weighted score"].values, maps.positive(best.task))
    assert np.allclose(by_name["signed map"].values, MapChoice("signed").values(maps, scores, 20, best.task))
    assert by_name["signed map"].diverging
    alone = [layer.values for name, layer in by_name.items() if name.endswith("alone")]
    assert np.allclose(np.sum(alone, axis=0), 1)
    assert scene.ihc is not None
    assert scene.ihc.path.name == "s0-ihc.tif"
    assert (scene.patch_px, scene.step_px, scene.he.mpp, scene.he.size) == (SIDE, SIDE, 0.5, (960, 768))
    assert sorted(map(tuple, scene.coords.tolist())) == sorted(map(tuple, COORDS.tolist()))
    assert SweepScenes(sweep, embedder="one").open("s1").ihc is None


def test_what_cannot_be_shown(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tested run of embedder 'three'"):
        SweepScenes(sweep, embedder="three")
    root = tmp_path / "moved"
    shutil.copytree(sweep.parent, root)
    environment = (root / "sweep/environment.json").read_text().replace(str(sweep.parent), str(root))
    (root / "sweep/environment.json").write_text(environment)
    scenes = SweepScenes(root / "sweep")
    (root / "s1.tif").unlink()
    with pytest.raises(SlideOpenError, match="does not exist on this machine"):
        scenes.open("s1")


def test_the_command_serves_until_it_is_told_to_end(sweep: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        served = subprocess.Popen([COMMAND, "view", str(sweep)], stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        assert eventually(lambda: "token=" in log.read_text(), 60), log.read_text()
        found = re.search(r"(http://127\.0\.0\.1:\d+)/\?token=\S+", log.read_text())
        assert found
        with urlopen(found[0], timeout=30) as answer:
            assert "<h1>s0</h1>" in answer.read().decode()
        with pytest.raises(URLError, match="403"):
            urlopen(f"{found[1]}/slide/0", timeout=30)
        served.send_signal(signal.SIGINT)
        assert served.wait(timeout=30) == 0
    finally:
        served.kill()
        served.wait()


def test_a_folder_that_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=r"results\.parquet"):
        SweepScenes(tmp_path)
