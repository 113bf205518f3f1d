"""The IHC source task on real slide files: who takes part, what is cut, and what an epoch draws."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from her2cache.cohort import Slide, read_cohort, write_cohort
from her2cache.errors import CohortError, ConfigError, SlideError, TrainingError
from her2cache.ingest import PatchBlock, ReadOptions, SlideSurvey, read_slide
from her2cache.store.schema import row_order
from her2cache.synthetic.cohort import write_synthetic_cohort
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from trainers.config import SplitsSection
from trainers.pretraining.cutting import CutSlide, cut_slide
from trainers.pretraining.heldout import held_out_cases
from trainers.pretraining.ihc import SlidePatches, ihc_data, part_slides
from trainers.study import split_cohort
from trainers.tasks import find_task

PX = 64
READING = ReadOptions(PatchSpec(patch_px=PX, stride_px=PX), preset("IHC"), block=7)


def ihc_slides(n: int) -> list[Slide]:
    return [Slide(f"c{i:02d}-IHC", f"c{i:02d}", Path(f"c{i:02d}.tif"), "IHC", her2_score=i % 4) for i in range(n)]


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> list[Slide]:
    out = tmp_path_factory.mktemp("cohort")
    table = write_synthetic_cohort(out, slides=2, width_px=512, workers=1)
    return list(read_cohort(table).with_stain("IHC").slides)


class TestParts:
    def test_a_case_is_in_one_part_and_those_held_out_in_none(self) -> None:
        slides = ihc_slides(40)
        twins = slides + [replace(s, slide_id=f"{s.slide_id}-2") for s in slides[:10]]
        held_out = {"c03", "c08", "c17", "c30"}
        parts = part_slides(twins, held_out, seed=0)
        cases = [{s.case_id for s in part} for part in (parts.train, parts.valid, parts.test)]
        assert sum(map(len, cases)) == len(set().union(*cases))
        assert set().union(*cases) == {s.case_id for s in twins} - held_out
        assert all({s.her2_score for s in part} == {0, 1, 2, 3} for part in (parts.train, parts.valid, parts.test))
        assert parts == part_slides(twins, held_out, seed=0)
        assert parts != part_slides(twins, held_out, seed=1)

    def test_slides_without_a_score_take_no_part(self) -> None:
        slides = ihc_slides(24)
        assert part_slides([*slides, Slide("x", "x", Path("x"), "IHC")], set(), 0) == part_slides(slides, set(), 0)

    def test_too_few_are_told(self) -> None:
        with pytest.raises(CohortError, match="no IHC slide with a her2_score is left"):
            part_slides(ihc_slides(4), {"c00", "c01", "c02", "c03"}, 0)
        with pytest.raises(
            TrainingError, match=r"no IHC slide of score .* is left to train on|leaves nothing to train"
        ):
            part_slides(ihc_slides(8), set(), 0)


class TestHeldOut:
    def cohort(self, folder: Path, n: int = 32) -> Path:
        slides = ihc_slides(n)
        sisters = [
            replace(s, slide_id=s.slide_id.replace("IHC", "HE"), path=Path(f"{s.case_id}-HE.tif"), stain="HE")
            for s in slides
        ]
        write_cohort([*slides, *sisters], folder / "cohort.csv")
        return folder / "cohort.csv"

    def test_it_is_the_split_that_the_sweep_makes(self, tmp_path: Path) -> None:
        table = self.cohort(tmp_path)
        he = read_cohort(table).with_stain("HE").slides
        fixed, _ = split_cohort(he, find_task("four"), SplitsSection())
        assert held_out_cases(table).cases == {s.case_id for s in fixed.test}
        data = '[data]\ncohort = "cohort.csv"\nstore = "none"\nembedders = ["x"]\n'
        (tmp_path / "e.toml").write_text(f"{data}[splits]\ntest_slides = 4\nfolds = 3\nnested = 4\n")
        settings = SplitsSection(test_slides=4, folds=3, nested=4)
        fixed, nested = split_cohort(he, find_task("four"), settings)
        asked = held_out_cases(table, tmp_path / "e.toml")
        assert asked.cases == {s.case_id for s in fixed.test}
        assert len(asked.cases) == 4
        with_fold = held_out_cases(table, tmp_path / "e.toml", fold=1).cases
        assert with_fold == asked.cases | {s.case_id for s in fixed.validation(1)}
        outer = held_out_cases(table, tmp_path / "e.toml", outer=2, fold=0).cases
        assert outer == {s.case_id for s in (*nested[2].test, *nested[2].validation(0))}
        with pytest.raises(ConfigError, match="--outer 4: the experiment has 4 outer folds"):
            held_out_cases(table, tmp_path / "e.toml", outer=4)
        with pytest.raises(ConfigError, match="--fold 3: there are 3 folds"):
            held_out_cases(table, tmp_path / "e.toml", fold=3)

    def test_cases_of_other_names_are_not_trained_on_by_mistake(self, tmp_path: Path) -> None:
        self.cohort(tmp_path)
        (tmp_path / "e.toml").write_text('[data]\ncohort = "cohort.csv"\nstore = "none"\nembedders = ["x"]\n')
        others = [replace(s, case_id=s.case_id.replace("c", "P-")) for s in ihc_slides(32)]
        write_cohort(others, tmp_path / "others.csv")
        with pytest.raises(CohortError, match=r"8 of 8 cases to be left out .* use the same case_id in both"):
            held_out_cases(tmp_path / "others.csv", tmp_path / "e.toml")

    def test_without_sweep_slides_the_test_cases_are_not_known(self, tmp_path: Path) -> None:
        write_cohort(ihc_slides(8), tmp_path / "cohort.csv")
        with pytest.raises(CohortError, match=r"no HE slide.*--allow-embedder-overlap"):
            held_out_cases(tmp_path / "cohort.csv")


class TestCutting:
    def test_it_keeps_the_first_of_the_random_order_and_nothing_else(
        self, synthetic: list[Slide], tmp_path: Path
    ) -> None:
        slide = synthetic[0]
        survey, *items = read_slide(slide, READING)
        assert isinstance(survey, SlideSurvey)
        every = np.concatenate([item.patches.copy() for item in items if isinstance(item, PatchBlock)])
        cut = cut_slide(slide, READING, 9, tmp_path)
        expected = every[np.sort(row_order(slide.slide_id, survey.coords)[:9])]
        assert np.array_equal(cut.open(), expected)
        assert (cut.n, cut.px, cut.label, cut.case_id) == (9, PX, slide.her2_score, slide.case_id)
        more = cut_slide(slide, READING, 10**6, tmp_path)
        assert np.array_equal(more.open(), every)

    def test_what_is_there_is_used_and_anything_else_is_cut_anew(self, synthetic: list[Slide], tmp_path: Path) -> None:
        slide = synthetic[0]
        first = cut_slide(slide, READING, 5, tmp_path)
        assert first.path.parent == tmp_path
        made = first.path.stat().st_mtime_ns
        assert cut_slide(slide, READING, 5, tmp_path) == first
        assert first.path.stat().st_mtime_ns == made
        assert cut_slide(slide, READING, 6, tmp_path).n == 6
        other = cut_slide(slide, replace(READING, patch=PatchSpec(patch_px=96, stride_px=96)), 5, tmp_path)
        assert (other.px, other.n) == (96, 5)
        copied = tmp_path / "copy.tif"
        copied.write_bytes(synthetic[1].path.read_bytes())
        changed = cut_slide(replace(slide, path=copied), READING, 5, tmp_path)
        assert changed.sha256 != first.sha256
        changed.path.unlink()
        assert cut_slide(replace(slide, path=copied), READING, 5, tmp_path).open().shape == (5, PX, PX, 3)

    def test_a_damaged_cache_is_told(self, synthetic: list[Slide], tmp_path: Path) -> None:
        cut = cut_slide(synthetic[0], READING, 5, tmp_path)
        cut.path.write_bytes(cut.path.read_bytes()[:-1])
        with pytest.raises(SlideError, match="another size than its record says"):
            cut.open()
        cut.path.unlink()
        with pytest.raises(SlideError, match="cannot be read"):
            cut.open()


class TestAnEpoch:
    def cut(self, folder: Path, sizes: list[int]) -> list[CutSlide]:
        """Slides whose patches tell which they are: pixel (0, 0) is (slide, patch, label)."""
        made: list[CutSlide] = []
        for k, n in enumerate(sizes):
            patches = np.zeros((n, 8, 8, 3), np.uint8)
            patches[:, 0, 0] = [(k, i, k % 4) for i in range(n)]
            path = folder / f"s{k}.patches"
            path.write_bytes(patches.tobytes())
            made.append(CutSlide(f"s{k}", f"c{k}", k % 4, path, n, 8, f"{k}"))
        return made

    def test_every_slide_gives_as_many_patches(self, tmp_path: Path) -> None:
        patches = SlidePatches(self.cut(tmp_path, [40, 3, 101]))
        assert patches.size == 48 * 3
        drawn: list[tuple[int, ...]] = []
        for pixels, labels in patches.shuffled(5, 1):
            assert np.array_equal(pixels[:, 0, 0, 2], labels)
            drawn += [tuple(p) for p in pixels[:, 0, 0, :2].tolist()]
        assert Counter(slide for slide, _ in drawn) == {0: 48, 1: 48, 2: 48}
        times = Counter(drawn)
        for slide, n in enumerate([40, 3, 101]):
            own = [times[slide, k] for k in range(n)]
            assert max(own) - min(own) <= 1
        assert sorted(drawn) != drawn
        assert drawn != [tuple(p) for b, _ in patches.shuffled(5, 2) for p in b[:, 0, 0, :2].tolist()]
        again = [tuple(p) for b, _ in patches.shuffled(5, 1) for p in b[:, 0, 0, :2].tolist()]
        assert again == drawn

    def test_in_order_it_is_every_patch_once(self, tmp_path: Path) -> None:
        patches = SlidePatches(self.cut(tmp_path, [70, 3]))
        seen = [tuple(p) for b, _ in patches.ordered() for p in b[:, 0, 0].tolist()]
        assert seen == [(0, k, 0) for k in range(70)] + [(1, k, 1) for k in range(3)]

    def test_the_source_task_carries_the_cases_it_has_seen(self, tmp_path: Path) -> None:
        parts = part_slides(ihc_slides(40), {"c01"}, 0)
        cut = [
            CutSlide(s.slide_id, s.case_id, s.her2_score or 0, tmp_path / s.slide_id, 5, 8, "d") for s in parts.slides
        ]
        data = ihc_data(cut, parts, 0.5)
        assert set(data.case_ids) == {s.case_id for s in (*parts.train, *parts.valid)}
        assert "c01" not in data.case_ids
        assert (data.px, data.source_mpp, data.classes) == (8, 0.5, ("0", "1+", "2+", "3+"))
        lost = parts.valid[0]
        fewer = ihc_data([c for c in cut if c.slide_id != lost.slide_id], parts, 0.5)
        assert lost.case_id not in fewer.case_ids
        assert fewer.digest != data.digest
        with pytest.raises(TrainingError, match="could be cut, which leaves a part without slides"):
            ihc_data([c for c in cut if c.slide_id not in {s.slide_id for s in parts.test}], parts, 0.5)
