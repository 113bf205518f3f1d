"""Shaded tables: what is dark, and what is framed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.predictions import write_sweep
from trainers.findings import find
from trainers.page.shades import confusion_panels, grid_panels
from trainers.page.sources import Sources, read_sources


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = write_sweep(tmp_path_factory.mktemp("shades"), {"good": 2.0})
    return read_sources(folder, find(folder))


def tried(rate: float, decay: float, loss: float | None, *, selected: bool = False) -> dict[str, Any]:
    return {"learning_rate": rate, "weight_decay": decay, "val_loss": loss, "selected": selected}


def test_confusions_are_shaded_by_the_share_of_the_true_class(sources: Sources) -> None:
    panels = confusion_panels(sources)
    assert [panel.facets for panel in panels] == [
        (("embedder", "good"), ("level", level)) for level in ("bags (paper protocol)", "cases (fixed test set)")
    ]
    for line_number, line in enumerate(panels[0].sheet.lines):
        shares = [cell.share for cell in line.cells[1:]]
        assert sum(share or 0 for share in shares) == pytest.approx(1)
        assert [cell.marked for cell in line.cells[1:]] == [line_number == j for j in range(4)]
        assert shares[line_number] == max(share or 0 for share in shares)


def test_a_grid_has_a_cell_a_configuration(sources: Sources) -> None:
    rows = [tried(1e-3, 1e-5, 1.2), tried(1e-4, 1e-5, 1.1, selected=True), tried(1e-3, 1e-7, None),
            tried(1e-4, 1e-7, 1.3)]  # fmt: skip
    (panel,) = grid_panels(replace(sources, tried={"good": rows}))
    assert [column.title for column in panel.sheet.columns] == ["Learning rate", "1e-5", "1e-7"]
    cells = [[cell.text for cell in line.cells] for line in panel.sheet.lines]
    assert cells == [["1e-3", "1.200", "failed"], ["1e-4", "1.100", "1.300"]]
    chosen = panel.sheet.lines[1].cells[1]
    assert (chosen.share, chosen.marked) == (1, True)
    assert panel.sheet.lines[1].cells[2].share == 0


def test_a_search_lists_its_best_draws(sources: Sources) -> None:
    rows = [
        tried(10 ** -(3 + k / 7), 10 ** -(3 + k / 5), 1 + k / 10 if k else None, selected=k == 1) for k in range(15)
    ]
    (panel,) = grid_panels(replace(sources, tried={"good": rows}))
    assert panel.sheet.caption == "good: the best 10 of 15 configurations"
    assert [line.cells[2].text for line in panel.sheet.lines] == [f"{1 + k / 10:.3f}" for k in range(1, 11)]
    assert [line.cells[2].marked for line in panel.sheet.lines] == [True, *[False] * 9]
