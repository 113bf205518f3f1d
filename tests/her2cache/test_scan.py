"""Cohort tables built from folders of slides."""

from __future__ import annotations

from pathlib import Path

import openpyxl
import pytest

from her2cache.cohort import Slide, check_cohort, write_cohort
from her2cache.contest import scan_her2contest
from her2cache.errors import CohortError
from her2cache.scan import Finding, scan_folder
from tests.cohorts import slide_file
from tests.dicoms import write_series
from tests.slides import texture


class TestScanByTemplate:
    def test_default_takes_every_slide_suffix(self, tmp_path: Path) -> None:
        for name in ["b.svs", "deep/er/a.NDPI", "notes.txt", ".hidden.svs", ".git/x.svs"]:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("x")
        scan = scan_folder(tmp_path)
        assert scan.slides == (
            Slide("b", "b", tmp_path / "b.svs", "HE"),
            Slide("a", "a", tmp_path / "deep/er/a.NDPI", "HE"),
        )
        assert [finding.name for finding in scan.findings] == ["notes.txt"]

    @pytest.mark.parametrize(
        ("template", "name", "expected"),
        [
            ("{case_id}_{stain}.svs", "P_07_HE.svs", ("P_07_HE", "P_07", "HE", None)),
            ("{case_id}_{stain}", "deep/P7_ihc.tif", ("P7_ihc", "P7", "IHC", None)),
            ("{case_id}/{slide_id}", "P7/x y.ndpi", ("x y", "P7", "HE", None)),
            ("{case_id}/{case_id}_{stain}.ndpi", "01/01_Her2.ndpi", ("01_Her2", "01", "IHC", None)),
            ("{her2_score}/{case_id}*", "2+/P7.x.svs", ("P7.x", "P", "HE", 2)),
            ("*-{case_id}.v2", "lab-9.v2.svs", ("lab-9.v2", "9", "HE", None)),
        ],
    )
    def test_fields(self, tmp_path: Path, template: str, name: str, expected: tuple[object, ...]) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
        (slide,) = scan_folder(tmp_path, template).slides
        assert (slide.slide_id, slide.case_id, slide.stain, slide.her2_score) == expected
        assert slide.path == tmp_path / name

    def test_what_does_not_fit_is_reported(self, tmp_path: Path) -> None:
        for name in ["P1_HE.svs", "P1_HE.tif", "P2.svs", "01/02_HE.svs"]:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("x")
        scan = scan_folder(tmp_path, "{case_id}_{stain}.svs")
        assert [slide.case_id for slide in scan.slides] == ["02", "P1"]
        assert [finding.name for finding in scan.findings] == ["P1_HE.tif", "P2.svs"]
        with pytest.raises(CohortError, match="no slide below"):
            scan_folder(tmp_path, "{case_id}/{case_id}_{stain}.svs")

    def test_stain_of_all(self, tmp_path: Path) -> None:
        (tmp_path / "a.svs").write_text("x")
        assert scan_folder(tmp_path, stain="IHC").slides[0].stain == "IHC"

    def test_one_name_in_many_folders(self, tmp_path: Path) -> None:
        for name in ["P1/HE.svs", "P2/HE.svs", "P2/IHC.svs"]:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("x")
        slides = scan_folder(tmp_path, "{case_id}/{stain}").slides
        assert [(slide.slide_id, slide.case_id) for slide in slides] == [
            ("P1_HE", "P1"),
            ("P2_HE", "P2"),
            ("IHC", "P2"),
        ]

    def test_a_second_slide_of_one_id_is_lost_and_said(self, tmp_path: Path) -> None:
        for name in ["P1_a.svs", "P1_b.svs"]:
            (tmp_path / name).write_text("x")
        scan = scan_folder(tmp_path, "{slide_id}_*")
        assert [slide.path.name for slide in scan.slides] == ["P1_a.svs"]
        assert [(finding.name, finding.slide_lost) for finding in scan.findings] == [("P1_b.svs", True)]

    @pytest.mark.parametrize("template", ["{case}_x", "{case_id", "case_id}", "{}"])
    def test_malformed_templates(self, tmp_path: Path, template: str) -> None:
        with pytest.raises(CohortError, match="template"):
            scan_folder(tmp_path, template)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(CohortError, match="is no folder"):
            scan_folder(tmp_path / "none")


