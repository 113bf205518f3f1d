"""The cohort table: what is read, what is a fault and where, and scanning folders into one."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from her2cache.cohort import Cohort, Slide, check_cohort, read_cohort, write_cohort
from her2cache.errors import CohortError
from tests.cohorts import HEADER, places, slide_file, table


class TestRead:
    def test_values_and_paths(self, tmp_path: Path) -> None:
        path = table(tmp_path, HEADER, "s1,c1,slides/a.svs,HE,2,train,0.25", "s2,c2,/far/b.svs,IHC,,,")
        assert read_cohort(path) == Cohort(
            (
                Slide("s1", "c1", tmp_path / "slides/a.svs", "HE", 2, "train", 0.25),
                Slide("s2", "c2", Path("/far/b.svs"), "IHC", None, None, None),
            ),
            path,
        )

    def test_thresholds_and_regions_of_a_slide(self, tmp_path: Path) -> None:
        path = table(
            tmp_path,
            "slide_id,case_id,path,stain,her2_score,annotations,saturation_min,min_tissue",
            "s1,c1,a.svs,HE,1,roi/s1.geojson,0.05,",
            "s2,c2,b.svs,HE,1,,,",
        )
        one, two = read_cohort(path).slides
        assert one.regions == tmp_path / "roi/s1.geojson"
        assert one.thresholds == (("saturation_min", 0.05),)
        assert (two.regions, two.thresholds) == (None, ())

    def test_with_stain(self, tmp_path: Path) -> None:
        path = table(tmp_path, HEADER, "s1,c1,a.svs,HE,2,,", "s2,c1,b.svs,IHC,2,,", "s3,c2,c.svs,HE,0,,")
        cohort = read_cohort(path)
        assert [slide.slide_id for slide in cohort.with_stain("HE").slides] == ["s1", "s3"]
        assert [slide.slide_id for slide in cohort.with_stain("IHC").slides] == ["s2"]

    @pytest.mark.parametrize(
        "header",
        [
            "slide,PATIENT,FILENAME,stain,label",
            "SLIDE,patient,wsi,Stain,LABEL",
            "Slide ID,case-id,Path,STAIN,HER2 score",
            "\ufeffslide_id,case_id,path,stain,her2_score",
        ],
    )
    def test_aliases_in_any_case(self, tmp_path: Path, header: str) -> None:
        slides = read_cohort(table(tmp_path, header, "s1,c1,a.svs,HE,3")).slides
        assert slides == (Slide("s1", "c1", tmp_path / "a.svs", "HE", 3),)

    def test_unknown_columns_are_ignored(self, tmp_path: Path) -> None:
        path = table(tmp_path, f",{HEADER},fold_0,fold_1,fold_1,age", "0,s1,c1,a.svs,HE,1,,,train,x,y,61")
        assert read_cohort(path).slides == (Slide("s1", "c1", tmp_path / "a.svs", "HE", 1),)

    @pytest.mark.parametrize(("cell", "stain"), [("H&E", "HE"), ("he", "HE"), ("ihc", "IHC"), ("Her2", "IHC")])
    def test_stain_spellings(self, tmp_path: Path, cell: str, stain: str) -> None:
        assert read_cohort(table(tmp_path, HEADER, f"s,c,a.svs,{cell},1,,")).slides[0].stain == stain

    @pytest.mark.parametrize(
        ("cell", "score"), [("0", 0), ("1+", 1), ("2+", 2), ("3+", 3), ("1.0", 1), (" 3 ", 3), ("", None)]
    )
    def test_score_spellings(self, tmp_path: Path, cell: str, score: int | None) -> None:
        assert read_cohort(table(tmp_path, HEADER, f"s,c,a.svs,HE,{cell},,")).slides[0].her2_score == score

    def test_ids_are_text(self, tmp_path: Path) -> None:
        slide = read_cohort(table(tmp_path, HEADER, "007,1e3,a.svs,HE,1,,")).slides[0]
        assert (slide.slide_id, slide.case_id) == ("007", "1e3")

    @pytest.mark.parametrize("separator", [";", "\t"])
    def test_other_separators(self, tmp_path: Path, separator: str) -> None:
        lines = [line.replace(",", separator) for line in (HEADER, "s1,c1,a.svs,HE,1,test,")]
        assert read_cohort(table(tmp_path, *lines)).slides[0].split == "test"

    def test_parquet_as_pandas_writes_it(self, tmp_path: Path) -> None:
        columns = {"slide": [7, 8], "patient": ["c1", "c2"], "wsi": ["a.svs", "b.svs"], "stain": ["HE", "HE"]}
        table = pa.table({**columns, "label": [1.0, float("nan")], "mpp": [0.5, None]})
        pq.write_table(table, tmp_path / "cohort.parquet")
        slides = read_cohort(tmp_path / "cohort.parquet").slides
        assert slides == (
            Slide("7", "c1", tmp_path / "a.svs", "HE", 1, None, 0.5),
            Slide("8", "c2", tmp_path / "b.svs", "HE"),
        )

    def test_files_need_not_exist_unless_asked(self, tmp_path: Path) -> None:
        path = table(tmp_path, HEADER, "s1,c1,gone.svs,HE,1,,")
        assert len(read_cohort(path).slides) == 1
        with pytest.raises(CohortError, match=r"row 2: path: .*gone\.svs does not exist"):
            read_cohort(path, check_files=True)

    def test_one_error_lists_ten_faults_and_counts_the_rest(self, tmp_path: Path) -> None:
        path = table(tmp_path, HEADER, *(f"s{i},c{i},{i}.svs,HE,9,," for i in range(12)))
        with pytest.raises(CohortError) as caught:
            read_cohort(path)
        message = str(caught.value)
        assert "has 12 faults" in message
        assert "row 11: her2_score" in message
        assert "row 12" not in message
        assert message.endswith("and 2 more")


class TestFaults:
    def test_every_fault_at_once_with_its_row(self, tmp_path: Path) -> None:
        for name in "abcdefghij":
            slide_file(tmp_path / f"{name}.svs")
        (tmp_path / "empty.svs").touch()
        (tmp_path / "folder.svs").mkdir()
        path = table(
            tmp_path,
            HEADER,
            "s1,c1,a.svs,HE,1,train,0.5",
            "s2,c2,b.svs,HE,4,train,",  # 3: score
            "s3,c3,c.svs,PAS,1,valid,50",  # 4: stain, split, mpp
            "",  # a blank line is not a row, but counts as a line
            ",,d.svs,HE,1,,0,5",  # 6: ragged
            ",,d.svs,HE,1,,zero",  # 7: slide_id, case_id, mpp
            "s1,c5,e.svs,HE,1,,",  # 8: slide_id of row 2
            "S1,c6,f.svs,HE,1,,",  # 9: differs from row 2 in case only
            "s7,c1,g.svs,HE,2,test,",  # 10: other score and split than row 2
            "s8,c8,gone.svs,HE,1,,",  # 11
            "s9,c9,folder.svs,HE,1,,",  # 12
            "s10,c10,empty.svs,HE,1,,",  # 13
            "s11,c11,./h.svs,HE,1,,nan",  # 14: mpp
            "s12,c12,x/../h.svs,HE,1+,,",  # 15: file of row 14
        )
        faults = {(fault.row, fault.column): fault.message for fault in check_cohort(path)}
        assert list(faults) == [
            (3, "her2_score"),
            (4, "stain"),
            (4, "split"),
            (4, "mpp"),
            (6, None),
            (7, "slide_id"),
            (7, "case_id"),
            (7, "mpp"),
            (8, "slide_id"),
            (9, "slide_id"),
            (10, "her2_score"),
            (10, "split"),
            (11, "path"),
            (12, "path"),
            (13, "path"),
            (14, "mpp"),
            (15, "path"),
        ]
        for place in [(8, "slide_id"), (9, "slide_id"), (10, "her2_score"), (10, "split")]:
            assert "row 2" in faults[place]
        assert "row 14" in faults[15, "path"]
        assert "folder" in faults[12, "path"]
        assert "empty" in faults[13, "path"]

    def test_thresholds_and_regions_of_a_slide(self, tmp_path: Path) -> None:
        slide_file(tmp_path / "a.svs")
        path = table(
            tmp_path,
            "slide_id,case_id,path,stain,her2_score,ROI,saturation_min,hue max,min_tissue",
            "s1,c1,a.svs,HE,1,gone.geojson,1.5,many,0.2",
        )
        faults = {(fault.row, fault.column): fault.message for fault in check_cohort(path)}
        assert list(faults) == [(2, "regions"), (2, "hue_max"), (2, "saturation_min")]
        assert "between 0 and 1" in faults[2, "saturation_min"]
        assert "no number" in faults[2, "hue_max"]

    def test_a_linked_slide_is_the_same_file(self, tmp_path: Path) -> None:
        slide_file(tmp_path / "a.svs")
        (tmp_path / "b.svs").symlink_to(tmp_path / "a.svs")
        assert places(table(tmp_path, HEADER, "s1,c1,a.svs,HE,1,,", "s2,c2,b.svs,HE,1,,")) == [(3, "path")]

    def test_an_unlabelled_sister_slide_does_not_contradict(self, tmp_path: Path) -> None:
        slide_file(tmp_path / "a.svs")
        slide_file(tmp_path / "b.svs")
        path = table(tmp_path, HEADER, "s1,c1,a.svs,HE,1,train,", "s2,c1,b.svs,IHC,,,")
        assert check_cohort(path) == []

    def test_missing_columns_name_their_aliases(self, tmp_path: Path) -> None:
        faults = check_cohort(table(tmp_path, "slide_id,stain", "s1,HE"))
        assert [(fault.row, fault.column) for fault in faults] == [
            (1, "case_id"),
            (1, "path"),
            (1, "her2_score"),
        ]
        assert "patient" in faults[0].message
        assert "wsi" in faults[1].message

    def test_two_columns_of_one_meaning(self, tmp_path: Path) -> None:
        faults = check_cohort(table(tmp_path, HEADER + ",PATIENT", "s1,c1,a.svs,HE,1,,,c2"))
        assert (faults[0].row, faults[0].column) == (1, "case_id")
        assert "'case_id' and 'PATIENT'" in faults[0].message

    def test_no_slide_below_the_header(self, tmp_path: Path) -> None:
        assert places(table(tmp_path, HEADER)) == [(1, None)]

    def test_an_open_quote_is_found_where_it_opens(self, tmp_path: Path) -> None:
        path = table(tmp_path, HEADER, "s1,c1,a.svs,HE,1,,", 's2,"c2,b.svs,HE,1,,', "s3,c3,c.svs,HE,1,,")
        assert (3, None) in places(path)

    def test_rows_after_a_quoted_line_break_keep_their_line(self, tmp_path: Path) -> None:
        path = table(tmp_path, HEADER + ",note", 's1,c1,a.svs,HE,1,,,"two\nlines"', "s2,c2,b.svs,HE,7,,,")
        assert (4, "her2_score") in places(path)

    def test_control_characters_in_an_id(self, tmp_path: Path) -> None:
        path = table(tmp_path, HEADER, 's1,"c\n1",a.svs,HE,1,,')
        assert (2, "case_id") in places(path)

    def test_parquet_rows_count_the_header(self, tmp_path: Path) -> None:
        names = HEADER.split(",")[:5]
        rows = [("s1", "c1", "a.svs", "HE", 1), ("s2", "c2", "b.svs", "HE", 5)]
        table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})
        pq.write_table(table, tmp_path / "cohort.parquet")
        assert (3, "her2_score") in places(tmp_path / "cohort.parquet")

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "empty"),
            (b" \n\n", "empty"),
            (b"II*\0\x08\0\0\0", "binary"),
            (HEADER.encode("utf-16"), "UTF-16"),
            (b"PK\x03\x04rest", "workbook"),
            (b"slide_id,case_id\ns1,M\xfcller\n", r"not UTF-8 text \(first seen in line 2\)"),
            (b"PAR1 and no more", "damaged Parquet"),
            (b'"open\n', "no header"),
        ],
    )
    def test_what_is_no_table(self, tmp_path: Path, content: bytes, says: str) -> None:
        path = tmp_path / "cohort.csv"
        path.write_bytes(content)
        with pytest.raises(CohortError, match=says):
            read_cohort(path)
        (fault,) = check_cohort(path)
        assert (fault.row, fault.column) == (None, None)

    def test_missing_and_folder(self, tmp_path: Path) -> None:
        with pytest.raises(CohortError, match="does not exist"):
            read_cohort(tmp_path / "none.csv")
        with pytest.raises(CohortError, match="is a folder"):
            read_cohort(tmp_path)


class TestWrite:
    @pytest.mark.parametrize("name", ["cohort.csv", "new/cohort.parquet"])
    def test_reads_back(self, tmp_path: Path, name: str) -> None:
        slides = (
            Slide('s "1", ü', "c1", tmp_path / "new/slides/a.svs", "HE", 2, "train", 0.2524),
            Slide("s2", "c2", Path("/elsewhere/b.svs"), "IHC"),
        )
        write_cohort(slides, tmp_path / name)
        assert read_cohort(tmp_path / name).slides == slides
        assert not list((tmp_path / name).parent.glob(".*"))

    def test_a_table_moves_with_its_folder(self, tmp_path: Path) -> None:
        write_cohort([Slide("s", "c", tmp_path / "old/slides/a.svs", "HE")], tmp_path / "old/cohort.csv")
        (tmp_path / "old").rename(tmp_path / "new")
        assert read_cohort(tmp_path / "new/cohort.csv").slides[0].path == tmp_path / "new/slides/a.svs"

    @pytest.mark.parametrize(
        "slides",
        [
            [Slide("s", "c", Path("a.svs"), "HE"), Slide("s", "c", Path("b.svs"), "HE")],
            [Slide("s", "c", Path("a.svs"), "HE", 4)],
            [Slide(" s", "c", Path("a.svs"), "HE")],
            [Slide("s", "c", Path("a\udcff.svs"), "HE")],
            [],
        ],
    )
    def test_never_writes_what_cannot_be_read(self, tmp_path: Path, slides: list[Slide]) -> None:
        with pytest.raises(CohortError):
            write_cohort(slides, tmp_path / "cohort.csv")
        assert not list(tmp_path.iterdir())

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(CohortError, match="cannot be written"):
            write_cohort([Slide("s", "c", Path("a.svs"), "HE")], tmp_path / "file" / "cohort.csv")
