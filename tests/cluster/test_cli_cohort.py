"""`her2cache cohort check` and `scan`: what is printed, the JSON and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cluster.cli.cohort import cohort
from her2cache.cohort import read_cohort

HEADER = "slide_id,case_id,path,stain,her2_score,split,mpp"


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(cohort, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ["P1_HE.svs", "P1_IHC.svs", "P2_HE.svs", "readme.md"]:
        (tmp_path / name).write_text("x")
    return tmp_path


class TestCheck:
    def test_counts_of_a_good_table(self, folder: Path) -> None:
        table = folder / "cohort.csv"
        rows = ["s1,P1,P1_HE.svs,HE,2,train,", "s2,P1,P1_IHC.svs,IHC,,train,", "s3,P2,P2_HE.svs,HE,,,"]
        table.write_text("\n".join([HEADER, *rows]))
        result = _run("check", table, "--json")
        assert result.exit_code == 0
        document = json.loads(result.stdout)
        assert document["ok"] is True
        assert [item["id"] for item in document["items"]] == ["s1", "s2", "s3"]
        assert document["slides"] == {"HE": 2, "IHC": 1}
        assert document["cases"] == 2
        assert document["cases_by_score"] == {"2": 1, "unknown": 1}
        assert document["slides_with_split"] == 2
        assert "slides 2 HE, 1 IHC" in _run("check", table).output

    def test_every_fault_has_its_row_and_code_1(self, folder: Path) -> None:
        table = folder / "cohort[1].csv"
        table.write_text("\n".join([HEADER, "s1,P1,gone.svs,HE,9,,", "s2,P2,P2_HE.svs,PAS,1,,"]))
        result = _run("check", table)
        assert result.exit_code == 1
        for place in [":2: her2_score:", ":2: path:", ":3: stain:"]:
            assert place in result.output
        document = json.loads(_run("check", table, "--json").stdout)
        assert document["ok"] is False
        assert {item["status"] for item in document["items"]} == {"failed"}
        assert [(fault["row"], fault["column"]) for fault in document["faults"]] == [
            (2, "path"),
            (2, "her2_score"),
            (3, "stain"),
        ]

    @pytest.mark.parametrize("content", [None, b"", b"\0\1\2"])
    def test_no_table_at_all_is_code_2(self, tmp_path: Path, content: bytes | None) -> None:
        table = tmp_path / "cohort.csv"
        if content is not None:
            table.write_bytes(content)
        result = _run("check", table)
        assert result.exit_code == 2
        assert len(result.output.splitlines()) == 1
        assert "Traceback" not in result.output


class TestScan:
    def test_pattern(self, folder: Path) -> None:
        table = folder / "out" / "cohort.csv"
        result = _run("scan", folder, "--out", table, "--pattern", "{case_id}_{stain}.svs", "--json")
        assert result.exit_code == 0
        document = json.loads(result.stdout)
        assert document["outputs"] == {"cohort": str(table)}
        skipped = [item for item in document["items"] if item["status"] == "skipped"]
        assert [item["id"] for item in skipped] == ["readme.md"]
        slides = read_cohort(table, check_files=True).slides
        assert [(slide.case_id, slide.stain) for slide in slides] == [("P1", "HE"), ("P1", "IHC"), ("P2", "HE")]

    def test_a_lost_slide_is_code_1(self, folder: Path) -> None:
        table = folder / "cohort.csv"
        result = _run("scan", folder, "--out", table, "--pattern", "{slide_id}_*")
        assert result.exit_code == 1
        assert "P1_IHC.svs" in result.output
        assert len(read_cohort(table).slides) == 2

    def test_a_table_is_not_overwritten_unasked(self, folder: Path) -> None:
        table = folder / "cohort.csv"
        table.write_text("filled in by hand")
        assert _run("scan", folder, "--out", table).exit_code == 2
        assert table.read_text() == "filled in by hand"
        assert _run("scan", folder, "--out", table, "--replace").exit_code == 0
        assert len(read_cohort(table).slides) == 3

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--pattern", "{case}_x"],
            ["--pattern", "{case_id}.mrxs"],
            ["--layout", "her2contest"],
            ["--layout", "her2contest", "--pattern", "*"],
            ["--layout", "tcga"],
        ],
    )
    def test_what_cannot_be_scanned_is_code_2(self, folder: Path, arguments: list[str]) -> None:
        result = _run("scan", folder, "--out", folder / "cohort.csv", *arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output
        assert not (folder / "cohort.csv").exists()