def _contest(folder: Path, rows: list[tuple[object, ...]]) -> None:
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.append(["Ground truth of the training cases"])
    percentage = "PERCENTAGE CELLS WITH COMPLETE MEMBRANE STAINING IRRESPECTIVE OF INTENSITY"
    sheet.append([None, "CaseNo", "HeR2 SCORE", percentage])
    for row in rows:
        sheet.append([None, *row])
    book.save(folder / "groundTruth.xlsx")


class TestHer2Contest:
    def test_layout(self, tmp_path: Path) -> None:
        for name in ["01/01_HE", "01/01_HER2", "04/04_HE", "04/04_Her2", "09/09_HE", "11/11_HE", "11/11_HER2"]:
            slide_file(tmp_path / f"{name}.ndpi")
        (tmp_path / "01/readme.txt").write_text("x")
        _contest(tmp_path, [(1, 0, 0), (4, 3, 90), (9.0, "2+", 20), (25, 1, 5), (None, None, None)])
        scan = scan_her2contest(tmp_path)
        assert [(s.slide_id, s.case_id, s.stain, s.her2_score) for s in scan.slides] == [
            ("01_HE", "01", "HE", 0),
            ("01_HER2", "01", "IHC", 0),
            ("04_HE", "04", "HE", 3),
            ("04_Her2", "04", "IHC", 3),
            ("09_HE", "09", "HE", 2),
            ("11_HE", "11", "HE", None),
            ("11_HER2", "11", "IHC", None),
        ]
        assert set(scan.findings) == {
            Finding("01/readme.txt", "is not NN/NN_HE.ndpi or NN/NN_HER2.ndpi"),
            Finding("case 09", "has no HER2 slide"),
            Finding("case 11", "has no score in groundTruth.xlsx: its slides are written unlabelled"),
            Finding("case 25", "has a score but no slide"),
        }
        write_cohort(scan.slides, tmp_path / "cohort.csv")
        assert check_cohort(tmp_path / "cohort.csv") == []

    def test_rows_that_give_no_score(self, tmp_path: Path) -> None:
        slide_file(tmp_path / "01/01_HE.ndpi")
        _contest(tmp_path, [(1, 2, 0), (1, 3, 0), (2, 7, 0), ("total", 1, 0)])
        scan = scan_her2contest(tmp_path)
        assert scan.slides[0].her2_score == 2
        reported = [finding.name for finding in scan.findings]
        assert {"groundTruth.xlsx row 4", "groundTruth.xlsx row 5", "groundTruth.xlsx row 6"} <= set(reported)

    @pytest.mark.parametrize("content", [None, b"no workbook", "other"])
    def test_workbook_missing_or_wrong(self, tmp_path: Path, content: bytes | str | None) -> None:
        slide_file(tmp_path / "01/01_HE.ndpi")
        if isinstance(content, bytes):
            (tmp_path / "groundTruth.xlsx").write_bytes(content)
        elif content:
            openpyxl.Workbook().save(tmp_path / "groundTruth.xlsx")
        with pytest.raises(CohortError, match=r"groundTruth\.xlsx"):
            scan_her2contest(tmp_path)


def test_the_files_of_a_dicom_series_are_one_slide(tmp_path: Path) -> None:
    for slide in ("a", "b"):
        write_series(tmp_path / slide, [texture(256, 256), texture(128, 128)])
    scan = scan_folder(tmp_path)
    assert [s.path.parent.name for s in scan.slides] == ["a", "b"]
    assert [f.reason.partition(" as ")[0] for f in scan.findings] == ["is of the same slide"] * 2
