from __future__ import annotations

from trainers.config import BagsSection, ModelSection
from trainers.sizing import largest_stack, run_bytes

MIB = 2**20


def test_the_papers_run_takes_some_ten_megabytes() -> None:
    """Measured: 8.5 MiB a run in a stack of 21, of anonymous memory at its peak; the estimate may not lie below."""
    assert 8.5 * MIB < run_bytes(1024, 4, ModelSection(), BagsSection()) < 17 * MIB


def test_what_needs_more_fits_less_often() -> None:
    bags = BagsSection()
    plain = largest_stack(1024, 4, ModelSection(), bags, budget=1000 * MIB)
    assert plain > 20  # the paper's grid fits into a gigabyte
    assert largest_stack(1024, 4, ModelSection(attention="gated"), bags, budget=1000 * MIB) < plain
    assert largest_stack(1024, 4, ModelSection(), bags, budget=1000 * MIB, whole_batch=64) < plain
    assert largest_stack(4096, 4, ModelSection(), bags, budget=1000 * MIB) < plain
    assert 2 * plain <= largest_stack(1024, 4, ModelSection(), bags, budget=2000 * MIB) <= 2 * plain + 1


def test_one_run_is_always_tried() -> None:
    assert largest_stack(1024, 4, ModelSection(), BagsSection(), budget=0) == 1
