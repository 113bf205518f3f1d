"""Which class is taken for which: confusion matrices over bags and over cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trainers.cases import Cases
from trainers.findings import Findings
from trainers.palette import DPI, MAP, ink


@dataclass(frozen=True)
class Confusion:
    """Counts of one embedder.

    Attributes:
        embedder: its name.
        level: what is counted.
        counts: of true class i predicted as j, int (classes, classes).
        models: predictions that each bag or case counts with: one a model, or a seed.
    """

    embedder: str
    level: str
    counts: NDArray[np.int64]
    models: int

    @property
    def shares(self) -> NDArray[np.float64]:
        """Counts over their row's sum; NaN for a class without a true case."""
        n = self.counts.sum(axis=1, keepdims=True)
        return np.where(n > 0, self.counts / np.maximum(n, 1), np.nan)


def confusions(found: Findings) -> list[Confusion]:
    """Of every embedder over bags (paper protocol), the cases of the fixed test set, and all cases when nested."""
    classes = len(found.task.classes)
    made: list[Confusion] = []
    for embedder in found.embedders:
        if embedder in found.selected:
            rows = found.of(embedder)
            p = np.column_stack([rows[f"p_{c}"].to_numpy() for c in range(classes)])  # (bags, classes)
            counts = _count(rows["label"].to_numpy(), p.argmax(axis=1), classes)
            made.append(Confusion(embedder, "bags (paper protocol)", counts, len(found.selected[embedder])))
            made.append(_of_cases(embedder, "cases (fixed test set)", found.fixed[embedder].cases))
        if embedder in found.nested:
            made.append(_of_cases(embedder, "cases (nested)", found.nested[embedder].cases))
    return made


def _of_cases(embedder: str, level: str, cases: Cases) -> Confusion:
    seeds, _, classes = cases.p.shape
    counts = sum(_count(cases.y, p.argmax(axis=1), classes) for p in cases.p)
    return Confusion(embedder, level, np.asarray(counts), seeds)


def _count(y: NDArray[Any], predicted: NDArray[Any], classes: int) -> NDArray[np.int64]:
    return np.bincount(y * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def confusion_rows(made: Sequence[Confusion], classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of confusion.csv: a cell each."""
    for one in made:
        for i, true in enumerate(classes):
            for j, predicted in enumerate(classes):
                share = float(one.shares[i, j])
                yield {
                    "embedder": one.embedder,
                    "level": one.level,
                    "true": true,
                    "predicted": predicted,
                    "count": int(one.counts[i, j]),
                    "row_share": None if np.isnan(share) else share,
                    "models": one.models,
                }


def draw_confusions(made: Sequence[Confusion], classes: Sequence[str], *, caption: str, out: Path) -> None:
    """Writes a PNG: a row an embedder, a column a level."""
    embedders = list(dict.fromkeys(one.embedder for one in made))
    levels = list(dict.fromkeys(one.level for one in made))
    by: Mapping[tuple[str, str], Confusion] = {(one.embedder, one.level): one for one in made}
    side = 0.52 * len(classes) + 0.5
    size = (max(side * len(levels) + 1.2, 6.5), side * len(embedders) + 1.3)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.subplots(len(embedders), len(levels), squeeze=False, sharex=True, sharey=True)
    for line, embedder in zip(axes, embedders, strict=True):
        for panel, level in zip(line, levels, strict=True):
            if (embedder, level) in by:
                _draw_panel(panel, by[embedder, level], classes)
            else:
                panel.set_axis_off()
        line[0].set_ylabel(f"{embedder}\ntrue class", fontsize=8, parse_math=False)
    for panel, level in zip(axes[0], levels, strict=True):
        panel.set_title(level, fontsize=9)
    for panel in axes[-1]:
        panel.set_xlabel("predicted class", fontsize=8)
    figure.suptitle(caption, fontsize=8, parse_math=False)
    figure.savefig(out, format="png")


def _draw_panel(axes: Axes, one: Confusion, classes: Sequence[str]) -> None:
    shares = np.nan_to_num(one.shares)
    axes.imshow(shares, cmap=MAP, vmin=0, vmax=1, interpolation="nearest")
    for (i, j), count in np.ndenumerate(one.counts):
        text = f"{count:,}\n{100 * shares[i, j]:.0f} %" if one.counts[i].sum() else "–"
        axes.text(j, i, text, ha="center", va="center", fontsize=7, color=ink(float(shares[i, j])))
    axes.set_xticks(range(len(classes)), classes, fontsize=7)
    axes.set_yticks(range(len(classes)), classes, fontsize=7)
    axes.tick_params(length=0)
