"""52 slides with 380,000 patches of 224 px train within 4 GiB of memory: their files are sparse, all else is real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LIMIT = 4 << 30
SLIDES, PATCHES, PX = 52, 380_000, 224

TRAINING = """
import itertools, resource, sys
from pathlib import Path
import numpy as np
resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}))  # heap and private maps; the page cache is the kernel's
from trainers.pretraining.cutting import CutSlide
from trainers.pretraining.ihc import CLASSES, SlidePatches
from trainers.pretraining.loop import PretrainSettings, pretrain
from trainers.pretraining.patches import SourceData

folder, px = Path(sys.argv[1]), {px}

def slides(name, count, patches):
    cut = []
    for k in range(count):
        path = folder / f"{{name}}{{k}}.patches"
        with path.open("wb") as file:
            file.write(np.random.default_rng(k).integers(0, 256, (px, px, 3), np.uint8).data)
            file.truncate(patches * px * px * 3)
        cut.append(CutSlide(path.stem, path.stem, k % 4, path, patches, px, "0"))
    return cut

class FirstSteps(SlidePatches):
    seen = 0
    def shuffled(self, seed, epoch):
        for block in itertools.islice(super().shuffled(seed, epoch), 3):
            FirstSteps.seen += len(block[1])
            yield block

train = FirstSteps(slides("train", {slides}, -(-{patches} // {slides})))
assert train.size >= {patches}
few = [SlidePatches(slides(name, 4, 3)) for name in ("valid", "test")]
data = SourceData("ihc", CLASSES, 0.5, px, "0" * 64, train, *few)
(epoch,) = pretrain(data, PretrainSettings(epochs=1), folder / "w.safetensors", threads=2)
assert FirstSteps.seen == 3 * 64, FirstSteps.seen
status = Path("/proc/self/status").read_text().split()
print("peak data, KiB:", status[status.index("VmData:") + 1], "anonymous, KiB:", status[status.index("RssAnon:") + 1])
"""


@pytest.mark.soak
def test_380_000_patches_need_no_more_than_4_gib(tmp_path: Path) -> None:
    script = TRAINING.format(limit=LIMIT, px=PX, slides=SLIDES, patches=PATCHES)
    command = [sys.executable, "-c", script, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "anonymous" in ended.stdout
    files = list(tmp_path.glob("train*.patches"))
    assert sum(file.stat().st_size for file in files) >= PATCHES * PX * PX * 3
