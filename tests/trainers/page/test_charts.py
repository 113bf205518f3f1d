"""Charts hold the numbers of the sweep, and the same charts are the same documents."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.models import GlyphRenderer

from trainers.page.charts import Chart, bags_chart, learning_chart, roc_chart
from trainers.roc import GRID, band, roc_curves


def curves(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    labels = np.arange(90) % 3
    found = []
    for fold in range(2):
        p = rng.dirichlet(np.ones(3), 90)
        p[np.arange(90), labels] += 0.3
        found += roc_curves(f"run-{seed}-{fold}", fold, labels, p)
    return found


def read(chart: Chart) -> list[Any]:
    """What a chart draws, as Bokeh reads it."""
    (fig,) = Document.from_json(chart.document).roots
    return list(fig.select({"type": GlyphRenderer}))


def tagged(drawn: list[Any], *tags: object) -> list[Any]:
    return [each for each in drawn if each.tags == list(tags)]


def test_roc_means_are_those_of_the_bands() -> None:
    embedders = {"a": curves(0), "b": curves(1)}
    chart = roc_chart(embedders, ["x", "y", "z"])
    drawn = read(chart)
    for e, own in enumerate(embedders.values()):
        for c in range(3):
            over = band([curve for curve in own if curve.label == c])
            (mean,) = tagged(drawn, "mean", e, c)
            np.testing.assert_allclose(mean.data_source.data["x"], GRID, rtol=1e-6)
            for name, values in (("y", over.mean), ("low", over.low), ("high", over.high)):
                np.testing.assert_allclose(mean.data_source.data[name], values, atol=1e-6)
            assert len(tagged(drawn, "run", e, c)) == 2
            assert chart.more["labels"][e][c].startswith(f"{over.auc:.2f} ± ")
            assert mean.visible == (e == 0)


def test_the_same_numbers_make_the_same_document() -> None:
    first = roc_chart({"a": curves(0)}, ["x", "y", "z"])
    bags_chart([])  # Bokeh counts its models over all charts of a process
    again = roc_chart({"a": curves(0)}, ["x", "y", "z"])
    assert json.dumps(first.document) == json.dumps(again.document)


def test_learning_curves_of_the_selected_runs_are_in_the_frame() -> None:
    rows = [
        {"run_id": run, "epoch": k, "train_loss": 1.0 - 0.1 * k, "val_loss": loss + 0.05 * (k - 1) ** 2,
         "best": k == 1, "selected": loss < 2, "reason": ""}
        for run, loss in (("good", 1.2), ("astray", 50.0))
        for k in range(3)
    ]  # fmt: skip
    failed = {**rows[0], "run_id": "failed", "train_loss": None, "val_loss": None, "reason": "out of memory"}
    chart = learning_chart({"e": [*rows, failed]})
    drawn = read(chart)
    (val,), (train,), (kept,) = (tagged(drawn, kind, 0, -1) for kind in ("val", "train", "kept"))
    np.testing.assert_allclose(val.data_source.data["x"], [1, 2, 3])
    np.testing.assert_allclose(val.data_source.data["y"], [1.25, 1.2, 1.25], rtol=1e-6)
    np.testing.assert_allclose(train.data_source.data["y"], [1.0, 0.9, 0.8], rtol=1e-6)
    np.testing.assert_allclose(kept.data_source.data["x"], [2])
    frame = chart.more["frames"][0]
    assert frame["bottom"] < 0.8
    assert 1.25 < frame["top"] < 2


def test_auc_by_bags() -> None:
    rows = [
        {"embedder": e, "bags": str(n), "auc": str(0.5 + k / 10), "auc_p2.5": "0.4", "auc_p97.5": "0.9"}
        for e in ("a", "b")
        for k, n in enumerate((1, 10, 100))
    ]
    chart = bags_chart([*rows, {**rows[0], "bags": "1000", "auc": ""}])
    assert chart.more["embedders"] == ["a", "b"]
    line, _ = tagged(read(chart), "mean", 0, -1)  # and its dots
    np.testing.assert_allclose(line.data_source.data["x"], [1, 10, 100])
    np.testing.assert_allclose(line.data_source.data["y"], [0.5, 0.6, 0.7], rtol=1e-6)
