"""The picture of AUC against the number of bags is drawn whatever is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.predictions import write_scores
from trainers.convergence import FILE, draw_auc_by_bags
from trainers.results import read_csv

COLOURED = 200


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("known", "drawn"), [(True, True), (False, False)])
def test_auc_by_bags(tmp_path: Path, known: bool, drawn: bool) -> None:
    write_scores(tmp_path, "$embedder$ <b>")
    rows = [row if known else {**row, "auc": "", "auc_p2.5": "", "auc_p97.5": ""} for row in read_csv(tmp_path, FILE)]
    draw_auc_by_bags(rows, caption="8 cases", out=tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] >= 1000
    coloured = (pixels.max(axis=2) - pixels.min(axis=2) > 40).sum()
    assert (coloured > COLOURED) == drawn
