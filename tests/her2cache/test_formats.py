"""Every format of slides, through both readers: which one reads it, and that they see the same."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from her2cache.canvas import SegmentGrid
from her2cache.cohort import Slide
from her2cache.errors import SlideOpenError
from her2cache.identity import slide_files
from her2cache.ingest import PatchBlock, ReadOptions, look_at, read_slide
from her2cache.openslide_reader import OpenSlideReader, on_white
from her2cache.slide import SlideReader, TiffReader, file_changed, file_identity, open_slide
from her2cache.tiling import PatchSpec, plan_patches, read_blocks
from her2cache.tissue import preset
from her2cache.units import RgbImage
from tests.dicoms import encode, tiles_of, write_series
from tests.slides import (
    decode,
    level_pixels,
    make_sparse,
    reduced,
    texture,
    whole_level,
    write_jpeg2000,
    write_ome,
    write_scn,
    write_slide,
)

APERIO = "Aperio Image Library v12.0.0 \r\n512x384 [0,0 512x384] (64x64) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5"
LEVELS = (1, 2, 4)
JPEG_LIMIT = 3
"""What two JPEG decoders may differ by, grey levels. Measured: 0 with libjpeg-turbo behind both."""


def _difference(a: RgbImage, b: RgbImage) -> int:
    return int(np.abs(a.astype(int) - b).max())


def _patches(reader: SlideReader, target_mpp: float, side: int = 64) -> tuple[np.ndarray, RgbImage]:
    """Coordinates and pixels of a slide's patches, as `read_slide` takes them from its reader."""
    options = ReadOptions(PatchSpec(mpp=target_mpp, patch_px=side, stride_px=side), preset("HE"))
    look = look_at(reader, Slide("s", "c", reader.path, "HE"), options)
    plan = plan_patches(options.patch, look.read, reader.level_sizes[look.read.level], look.tissue)
    blocks = list(read_blocks(reader, plan, 64))
    assert all(block.ok.all() for block in blocks)
    return plan.coords, np.concatenate([block.patches.copy() for block in blocks])


def _agree(slide: SlideReader, other: SlideReader, target_mpp: float, side: int) -> int:
    """Two readers give the same patches; how many."""
    (coords, patches), (other_coords, other_patches) = (_patches(r, target_mpp, side) for r in (slide, other))
    assert np.array_equal(coords, other_coords)
    assert _difference(patches, other_patches) <= JPEG_LIMIT
    return len(coords)


def _generic(path: Path) -> Path:
    return write_slide(path.with_suffix(".tiff"), texture(512, 384), factors=LEVELS)


def _svs(path: Path) -> Path:
    """With a thumbnail behind level 0, as Aperio writes them."""
    pixels = texture(512, 384)
    path = path.with_suffix(".svs")
    options = {"photometric": "rgb", "description": APERIO, "metadata": None, "software": False}
    options |= {"compression": "jpeg", "compressionargs": {"level": 90}}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, tile=(64, 64), **options)
        tiff.write(reduced(pixels, 8), rowsperstrip=16, **options)
        for factor in LEVELS[1:]:
            tiff.write(reduced(pixels, factor), tile=(64, 64), **options)
    return path


