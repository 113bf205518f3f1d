"""Numbers as readers see them."""

from __future__ import annotations

import pytest

from trainers.page.sheet import number, small, span, to_number, with_half


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.6219, 3, "0.622"), (-0.25, 2, "−0.25"), (-0.001, 2, "0.00"), (2500, 0, "2,500"), (None, 2, "undefined")],
)
def test_numbers(value: float | None, digits: int, text: str) -> None:
    assert number(value, digits) == text


def test_ranges_and_half_widths() -> None:
    assert with_half(0.6219, 0.0271) == "0.622 ± 0.027"
    assert with_half(0.6219, None) == "0.622"
    assert with_half(None, 0.1) == "undefined"
    assert span(0.25, 0.785) == "0.25–0.79"
    assert span(-0.6, 0.6) == "−0.60 to 0.60"
    assert span(None, 0.6) == "–"
    assert [small(value) for value in (0.000107, 0.06, 3e-5, None)] == ["0.00011", "0.060", "3.0e-05", "–"]
    assert (to_number(""), to_number(None), to_number("0.5")) == (None, None, 0.5)
