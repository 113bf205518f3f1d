"""Properties of slide ids and cohort tables that hold for any text."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from her2cache.cells import LIMITS
from her2cache.cohort import Slide, check_cohort, read_cohort, write_cohort
from her2cache.errors import CohortError, Her2CacheError
from her2cache.ids import MAX_NAME_BYTES, decode_slide_id, encode_slide_id

_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
_TRIMMED = _TEXT.map(str.strip).filter(bool)
_FILE_NAMES = _TEXT.map(lambda text: text.replace("/", "_") + ".svs")


@given(st.text(min_size=1, max_size=60))
def test_an_id_survives_as_a_name(slide_id: str) -> None:
    try:
        name = encode_slide_id(slide_id)
    except CohortError:
        surrogate = any("\ud800" <= character <= "\udfff" for character in slide_id)
        assert surrogate or 3 * len(slide_id.encode()) > MAX_NAME_BYTES
        return
    assert re.fullmatch(r"[A-Za-z0-9_%-][A-Za-z0-9._%-]*", name)
    assert len(name) <= MAX_NAME_BYTES
    assert decode_slide_id(name) == slide_id


@given(st.text(max_size=20))
def test_a_name_is_decoded_only_if_it_is_the_name_of_its_id(name: str) -> None:
    try:
        slide_id = decode_slide_id(name)
    except CohortError:
        return
    assert encode_slide_id(slide_id) == name


@st.composite
def _cohorts(draw: st.DrawFn) -> list[Slide]:
    """Slides without contradictions: what is known of a case is drawn once."""
    ids = draw(st.lists(_TRIMMED, min_size=1, max_size=6, unique_by=str.lower))
    files = draw(st.lists(_FILE_NAMES, min_size=len(ids), max_size=len(ids), unique=True))
    cases = draw(st.lists(_TRIMMED, min_size=1, max_size=3, unique=True))
    score = {case: draw(st.sampled_from([None, 0, 1, 2, 3])) for case in cases}
    split = {case: draw(st.sampled_from([None, "train", "test"])) for case in cases}
    ish = {case: draw(st.sampled_from([None, True, False])) for case in cases}
    mpp = st.none() | st.floats(0.05, 10.0)
    thresholds = st.fixed_dictionaries({}, optional={name: st.floats(*limits) for name, limits in LIMITS.items()})
    regions = st.none() | _FILE_NAMES.map(lambda name: Path("regions") / name)
    slides = list[Slide]()
    for slide_id, file in zip(ids, files, strict=True):
        case, stain = draw(st.sampled_from(cases)), draw(st.sampled_from(["HE", "IHC"]))
        given_thresholds = draw(thresholds)
        slides.append(
            Slide(
                slide_id,
                case,
                Path("slides") / file,
                stain,
                score[case],
                split[case],
                draw(mpp),
                draw(regions),
                tuple((name, given_thresholds[name]) for name in LIMITS if name in given_thresholds),
                ish[case],
            )
        )
    return slides


@given(_cohorts(), st.sampled_from(["csv", "parquet"]))
def test_a_table_reads_back_as_it_was(slides: list[Slide], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        there = [
            replace(s, path=root / s.path, regions=None if s.regions is None else root / s.regions) for s in slides
        ]
        table = Path(folder) / f"cohort.{suffix}"
        write_cohort(there, table)
        assert list(read_cohort(table).slides) == there


_SOUP = st.text(st.sampled_from('slide_id,case_id,path,stain\n"\t; HE019.+\r\x00é'), max_size=200)


@given(st.binary(max_size=200) | _SOUP.map(str.encode))
def test_any_bytes_are_a_table_or_a_clear_fault(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "cohort.csv"
        table.write_bytes(content)
        faults = check_cohort(table)
        assert all(fault.message and "\n" not in fault.message for fault in faults)
        try:
            read_cohort(table)
        except Her2CacheError:
            assert faults