class TestTiff:
    @pytest.mark.parametrize(
        ("write", "vendor"),
        [
            (_generic, "generic-tiff"),
            (_svs, "aperio"),
            (lambda path: write_ome(path.with_suffix(".ome.tiff"), texture(512, 384), factors=LEVELS), "ome-tiff"),
        ],
    )
    def test_pyramids(self, tmp_path: Path, write: Callable[[Path], Path], vendor: str) -> None:
        path = write(tmp_path / "slide")
        with open_slide(path) as slide:
            assert isinstance(slide, TiffReader)
            assert slide.reader == f"tiffslide/{vendor}"
            assert slide.downsamples == LEVELS
            assert slide.file_mpp == pytest.approx(0.5)
            for level in range(len(LEVELS)):
                assert np.array_equal(whole_level(slide, level), level_pixels(path, level))

    @pytest.mark.parametrize(
        ("compression", "photometric"), [(33003, "rgb"), (33003, "ycbcr"), (33005, "rgb"), (34712, "rgb")]
    )
    def test_jpeg_2000(self, tmp_path: Path, compression: int, photometric: str) -> None:
        """Aperio's 33003 holds YCbCr whatever its tag says; OpenSlide is the reference."""
        pixels = texture(256, 192)
        path = write_jpeg2000(tmp_path / "s.svs", pixels, compression, photometric)
        with open_slide(path) as slide:
            found = whole_level(slide)
            assert (slide.file_mpp, slide.objective_power) == (0.5, 20)
        assert _difference(found, pixels) <= (3 if compression == 33003 else 0)
        if compression != 34712:  # which OpenSlide does not know
            with OpenSlideReader(path, "SVS") as slide:
                assert _difference(found, whole_level(slide)) <= (1 if compression == 33003 else 0)

    @pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
    def test_jpeg_2000_with_less_chroma(self, tmp_path: Path, photometric: str) -> None:
        """As Aperio's scanners write 33003; imagecodecs alone gives wrong pixels, and no error."""
        pixels = texture(256, 192)
        path = write_jpeg2000(tmp_path / "s.svs", pixels, 33003, photometric, subsampled=True)
        with open_slide(path) as slide, OpenSlideReader(path, "SVS") as other:
            assert _difference(whole_level(slide), whole_level(other)) <= 2
        path = write_jpeg2000(tmp_path / "s.svs", pixels, 33005, subsampled=True)
        with open_slide(path) as slide:
            assert set(decode(slide, 0, range(12)).values()) == {"its components of JPEG 2000 differ in size"}

    def test_ome_scale(self, tmp_path: Path) -> None:
        """By the OME document, in whatever unit, and not by tags of 72 dpi; a broken one leaves the tags."""
        with open_slide(write_ome(tmp_path / "s.ome.tiff", texture(200, 100), mpp=0.25)) as slide:
            assert slide.file_mpp == pytest.approx(0.25)
        content = (tmp_path / "s.ome.tiff").read_bytes()
        (tmp_path / "s.ome.tiff").write_bytes(content.replace(b'PhysicalSizeXUnit="nm"', b'PhysicalSizeXUnit="??"'))
        with open_slide(tmp_path / "s.ome.tiff") as slide:
            assert slide.file_mpp == pytest.approx(25400 / 72, rel=1e-4)

    def test_scn_of_one_area(self, tmp_path: Path) -> None:
        """The area is the slide: coordinates begin where QuPath begins, which crops the glass."""
        pixels = texture(512, 384)
        path = write_scn(tmp_path / "s.scn", [(pixels, (640, 256))])
        with open_slide(path) as slide, OpenSlideReader(path, "SCN") as other:
            assert (slide.reader, slide.size, slide.downsamples) == ("tiffslide/leica", (512, 384), (1, 4))
            assert (slide.file_mpp, slide.objective_power, slide.origin) == (0.5, 20, (0, 0))
            assert (other.reader, other.size, other.origin) == ("openslide/leica", (3000, 2000), (640, 256))
            for level, factor in enumerate((1, 4)):
                glass = whole_level(other, level)
                x, y = (v // factor for v in other.origin)
                found = whole_level(slide, level)
                height, width = found.shape[:2]
                assert _difference(found, glass[y : y + height, x : x + width]) <= JPEG_LIMIT
                glass[y : y + height, x : x + width] = 255
                assert (glass == 255).all()


class TestAgreement:
    @pytest.mark.parametrize("write", [_generic, _svs])
    def test_pyramids(self, tmp_path: Path, write: Callable[[Path], Path]) -> None:
        path = write(tmp_path / "slide")
        with open_slide(path) as slide, OpenSlideReader(path, "TIFF") as other:
            for target_mpp in (0.5, 0.8, 1.0, 1.6, 2.0):
                assert _agree(slide, other, target_mpp, 24) > 10
            assert all(slide.decoded)
            assert all(other.decoded)

    @pytest.mark.parametrize(
        ("name", "target_mpp"),
        [("CMU-1-Small-Region.svs", 0.5), ("synthetic_cmu1.ndpi", 1.0)],
    )
    def test_real_pixels(self, data: Path, name: str, target_mpp: float) -> None:
        path = data / "slides" / name
        with open_slide(path) as slide, OpenSlideReader(path, "TIFF") as other:
            assert (slide.size, slide.downsamples, slide.objective_power) == (
                other.size,
                other.downsamples[: len(slide.downsamples)],  # of an NDPI it makes up coarser ones
                other.objective_power,
            )
            assert slide.file_mpp == pytest.approx(other.file_mpp)
            assert _agree(slide, other, target_mpp, 96) > 50

    def test_sparse_segments_are_white_in_both(self, tmp_path: Path) -> None:
        path = _generic(tmp_path / "slide")
        make_sparse(path, [9, 10])
        expected = level_pixels(path).copy()
        expected[64:128, 64:192] = 255
        with open_slide(path) as slide, OpenSlideReader(path, "TIFF") as other:
            assert _difference(whole_level(slide), expected) == 0
            assert _difference(whole_level(other), expected) <= JPEG_LIMIT
            pictures = [reader.overview(5.0, 0.5).image for reader in (slide, other)]
        assert _difference(*pictures) <= JPEG_LIMIT

    def test_a_downsample_that_is_no_integer(self, tmp_path: Path) -> None:
        """OpenSlide interpolates there: the regions agree on the whole, but not pixel by pixel."""
        path = write_slide(tmp_path / "s.tiff", texture(503, 401), factors=(1, 2))
        with open_slide(path) as slide, OpenSlideReader(path, "TIFF") as other:
            assert slide.downsamples == other.downsamples == (1, 2)
            difference = np.abs(whole_level(slide, 1).astype(int) - whole_level(other, 1))
        assert 0 < difference.mean() < 3


class TestDicom:
    @pytest.fixture
    def series(self, tmp_path: Path) -> list[Path]:
        pixels = texture(512, 384)
        return write_series(tmp_path / "series", [pixels, reduced(pixels, 2), reduced(pixels, 4)])

    @pytest.mark.parametrize("k", [0, 1, 2])
    def test_any_file_opens_the_series(self, series: list[Path], k: int) -> None:
        with open_slide(series[k]) as slide:
            assert (slide.reader, slide.size, slide.downsamples) == ("openslide/dicom", (512, 384), (1, 2, 4))
            assert slide.file_mpp == pytest.approx(0.5)
            assert slide.objective_power == 20
            assert slide.origin == (0, 0)
            assert slide.segment_grid(0) == SegmentGrid(64, 64, 8, 6)

    def test_equals_a_tiff_of_the_same_segments(self, tmp_path: Path) -> None:
        pixels = texture(500, 380)
        levels = [pixels, reduced(pixels, 2)]
        with tifffile.TiffWriter(tmp_path / "s.tiff") as tiff:
            for k, level in enumerate(levels):
                tiff.write(
                    iter([encode(tile) for tile in tiles_of(level, 64)]),
                    shape=level.shape,
                    dtype=np.uint8,
                    tile=(64, 64),
                    compression="jpeg",
                    photometric="rgb",
                    subfiletype=k,
                    resolution=(20000 / 2**k,) * 2,
                    resolutionunit="CENTIMETER",
                    metadata=None,
                )
        series = write_series(tmp_path / "series", levels)
        with open_slide(tmp_path / "s.tiff") as slide, open_slide(series[0]) as other:
            assert isinstance(other, OpenSlideReader)
            for target_mpp in (0.5, 0.8, 1.0, 1.3):
                assert _agree(slide, other, target_mpp, 32) > 10

    @pytest.mark.parametrize("jpeg", [True, False])
    def test_missing_tiles_are_white(self, tmp_path: Path, jpeg: bool) -> None:
        pixels = texture(256, 192)
        whole, sparse = (
            write_series(tmp_path / name, [pixels], jpeg=jpeg, missing=missing)[0]
            for name, missing in (("whole", ()), ("sparse", (5, 6)))
        )
        with open_slide(whole) as slide:
            expected = whole_level(slide)
        assert _difference(expected, pixels) <= (30 if jpeg else 0)
        expected[64:128, 64:192] = 255
        with open_slide(sparse) as slide:
            assert np.array_equal(whole_level(slide), expected)

    def test_a_corrupt_tile_is_told_and_the_rest_is_read(self, series: list[Path]) -> None:
        """After an error OpenSlide refuses everything until it is opened anew."""
        with open_slide(series[0]) as slide:
            expected = decode(slide, 0, range(48))
        content = series[0].read_bytes()
        tile = encode(tiles_of(texture(512, 384), 64)[17])
        assert content.count(tile) == 1
        series[0].write_bytes(content.replace(tile, b"\xff" * len(tile)))
        with open_slide(series[0]) as slide:
            found = decode(slide, 0, range(48))
            assert slide.decoded == [47, 0, 0]
            overview = slide.overview(0.5, 0.5)
        assert isinstance(found[17], str)
        assert found[17].startswith("OpenSlide: ")
        assert all(np.array_equal(found[k], expected[k]) for k in range(48) if k != 17)
        marked = np.zeros((384, 512), np.bool_)
        marked[128:192, 64:128] = True
        assert np.array_equal(overview.undecodable, marked)
        assert (overview.image[marked] == 255).all()

    @pytest.mark.parametrize("damage", ["offset", "length", "truncated"])
    def test_a_broken_table_of_frames(self, series: list[Path], damage: str) -> None:
        """OpenSlide would follow it behind the end of the file, and end the process."""
        content = bytearray(series[0].read_bytes())
        table = content.index(b"\xe0\x7f\x10\x00OB") + 20
        if damage == "truncated":
            del content[-len(content) // 3 :]
        else:
            content[table + (10 if damage == "offset" else -1)] |= 0x08
        series[0].write_bytes(content)
        with pytest.raises(
            SlideOpenError, match=r"-0\.dcm is damaged \(its table of frames is broken.*; copy it again"
        ):
            open_slide(series[1])

    @pytest.mark.parametrize(
        ("element", "value", "said"),
        [
            (b"\x48\x00\x06\x00UL\x04\x00", 2**31, r"2,147,483,648 x 384 px in frames of 64 x 64"),
            (b"\x48\x00\x07\x00UL\x04\x00", 65535, r"are 8,192 frames, and there are 48"),
            (b"\x48\x00\x06\x00UL\x04\x00", 0, r"it has 0 x 384 px"),
            (b"\x28\x00\x10\x00US\x02\x00", 32, r"are 96 frames, and there are 48"),
        ],
    )
    def test_sizes_that_cannot_be(self, series: list[Path], element: bytes, value: int, said: str) -> None:
        """OpenSlide believes them: every frame that is not there costs time, and the picture memory."""
        content = bytearray(series[0].read_bytes())
        at = content.index(element) + len(element)
        content[at : at + element[6]] = value.to_bytes(element[6], "little")
        series[0].write_bytes(content)
        with pytest.raises(SlideOpenError, match=rf"-0\.dcm is damaged \(.*{said}.*; copy it again"):
            open_slide(series[0])

    def test_a_file_that_disappears(self, series: list[Path]) -> None:
        with open_slide(series[0]) as slide:
            assert isinstance(decode(slide, 0, [0])[0], np.ndarray)
            shutil.rmtree(series[0].parent)
            found = decode(slide, 0, [1, 2])
        assert all(isinstance(reason, str) for reason in found.values())

    def test_from_file_to_patches(self, series: list[Path]) -> None:
        options = ReadOptions(PatchSpec(patch_px=64, stride_px=64), preset("HE"))
        survey, *blocks, _ = read_slide(Slide("s", "c", series[1], "HE"), options)
        assert survey.provenance["reader"] == "openslide/dicom"  # pyright: ignore[reportAttributeAccessIssue]
        assert survey.provenance["bytes"] == sum(path.stat().st_size for path in series)  # pyright: ignore[reportAttributeAccessIssue]
        assert sum(int(block.ok.sum()) for block in blocks if isinstance(block, PatchBlock)) == 48

    @pytest.mark.parametrize("content", [b"", b"II*\0 no preamble" * 50, bytes(128) + b"DICM" + bytes(5000)])
    def test_no_dicom(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "s.dcm"
        path.write_bytes(content)
        with pytest.raises(SlideOpenError, match=r"s\.dcm cannot be opened by OpenSlide .*DICOM.*; copy all") as caught:
            open_slide(path)
        assert "\n" not in str(caught.value)


class TestIdentity:
    def test_dicom_is_its_series(self, tmp_path: Path) -> None:
        """Not what lies beside it: other series, other files, a series that is only referred to."""
        pixels = texture(128, 128)
        series = write_series(tmp_path, [pixels, reduced(pixels, 2)])
        write_series(tmp_path, [pixels], series="1.2.826.0.1.3680043.9.77")
        (tmp_path / "notes.txt").write_text("x")
        assert slide_files(series[1]) == sorted(series)
        identity = file_identity(series[0])
        assert identity == file_identity(series[1])
        assert identity["bytes"] == sum(path.stat().st_size for path in series)
        assert not file_changed(series[0], identity)
        content = bytearray(series[1].read_bytes())
        content[-100] ^= 1
        series[1].write_bytes(content)
        assert file_changed(series[0], identity)
        series[1].unlink()
        assert file_changed(series[0], identity)

    def test_mrxs_is_its_folder_and_vms_what_it_names(self, tmp_path: Path) -> None:
        for name in ("a.mrxs", "a/Slidedat.ini", "a/Data0000.dat", "b/Data0000.dat", "s-0.jpg", "s.opt", "t-0.jpg"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(name)
        (tmp_path / "s.vms").write_text("[Virtual Microscope]\nImageFile=s-0.jpg\r\nMap= gone.jpg\nOpt=s.opt\nX=../b\n")
        (tmp_path / "links").mkdir()
        (tmp_path / "links/a.mrxs").symlink_to(tmp_path / "a.mrxs")
        expected = [tmp_path / name for name in ("a/Data0000.dat", "a/Slidedat.ini", "a.mrxs")]
        assert slide_files(tmp_path / "a.mrxs") == slide_files(tmp_path / "links/a.mrxs") == sorted(expected)
        assert slide_files(tmp_path / "s.vms") == [tmp_path / name for name in ("s-0.jpg", "s.opt", "s.vms")]
        identity = file_identity(tmp_path / "links/a.mrxs")
        (tmp_path / "a/Data0000.dat").write_text("A/Data0000.dat")
        assert file_changed(tmp_path / "a.mrxs", identity)
        assert file_changed(tmp_path / "links/a.mrxs", identity)


class TestChoice:
    @pytest.mark.parametrize(
        ("name", "kind"), [("s.mrxs", "MRXS"), ("s.BIF", "BIF"), ("s.vms", "VMS"), ("s.dcm", "DICOM"), ("1", "DICOM")]
    )
    @pytest.mark.parametrize("installed", [True, False])
    def test_by_name_or_head(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, installed: bool
    ) -> None:
        path = tmp_path / name
        path.write_bytes(bytes(128) + b"DICM" + bytes(500))
        if not installed:
            monkeypatch.setitem(sys.modules, "openslide", None)
        remedy = r"cannot be opened by OpenSlide" if installed else r"pip install 'her2cache\[openslide\]'"
        with pytest.raises(SlideOpenError, match=remedy) as caught:
            open_slide(path)
        assert str(caught.value).startswith(str(path))
        assert f"the format {kind}" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_dicom_without_the_extra(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (path,) = write_series(tmp_path, [texture(128, 128)])
        monkeypatch.setitem(sys.modules, "openslide", None)
        with pytest.raises(SlideOpenError, match=r"DICOM, which needs OpenSlide.*her2cache\[openslide\]"):
            open_slide(path)

    def test_a_bif_by_another_name(self, tmp_path: Path) -> None:
        """Tiles of a BIF overlap; tiffslide would put them side by side."""
        path = write_slide(
            tmp_path / "s.tif",
            texture(128, 128),
            software="Ventana",
            extratags=[(700, 1, None, b"<iScan/>", True)],
        )
        with pytest.raises(SlideOpenError, match="the format BIF"):
            open_slide(path)

    def test_scn_of_several_areas(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        areas = [(texture(256, 128, seed), corner) for seed, corner in ((0, (640, 256)), (1, (1024, 512)))]
        path = write_scn(tmp_path / "s.scn", areas)
        with open_slide(path) as slide:
            assert (slide.reader, slide.size, slide.origin) == ("openslide/leica", (3000, 2000), (640, 256))
            glass = whole_level(slide)
        for pixels, (x, y) in areas:
            part = glass[y : y + 128, x : x + 256]
            assert np.abs(part.astype(int) - pixels).mean() < 8
            part[:] = 255
        assert (glass == 255).all()
        monkeypatch.setitem(sys.modules, "openslide", None)
        with pytest.raises(SlideOpenError, match=r"SCN with several scanned areas.*her2cache\[openslide\]"):
            open_slide(path)

    def test_nothing_stays_open(self, tmp_path: Path) -> None:
        (path,) = write_series(tmp_path, [texture(128, 128)])
        before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
        for _ in range(5):
            with open_slide(path) as slide:
                decode(slide, 0, [0])
        after = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
        assert after <= before


def test_transparency_is_laid_on_white() -> None:
    alpha = np.array([0, 1, 128, 254, 255])
    pixels = np.array([[(10, 100, 250, a) for a in alpha]], np.uint8)
    expected = [np.rint((np.array([10, 100, 250]) * a + 255 * (255 - a)) / 255) for a in alpha]
    assert np.array_equal(on_white(pixels)[0], expected)
    assert np.array_equal(on_white(np.full((2, 2, 4), 255, np.uint8)), np.full((2, 2, 3), 255))


def test_openslide_is_at_least_4() -> None:
    """DICOM came with it."""
    assert int(openslide.__library_version__.partition(".")[0]) >= 4
