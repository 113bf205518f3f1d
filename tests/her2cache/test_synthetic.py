"""The synthetic cohort: files that readers open, bytes that repeat, a link that is where it should be."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import tiffslide

from her2cache.cohort import read_cohort
from her2cache.errors import ConfigError
from her2cache.synthetic.anatomy import AnatomyModel
from her2cache.synthetic.cohort import tumour_fraction, write_synthetic_cohort
from her2cache.synthetic.noise import Window
from her2cache.synthetic.nuclei import mean_radius_um, tumour_nuclei
from her2cache.synthetic.section import Section, develop, halo_px, without_halo
from her2cache.synthetic.specimen import draw_case, draw_staining
from her2cache.tissue import PRESETS, Overview, find_tissue

SMALL_PX = 400


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases of small slides at 0.25 um/px, written by two processes."""
    out = tmp_path_factory.mktemp("small")
    write_synthetic_cohort(out, slides=2, width_px=2 * SMALL_PX, mpp=0.25, workers=2)
    return out


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases of slides of the default size."""
    out = tmp_path_factory.mktemp("full")
    write_synthetic_cohort(out, slides=2, workers=2)
    return out


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def section_window(width_px: int, mpp: float = 0.5) -> Window:
    return Window(0.0, 0.0, width_px, width_px, mpp).grown(halo_px(mpp))


def test_table_lists_both_sections_of_each_case(small: Path) -> None:
    slides = read_cohort(small / "cohort.csv", check_files=True).slides
    assert [(s.slide_id, s.case_id, s.stain, s.her2_score) for s in slides] == [
        ("case-001-HE", "case-001", "HE", 0),
        ("case-001-IHC", "case-001", "IHC", 0),
        ("case-002-HE", "case-002", "HE", 1),
        ("case-002-IHC", "case-002", "IHC", 1),
    ]
    assert all(s.split is None and s.mpp is None for s in slides)


@pytest.mark.parametrize(("cohort", "width", "mpp"), [("small", 2 * SMALL_PX, 0.25), ("full", 1536, 0.5)])
def test_both_readers_see_the_same_slide(cohort: str, width: int, mpp: float, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(cohort)
    for slide in read_cohort(folder / "cohort.csv").slides:
        with openslide.OpenSlide(slide.path) as ours, tiffslide.TiffSlide(slide.path) as other:
            assert ours.level_dimensions == other.level_dimensions == ((width, width), (width // 4, width // 4))
            assert ours.level_downsamples == pytest.approx((1, 4))
            for axis in "xy":
                assert float(ours.properties[f"openslide.mpp-{axis}"]) == pytest.approx(mpp, rel=1e-6)
                assert other.properties[f"tiffslide.mpp-{axis}"] == pytest.approx(mpp, rel=1e-6)
            for level in (0, 1):
                box = (200, 240), level, (160, 130)
                np.testing.assert_array_equal(
                    np.asarray(ours.read_region(*box).convert("RGB")),
                    np.asarray(other.read_region(*box).convert("RGB")),
                )


def test_pyramid_levels_show_the_same_tissue(full: Path) -> None:
    with tiffslide.TiffSlide(full / "slides" / "case-001-HE.tif") as slide:
        fine = slide.read_region((0, 0), 0, slide.level_dimensions[0]).convert("L").reduce(4)
        coarse = slide.read_region((0, 0), 1, slide.level_dimensions[1]).convert("L")
    assert np.abs(np.asarray(fine, float) - np.asarray(coarse, float)).mean() < 3


def test_a_slide_depends_neither_on_the_cohort_nor_on_the_workers(small: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    write_synthetic_cohort(alone, slides=1, width_px=2 * SMALL_PX, mpp=0.25, workers=1)
    of_two = digests(small)
    for name, digest in digests(alone).items():
        if name != "cohort.csv":
            assert of_two[name] == digest, name


def test_rewriting_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_synthetic_cohort(tmp_path, slides=1, width_px=SMALL_PX, workers=1, progress=lambda *count: seen.append(count))
    first = digests(tmp_path)
    write_synthetic_cohort(tmp_path, slides=1, width_px=SMALL_PX, workers=1)
    assert digests(tmp_path) == first
    assert seen == [(1, 1)]
    assert len(first) == 4, "nothing partial is left beside two slides, a truth map and the table"
    write_synthetic_cohort(tmp_path, slides=1, width_px=SMALL_PX, workers=1, seed=1)
    other = digests(tmp_path)
    assert all(other[name] != first[name] for name in first if name != "cohort.csv")


def test_truth_map_is_the_share_of_tumour_of_each_patch(full: Path) -> None:
    with np.load(full / "truth" / "case-001-HE.npz") as truth:
        fraction = truth["tumour_fraction"]
        assert (int(truth["patch_px"]), float(truth["mpp"])) == (96, 0.5)
    assert fraction.shape == (16, 16)
    assert fraction.dtype == np.float32

    case, window = draw_case(0, 1), section_window(1536)
    anatomy = AnatomyModel(case, 768.0, 768.0).window(window)
    tumour = anatomy.tumour[without_halo(window)]
    slow = [[tumour[y : y + 96, x : x + 96].mean() for x in range(0, 1536, 96)] for y in range(0, 1536, 96)]
    np.testing.assert_allclose(fraction, slow, atol=1e-6)
    tissue = anatomy.tissue[without_halo(window)] > 0.5
    assert tumour.sum() / tissue.sum() == pytest.approx(case.tumour_share, abs=0.06)


def test_truth_map_leaves_out_patches_that_stick_out() -> None:
    tumour = np.zeros((200, 300), np.bool_)
    tumour[:48, :96] = True
    np.testing.assert_array_equal(tumour_fraction(tumour, 0.5), np.array([[0.5, 0, 0], [0, 0, 0]], np.float32))
    assert tumour_fraction(tumour, 0.25).shape == (1, 1)


def test_truth_map_lies_on_the_tumour_in_the_pixels(full: Path) -> None:
    """Tumour patches take more haematoxylin than stroma: the map lies on the pixels, not beside them."""
    with tiffslide.TiffSlide(full / "slides" / "case-001-HE.tif") as slide:
        pixels = np.asarray(slide.read_region((0, 0), 0, (1536, 1536)).convert("RGB"), float)
    with np.load(full / "truth" / "case-001-HE.npz") as truth:
        fraction = truth["tumour_fraction"].ravel()
    red = pixels[..., 0].reshape(16, 96, 16, 96).mean(axis=(1, 3)).ravel()
    assert red[fraction > 0.9].mean() < red[(fraction < 0.1)].mean() - 20
    assert np.corrcoef(red, fraction)[0, 1] < -0.6


def test_every_slide_has_enough_patches_for_a_bag(full: Path) -> None:
    for name in ("case-001-HE", "case-002-HE"):
        with tiffslide.TiffSlide(full / "slides" / f"{name}.tif") as slide:
            image = np.asarray(slide.read_region((0, 0), 1, slide.level_dimensions[1]).convert("RGB"))
        mask = find_tissue(Overview(image, np.zeros(image.shape[:2], np.bool_), 4.0), 0.5, PRESETS["he"])
        y, x = (axis.ravel() * 96.0 for axis in np.mgrid[:16, :16])
        share = mask.share(np.column_stack([x, y, x + 96, y + 96]))
        assert (share >= 0.5).sum() >= 120
        assert 0.6 < share.mean() < 0.9, "glass around irregular tissue"


def test_same_tissue_at_both_scales() -> None:
    case = draw_case(3, 2)
    pictures = []
    for mpp, side in ((0.5, 256), (0.25, 512)):
        anatomy = AnatomyModel(case, 512.0, 512.0).window(Window(128.0, 128.0, side, side, mpp).grown(halo_px(mpp)))
        pictures.append(Section(case, "HE").render(anatomy).astype(float))
    fine = pictures[1].reshape(256, 2, 256, 2, 3).mean(axis=(1, 3))
    correlation = np.corrcoef(pictures[0].ravel(), fine.ravel())[0, 1]
    assert correlation > 0.95


@pytest.mark.parametrize("stain", ["HE", "IHC"])
def test_a_section_can_be_rendered_window_by_window(stain: str) -> None:
    case, side = draw_case(1, 4), 384
    model, section = AnatomyModel(case, 192.0, 192.0), Section(case, "HE" if stain == "HE" else "IHC")
    whole = section.render(model.window(section_window(side))).astype(int)
    part = Window(64.0, 48.0, 160, 128, 0.5).grown(halo_px(0.5))
    alone = section.render(model.window(part)).astype(int)
    difference = np.abs(whole[96 : 96 + 128, 128 : 128 + 160] - alone)
    # cells that reach in from beyond the halo may differ by a border
    assert (difference <= 1).mean() > 0.99


def test_light_follows_beer_and_lambert() -> None:
    case = draw_case(0, 1)
    staining = replace(draw_staining(case, "HE"), blur_um=0.0, noise=0.0)
    rng = np.random.default_rng(0)
    h, e = rng.uniform(0, 0.8, (2, 40, 50)).astype(np.float32)
    crop = slice(3, -3), slice(4, -4)
    window = Window(0.0, 0.0, 50, 40, 0.5)
    pixels = develop({"H": h, "E": e}, staining, window, crop, key=1)
    density = np.stack([h, e], axis=-1) * staining.gains[:2] @ staining.vectors[:2]  # (40, 50, 3)
    expected = staining.white * 10.0**-density
    np.testing.assert_allclose(pixels, np.rint(expected)[crop], atol=1)
    glass = develop({"H": 0 * h, "E": 0 * e}, replace(staining, noise=3.0), window, crop, key=1)
    assert glass.reshape(-1, 3).mean(axis=0) == pytest.approx(staining.white, abs=0.4)
    assert (glass - staining.white).std() == pytest.approx(3.0, rel=0.1)


def test_scores_are_balanced_and_carried_by_the_latent_alone() -> None:
    cases = [draw_case(5, number) for number in range(1, 401)]
    score = np.array([case.score for case in cases])
    assert np.bincount(score).tolist() == [100] * 4

    def correlation(values: list[float]) -> float:
        return float(np.corrcoef(score, values)[0, 1])

    assert correlation([case.latent for case in cases]) == pytest.approx(0.85, abs=0.04)
    assert np.std([case.latent for case in cases]) == pytest.approx(1.0, abs=0.08)
    for name in ("tumour_share", "nuclear_share", "fat_share"):
        assert abs(correlation([getattr(case, name) for case in cases])) < 0.15, name
    stainings = [draw_staining(case, "HE") for case in cases]
    for values in (
        *np.array([s.gains for s in stainings]).T,
        *np.array([s.vectors.ravel() for s in stainings]).T,
        *np.array([s.white for s in stainings]).T,
        np.array([s.blur_um for s in stainings]),
        np.array([s.noise for s in stainings]),
    ):
        assert abs(correlation(list(values))) < 0.17


def test_latent_changes_nuclei_but_not_the_area_they_cover() -> None:
    radius, spread, nucleoli, covered = [], [], [], []
    latents = (-1.5, 0.0, 1.5)
    for latent in latents:
        case = replace(draw_case(2, 3), latent=latent, nuclear_share=0.30, tumour_share=0.6)
        anatomy = AnatomyModel(case, 1536.0, 1536.0).window(Window(0.0, 0.0, 768, 768, 2.0))
        nuclei = tumour_nuclei(case, 1, anatomy)
        core = anatomy.tumour & (anatomy.depth_um > 1.5)
        radius.append(np.median(nuclei.radius_um))
        spread.append(np.std(np.log(nuclei.radius_um)))
        nucleoli.append(nuclei.nucleolus.mean())
        covered.append(np.pi * (nuclei.radius_um**2).sum() / (core.sum() * 2.0**2))
    np.testing.assert_allclose(radius, [mean_radius_um(latent) for latent in latents], rtol=0.04)
    assert spread == sorted(spread)
    assert spread[2] > 1.5 * spread[0]
    assert nucleoli == sorted(nucleoli)
    assert nucleoli[2] > 2 * nucleoli[0]
    np.testing.assert_allclose(covered, 0.30, atol=0.025)


def test_nuclei_of_any_latent_stain_alike() -> None:
    """Neither size nor nucleoli may show in the mean colour."""
    means = []
    for latent in (-1.5, 1.5):
        per_case = []
        for number in range(1, 4):
            case = replace(draw_case(2, number), latent=latent, nuclear_share=0.30, tumour_share=0.6, fat_share=0.0)
            anatomy = AnatomyModel(case, 1024.0, 1024.0).window(Window(256.0, 256.0, 480, 480, 0.5).grown(halo_px(0.5)))
            per_case.append(Section(case, "HE").render(anatomy).mean(axis=(0, 1)))
        means.append(np.mean(per_case, axis=0))
    assert np.abs(means[0] - means[1]).max() < 2.5  # grey levels; stainings differ by tens


def test_dab_of_the_sister_section_follows_the_score() -> None:
    """Read off the pixels: strongly stained membranes and how much of a nest they are."""
    dab: dict[int, list[float]] = {score: [] for score in range(4)}
    for number in range(1, 13):
        case = draw_case(4, number)
        window = Window(200.0, 200.0, 320, 320, 0.5).grown(halo_px(0.5))
        anatomy = AnatomyModel(case, 768.0, 768.0).window(window)
        section = Section(case, "IHC")
        density = -np.log10(np.maximum(section.render(anatomy), 1) / section.staining.white)
        tumour = anatomy.tumour[without_halo(window)]
        amounts = density[tumour] @ np.linalg.inv(section.staining.vectors)
        if tumour.mean() > 0.1:
            dab[case.score].append(float(np.percentile(amounts[:, 2], 95)))
    means = [np.mean(dab[score]) for score in range(4)]
    assert means == sorted(means)
    assert means[3] > means[0] + 0.3


def test_membrane_staining_of_neighbouring_scores_overlaps() -> None:
    cases = [draw_case(4, number) for number in range(1, 401)]
    density = [np.array([case.dab_density for case in cases if case.score == score]) for score in range(4)]
    for lower, upper in itertools.pairwise(density):
        out_of_order = (lower[:, None] > upper[None, :]).mean()
        assert 0.0 < out_of_order < 0.25


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"slides": 0}, "at least 1"),
        ({"mpp": 0.4}, "choose 0.25 or 0.5"),
        ({"width_px": 100}, "at least 384 px"),
        ({"seed": -1}, "0 or more"),
        ({"workers": 0}, "at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, float], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        write_synthetic_cohort(tmp_path / "out", **wrong)  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot write the synthetic cohort"):
        write_synthetic_cohort(tmp_path / "file", slides=1, width_px=SMALL_PX, workers=1)
