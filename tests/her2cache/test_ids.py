"""Slide ids and the names of their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from her2cache.errors import CohortError
from her2cache.ids import decode_slide_id, encode_slide_id
from tests.cohorts import HEADER, places, table


class TestIds:
    @pytest.mark.parametrize(
        ("slide_id", "name"),
        [
            ("CMU-1_a.b", "CMU-1_a.b"),
            ("..", "%2E."),
            ("a/b 1", "a%2Fb%201"),
            ("50%", "50%25"),
            ("é", "%C3%A9"),
        ],
    )
    def test_names(self, slide_id: str, name: str) -> None:
        assert encode_slide_id(slide_id) == name
        assert decode_slide_id(name) == slide_id

    @pytest.mark.parametrize("slide_id", ["", "x" * 201, "é" * 34, "\udcff"])
    def test_ids_that_cannot_be_names(self, slide_id: str) -> None:
        with pytest.raises(CohortError):
            encode_slide_id(slide_id)

    @pytest.mark.parametrize("name", ["", ".DS_Store", "%41", "%c3%a9", "%FF", "a b", "%", "é"])
    def test_names_that_are_not_ours(self, name: str) -> None:
        with pytest.raises(CohortError):
            decode_slide_id(name)

    def test_an_over_long_id_is_a_fault_of_its_row(self, tmp_path: Path) -> None:
        assert (2, "slide_id") in places(table(tmp_path, HEADER, f"{'x' * 201},c1,a.svs,HE,1,,"))
