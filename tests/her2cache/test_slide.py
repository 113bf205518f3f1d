"""Opening slides, good and bad; their scale, their overview, and each segment decoded once."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import struct
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import tiffslide

from her2cache.errors import DecodeError, MissingMppError, SlideError, SlideOpenError
from her2cache.shelf import Shelf
from her2cache.slide import SlideReader, file_changed, file_identity, open_slide, require_readable, resolve_mpp
from her2cache.units import RgbImage
from tests.mutants import put, tags_of
from tests.slides import GLASS, corrupt, decode, level_pixels, make_sparse, texture, write_jpeg2000, write_slide

APERIO = "Aperio Image Library v12.0.0 \r\n500x400 [0,0 500x400] (64x64) JPEG/RGB Q=90|AppMag = 40|MPP = {mpp}"


def _refused(path: Path, *words: str) -> None:
    """Opening fails with one line that names the file, the cause and a remedy."""
    with pytest.raises(SlideOpenError) as caught:
        open_slide(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert ";" in message  # fact and cause; remedy
    for word in words:
        assert word in message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


class TestRefused:
    def test_missing(self, tmp_path: Path) -> None:
        _refused(tmp_path / "no.svs", "does not exist", "correct the path")

    def test_directory(self, tmp_path: Path) -> None:
        _refused(tmp_path, "is a directory", "name a slide file")

    @pytest.mark.parametrize(
        "content", [b"", b"\0" * 5000, b"slide_id,case_id\n1,2\n" * 100, b"\x89PNG\r\n\x1a\n", b"II*\0"]
    )
    def test_no_tiff(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "text.svs"
        path.write_bytes(content)
        _refused(path, "not a TIFF-based slide", "copy it again")

    def test_unreadable(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="her2cache-"))  # pytest's own folders are closed to other users
        folder.chmod(0o755)
        path = write_slide(folder / "closed.tiff", texture(100, 100))
        path.chmod(0o000)
        inner = folder / "closed"
        inner.mkdir(mode=0o000)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # root may read everything
            _refused(path, "may not be read", "change its permissions")
            _refused(inner / "slide.tiff", "may not be read", "change its permissions")
        finally:
            os.seteuid(user)
            shutil.rmtree(folder)

    @pytest.mark.parametrize(
        ("pixels", "options"),
        [
            (np.zeros((100, 100), np.uint8), {}),
            (np.zeros((100, 100, 3), np.uint16), {}),
            (np.zeros((100, 100, 4), np.uint8), {"photometric": "separated"}),
            (np.zeros((100, 100, 3), np.uint8), {"photometric": "ycbcr", "subsampling": (1, 1)}),
        ],
    )
    def test_other_pixels(self, tmp_path: Path, pixels: np.ndarray, options: dict[str, object]) -> None:
        path = write_slide(tmp_path / "s.tiff", pixels, compression=None, **options)
        _refused(path, "8-bit RGB", "convert")

    def test_jpeg_of_ycbcr_is_rgb_when_read(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tiff", texture(200, 100), photometric="ycbcr")
        with open_slide(path) as slide:
            segment = decode(slide, 0, [0])[0]
        assert isinstance(segment, np.ndarray)
        assert np.array_equal(segment, level_pixels(path)[:64, :64])

    @pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "synthetic_cmu1.ndpi"])
    @pytest.mark.parametrize("share", [0.0, 1e-6, 5e-6, 1e-4, 0.01, 0.3, 0.6, 0.8, 0.9, 0.95])
    def test_truncated(
        self, data: Path, tmp_path: Path, name: str, share: float, caplog: pytest.LogCaptureFixture
    ) -> None:
        content = (data / "slides" / name).read_bytes()
        path = tmp_path / name
        path.write_bytes(content[: int(len(content) * share)])
        _refused(path, "truncated", "copy it again")
        assert caplog.records == []  # tifffile's own complaints would come out on stderr

    def test_truncated_in_many_threads(self, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        content = (data / "slides" / "synthetic_cmu1.ndpi").read_bytes()
        whole, part = tmp_path / "whole.ndpi", tmp_path / "part.ndpi"
        whole.write_bytes(content)
        part.write_bytes(content[: int(len(content) * 0.9)])

        def attempt(path: Path) -> bool:
            try:
                with open_slide(path):
                    return True
            except SlideOpenError:
                return False

        with ThreadPoolExecutor(8) as pool:
            opened = list(pool.map(attempt, [whole, part] * 40))
        assert opened == [True, False] * 40
        assert caplog.records == []
        assert logging.getLogger("tifffile").propagate  # a slide opened elsewhere changes nothing of the process's own

    def test_nothing_stays_open(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "grey.tiff", np.zeros((100, 100), np.uint8), compression=None)
        before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
        for _ in range(5):
            _refused(path)
        after = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
        assert after <= before


@pytest.fixture
def slide(tmp_path: Path) -> Iterator[SlideReader]:
    path = write_slide(tmp_path / "slide.tiff", texture(500, 420), mpp=0.25)
    with open_slide(path) as reader:
        yield reader


class TestProperties:
    def test_sizes_and_downsamples(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tiff", texture(1003, 801), mpp=0.25, factors=(1, 2, 4))
        with open_slide(path) as slide:
            assert slide.size == (1003, 801)
            assert slide.level_sizes == ((1003, 801), (501, 400), (250, 200))
            assert slide.downsamples == (1, 2, 4)  # not 2.002: the levels have whole pixels
            assert slide.file_mpp == pytest.approx(0.25)
            assert slide.decoded == [0, 0, 0]

    def test_a_downsample_that_is_no_integer(self, tmp_path: Path) -> None:
        path = tmp_path / "s.svs"
        with tifffile.TiffWriter(path) as tiff:
            options = {"photometric": "rgb", "metadata": None, "description": APERIO.format(mpp=0.25)}
            tiff.write(texture(900, 600), tile=(64, 64), **options)
            tiff.write(texture(90, 60), **options)  # where an SVS has its thumbnail
            tiff.write(texture(360, 240), tile=(64, 64), **options)
        with open_slide(path) as slide:
            assert slide.level_sizes == ((900, 600), (360, 240))
            assert slide.downsamples == (1, 2.5)

    def test_real_svs(self, data: Path) -> None:
        with open_slide(data / "slides/CMU-1-Small-Region.svs") as slide:
            assert (slide.size, slide.downsamples) == ((2220, 2967), (1.0,))
            assert (slide.file_mpp, slide.objective_power, slide.reader) == (0.499, 20, "tiffslide/aperio")

    def test_real_ndpi(self, data: Path) -> None:
        with open_slide(data / "slides/synthetic_cmu1.ndpi") as slide:
            assert (slide.size, slide.downsamples) == ((2048, 2816), (1, 2, 4))
            assert slide.file_mpp == pytest.approx(0.499, abs=1e-4)
            assert slide.objective_power == 20


class TestIdentity:
    def test_is_size_time_and_digest(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.write_bytes(b"abc")
        assert file_identity(path) == {
            "bytes": 3,
            "mtime_ns": path.stat().st_mtime_ns,
            "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        }

    def test_a_change_is_seen_and_a_touch_is_none(self, tmp_path: Path) -> None:
        path = tmp_path / "f"
        path.write_bytes(b"abc")
        identity = file_identity(path)
        assert not file_changed(path, identity)
        os.utime(path, ns=(1, 1))  # copied, or restored from a backup
        assert not file_changed(path, identity)
        assert not file_changed(path, {k: v for k, v in identity.items() if k != "mtime_ns"})
        path.write_bytes(b"abd")
        os.utime(path, ns=(1, 1))
        assert file_changed(path, identity)
        path.write_bytes(b"abcd")
        assert file_changed(path, identity)
        path.unlink()
        assert not file_changed(path, identity)


class TestScale:
    def test_cohort_before_file_before_power(self, slide: SlideReader) -> None:
        assert resolve_mpp(slide, 0.3) == (0.3, "cohort")
        assert resolve_mpp(slide, None) == (pytest.approx(0.25), "file")
        assert resolve_mpp(slide, None, assume_power=True) == (pytest.approx(0.25), "file")

    def test_power_only_when_asked_for(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.svs", texture(500, 400), mpp=None, description=APERIO.format(mpp=""))
        with open_slide(path) as slide:
            with pytest.raises(MissingMppError, match=r"column mpp.*--assume-power"):
                resolve_mpp(slide, None)
            assert resolve_mpp(slide, None, assume_power=True) == (0.25, "objective power")
            assert resolve_mpp(slide, 0.24, assume_power=True) == (0.24, "cohort")

    def test_aperio_description(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.svs", texture(500, 400), mpp=None, description=APERIO.format(mpp=0.2527))
        with open_slide(path) as slide:
            assert resolve_mpp(slide, None) == (0.2527, "file")

    @pytest.mark.parametrize("mpp", [None, "no number"])
    def test_missing(self, tmp_path: Path, mpp: str | None) -> None:
        options = {} if mpp is None else {"description": APERIO.format(mpp=mpp).replace("AppMag = 40", "AppMag = 40x")}
        path = write_slide(tmp_path / "s.tiff", texture(500, 400), mpp=None, **options)
        with open_slide(path) as slide:
            for assume_power in (False, True):
                with pytest.raises(MissingMppError, match=r"s\.tiff does not say its scale.*column mpp"):
                    resolve_mpp(slide, None, assume_power=assume_power)
            assert resolve_mpp(slide, 0.25) == (0.25, "cohort")

    @pytest.mark.parametrize("mpp", [353.0, 0.0001])
    def test_implausible_file(self, tmp_path: Path, mpp: float) -> None:
        path = write_slide(tmp_path / "s.tiff", texture(500, 400), mpp=mpp)
        with open_slide(path) as slide:
            with pytest.raises(MissingMppError, match=r"s\.tiff: .* um/px by the file is not plausible.*column mpp"):
                resolve_mpp(slide, None)
            assert resolve_mpp(slide, 0.25) == (0.25, "cohort")

    @pytest.mark.parametrize("mpp", [0.0, -0.25, 25.0, float("nan"), float("inf")])
    def test_implausible_cohort(self, slide: SlideReader, mpp: float) -> None:
        with pytest.raises(MissingMppError, match="by the cohort is not plausible"):
            resolve_mpp(slide, mpp)


def _naive_blocks(level: RgbImage, step: int) -> RgbImage:
    if step == 1:
        return level
    rows, columns = (-(-side // step) for side in level.shape[:2])
    blocks = [
        [level[r * step : (r + 1) * step, c * step : (c + 1) * step].mean(axis=(0, 1)) for c in range(columns)]
        for r in range(rows)
    ]
    return np.floor(np.array(blocks) + 0.5).astype(np.uint8)


class TestOverview:
    @pytest.mark.parametrize("step", [1, 2, 7, 16, 50, 120, 5000])
    @pytest.mark.parametrize("segment_px", [(16, 48), (64, 64), (512, 512)])
    def test_is_the_block_average(self, tmp_path: Path, step: int, segment_px: tuple[int, int]) -> None:
        path = write_slide(tmp_path / "s.tiff", texture(161, 121), segment_px=segment_px)
        with open_slide(path) as slide:
            overview = slide.overview(0.5 * step, 0.5)
        assert overview.downsample == step
        assert np.array_equal(overview.image, _naive_blocks(level_pixels(path), step))
        assert overview.undecodable.shape == overview.image.shape[:2]
        assert not overview.undecodable.any()

    @pytest.mark.parametrize(
        ("mpp", "level", "step"),
        [(8.0, 2, 2), (16.0, 2, 4), (3.9, 1, 4), (4.0, 2, 1), (1.0, 1, 1), (0.5, 0, 2), (0.1, 0, 1)],
    )
    def test_reads_the_coarsest_level_that_is_fine_enough(
        self, tmp_path: Path, mpp: float, level: int, step: int
    ) -> None:
        path = write_slide(tmp_path / "s.tiff", texture(1003, 801), mpp=0.25, factors=(1, 4, 16))
        with open_slide(path) as slide:
            overview = slide.overview(mpp, 0.25)
            assert [k for k, n in enumerate(slide.decoded) if n] == [level]
        assert overview.downsample == (1, 4, 16)[level] * step
        assert np.array_equal(overview.image, _naive_blocks(level_pixels(path, level), step))

    def test_sparse_is_white_and_known(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tiff", texture(256, 256), compression=None)
        expected = level_pixels(path).copy()
        make_sparse(path, [5, 6])
        expected[64:128, 64:192] = 255
        with open_slide(path) as slide:
            overview = slide.overview(5.0, 0.5)
            assert slide.decoded == [14]
        assert np.array_equal(overview.image, _naive_blocks(expected, 10))
        assert not overview.undecodable.any()

    def test_undecodable_is_marked(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tiff", texture(256, 200))
        corrupt(path, 5)
        with open_slide(path) as slide:
            overview = slide.overview(5.0, 0.5)
        expected = np.zeros((20, 26), np.bool_)
        expected[6:13, 6:13] = True  # px 64 to 128
        assert np.array_equal(overview.undecodable, expected)

    @pytest.mark.parametrize(("width", "height"), [(1003, 301), (301, 1003), (997, 997), (90, 40)])
    @pytest.mark.parametrize("max_px", [50, 300, 1000])
    def test_thumbnail_fits(self, tmp_path: Path, width: int, height: int, max_px: int) -> None:
        pixels = np.full((height, width, 3), GLASS, np.uint8)
        pixels[: height // 2, : width // 4] = 0
        path = write_slide(tmp_path / "s.tiff", pixels, compression=None)
        with open_slide(path) as slide:
            image, downsample = slide.thumbnail(max_px)
            assert slide._kept is None
        assert max(image.shape[:2]) <= max_px
        assert max(image.shape[:2]) > min(max_px, max(width, height)) * 0.66
        assert image.shape[1] * downsample == pytest.approx(width, abs=1.1 * downsample)
        assert image.shape[0] * downsample == pytest.approx(height, abs=1.1 * downsample)
        dark = image[..., 0] < 120
        assert dark.sum(axis=1).max() == pytest.approx(width / 4 / downsample, abs=1.1)
        assert dark.sum(axis=0).max() == pytest.approx(height / 2 / downsample, abs=1.1)


class TestSegments:
    def test_equal_tiffslide(self, data: Path) -> None:
        for name in ("CMU-1-Small-Region.svs", "synthetic_cmu1.ndpi"):
            path = data / "slides" / name
            with open_slide(path) as slide, tiffslide.TiffSlide(path) as reference:
                for level, (width, height) in enumerate(slide.level_sizes):
                    expected = np.asarray(reference.read_region((0, 0), level, (width, height)))[..., :3]
                    grid = slide.segment_grid(level)
                    found = np.zeros((grid.rows * grid.height, grid.columns * grid.width, 3), np.uint8)
                    for index, pixels in decode(slide, level, range(grid.rows * grid.columns)).items():
                        y, x = index // grid.columns * grid.height, index % grid.columns * grid.width
                        assert isinstance(pixels, np.ndarray)
                        found[y : y + grid.height, x : x + grid.width] = pixels
                    assert np.array_equal(found[:height, :width], expected)
                    assert slide.decoded[level] == grid.rows * grid.columns

    def test_only_the_wanted_in_any_order(self, slide: SlideReader) -> None:
        assert sorted(decode(slide, 0, [40, 3, 17])) == [3, 17, 40]
        assert slide.decoded == [3]
        assert decode(slide, 0, []) == {}

    @pytest.mark.parametrize(
        ("compression", "samples"), [("jpeg", 3), (None, 3), (None, 4), ("deflate", 3), ("deflate", 4)]
    )
    @pytest.mark.parametrize("segment_px", [(64, 48), None])
    def test_any_kind_fills_its_place(
        self, tmp_path: Path, samples: int, compression: str | None, segment_px: tuple[int, int] | None
    ) -> None:
        """Also where segments are cut off by the border, or have a fourth sample."""
        pixels = np.concatenate([texture(150, 110), texture(150, 110, seed=1)[..., : samples - 3]], axis=2)
        options = {"extrasamples": ["unassalpha"]} if samples == 4 else {}
        options |= {} if segment_px else {"rowsperstrip": 48}
        path = write_slide(tmp_path / "s.tiff", pixels, compression=compression, segment_px=segment_px, **options)
        expected = level_pixels(path)[..., :3]
        with open_slide(path) as slide:
            grid = slide.segment_grid(0)
            for index, segment in decode(slide, 0, range(grid.rows * grid.columns)).items():
                y, x = index // grid.columns * grid.height, index % grid.columns * grid.width
                part = expected[y : y + grid.height, x : x + grid.width]
                assert isinstance(segment, np.ndarray)
                assert np.array_equal(segment[: len(part), : part.shape[1]], part)

    def test_a_jpeg_smaller_than_its_place(self, tmp_path: Path) -> None:
        """As some writers cut off the last column and row of segments."""
        pixels = texture(100, 80)
        parts = [pixels[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
        encoded = [imagecodecs.jpeg_encode(part, level=90, colorspace="RGB", outcolorspace="RGB") for part in parts]
        with tifffile.TiffWriter(tmp_path / "s.tiff") as tiff:
            tiff.write(
                iter(encoded), shape=(80, 100, 3), dtype=np.uint8, tile=(64, 64), compression="jpeg", photometric="rgb"
            )
        with open_slide(tmp_path / "s.tiff") as slide:
            found = decode(slide, 0, range(4))
        for k, part in enumerate(parts):
            segment = found[k]
            assert isinstance(segment, np.ndarray)
            assert np.abs(segment[: part.shape[0], : part.shape[1]].astype(int) - part).mean() < 8


@pytest.fixture(params=["memory", "disk"])
def shelf(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where what an overview decoded is kept: in memory, or as of a slide too big for that."""
    if request.param == "disk":
        monkeypatch.setattr("her2cache.shelf.MEMORY_BYTES", 0)
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


class TestKept:
    def test_what_the_overview_decoded_is_not_decoded_again(self, slide: SlideReader, shelf: Path) -> None:
        slide.overview(8.0, 0.25, reread=0)
        assert list(shelf.iterdir()) == []  # nobody else's business, and gone with the process
        first = decode(slide, 0, range(56))
        assert slide.decoded == [56]
        assert not slide._kept
        again = decode(slide, 0, range(56))
        assert slide.decoded == [112]
        assert all(np.array_equal(first[k], again[k]) for k in range(56))

    def test_sparse_and_broken_segments_stay_what_they_are(self, tmp_path: Path, shelf: Path) -> None:
        path = write_slide(tmp_path / "s.tiff", texture(256, 256))
        make_sparse(path, [5])
        corrupt(path, 10)
        with open_slide(path) as slide:
            slide.overview(8.0, 0.5, reread=0)
            kept, again = decode(slide, 0, range(16)), decode(slide, 0, range(16))
            assert slide.decoded == [30]
        assert all(np.array_equal(kept[k], again[k]) for k in range(16))
        assert isinstance(kept[5], np.ndarray)
        assert (kept[5] == 255).all()
        assert isinstance(kept[10], str)

    @pytest.mark.parametrize("reread", [None, 1])
    def test_nothing_is_kept_that_is_not_read_again(self, tmp_path: Path, shelf: Path, reread: int | None) -> None:
        path = write_slide(tmp_path / "s.tiff", texture(500, 400), mpp=0.25, factors=(1, 2, 4))
        with open_slide(path) as slide:
            slide.overview(1.0, 0.25, reread=reread)  # reads level 2
            assert slide._kept is None

    def test_closing_lets_go(self, tmp_path: Path, shelf: Path) -> None:
        before = len(list(Path("/proc/self/fd").iterdir()))
        with open_slide(write_slide(tmp_path / "s.tiff", texture(500, 400))) as slide:
            slide.overview(8.0, 0.5, reread=0)
            assert slide._kept
        assert not slide._kept
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    @pytest.mark.parametrize("folder", ["shelf", "missing"])
    def test_without_room_it_is_decoded_twice_and_said(
        self,
        slide: SlideReader,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        folder: str,
    ) -> None:
        (tmp_path / "shelf").mkdir()
        monkeypatch.setattr("her2cache.shelf.MEMORY_BYTES", 0)
        monkeypatch.setattr("her2cache.shelf.SPARE_BYTES", 1 << 60)
        monkeypatch.setenv("TMPDIR", str(tmp_path / folder))
        slide.overview(8.0, 0.25, reread=0)
        decode(slide, 0, range(56))
        assert slide.decoded == [112]
        assert f"{slide.path} has no pyramid" in caplog.text
        assert "set TMPDIR" in caplog.text

    def test_a_disk_that_fills_up_meanwhile_costs_a_second_decoding(self, slide: SlideReader) -> None:
        """/dev/full takes no byte."""
        expected = decode(slide, 0, range(56))
        slide.decoded[0] = 0
        with Path("/dev/full").open("r+b", buffering=0) as full:
            shelf = Shelf(full)
            shelf.put((0, 0), np.zeros((64, 64, 3), np.uint8), None)
            shelf.put((0, 1), np.zeros((64, 64, 3), np.uint8), "broken")
            assert (0, 0) not in shelf
            slide._kept = shelf
            found = decode(slide, 0, range(56))
        assert slide.decoded == [55]
        assert found.pop(1) == "broken"
        assert all(np.array_equal(found[k], expected[k]) for k in found)


class TestDamage:
    @pytest.mark.parametrize("damage", ["head", "middle", "tail"])
    @pytest.mark.parametrize("segment_px", [(64, 64), (16, 16), (256, 256)])
    def test_damage_is_told(self, tmp_path: Path, damage: str, segment_px: tuple[int, int]) -> None:
        """Also where libjpeg would fill up with grey and say nothing."""
        path = write_slide(tmp_path / "s.tiff", texture(500, 400), segment_px=segment_px)
        corrupt(path, 0, damage)  # pyright: ignore[reportArgumentType]
        with open_slide(path) as slide:
            found = decode(slide, 0, [0, 1])
        assert isinstance(found[0], str)
        assert isinstance(found[1], np.ndarray)


class TestSegmentsThatDoNotFit:
    """Found by the mutants of `tests/fuzz.py`: other pixels, or memory for whatever a header says."""

    def test_a_jpeg_too_small_for_its_place(self, tmp_path: Path) -> None:
        """What it left open would have kept the pixels of another segment."""
        parts = [texture(64, 64, seed) for seed in range(6)]
        parts[1] = parts[1][:48]
        encoded = [imagecodecs.jpeg_encode(part, level=90, colorspace="RGB", outcolorspace="RGB") for part in parts]
        path = tmp_path / "s.tiff"
        with tifffile.TiffWriter(path) as tiff:
            options = {"shape": (128, 192, 3), "dtype": np.uint8, "tile": (64, 64), "photometric": "rgb"}
            tiff.write(iter(encoded), compression="jpeg", **options)
        with open_slide(path) as slide:
            found = decode(slide, 0, range(6))
        assert found[1] == "its JPEG image is 64 x 48 px"
        assert all(isinstance(found[k], np.ndarray) for k in (0, 2, 3, 4, 5))

    def test_a_jpeg_that_ends_early(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tiff", texture(256, 192))
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            offset, count = page.dataoffsets[5], page.databytecounts[5]
        content = bytearray(path.read_bytes())
        segment = content[offset : offset + count]
        start = segment.index(b"\xff\xda") + 14
        middle = (start + count) // 2
        middle -= segment[middle - 1] == 0xFF
        content[offset + middle : offset + middle + 2] = b"\xff\xd9"
        path.write_bytes(content)
        with tifffile.TiffFile(path, mode="r+") as tiff:
            tag = tiff.pages[0].tags["TileByteCounts"]
            tag.overwrite([middle + 2 if k == 5 else value for k, value in enumerate(tag.value)])
        with open_slide(path) as slide:
            found = decode(slide, 0, range(12))
        assert {k: reason for k, reason in found.items() if isinstance(reason, str)} == {
            5: "its JPEG data ends before its pixels do"
        }

    @pytest.mark.parametrize(
        ("offset", "form", "value", "said"),
        [
            (8, ">I", 60_000, "its JPEG 2000 image is 60000 x 64 px"),
            (12, ">I", 63, "its JPEG 2000 image is 64 x 63 px"),
            (24, ">I", 0, "its JPEG 2000 header is broken"),
            (40, ">H", 16_000, "its JPEG 2000 header is broken"),
            (42, "B", 8, "its JPEG 2000 components are none of 8 bits"),
            (43, "B", 33, "or of other sizes than chroma has"),
        ],
    )
    @pytest.mark.parametrize("compression", [33003, 33005])
    def test_a_header_of_jpeg_2000(
        self, tmp_path: Path, compression: int, offset: int, form: str, value: int, said: str
    ) -> None:
        path = write_jpeg2000(tmp_path / "s.svs", texture(256, 192), compression)
        content = bytearray(path.read_bytes())
        start = content.index(b"\xff\x4f\xff\x51")
        struct.pack_into(form, content, start + offset, value)
        path.write_bytes(content)
        with open_slide(path) as slide:
            found = decode(slide, 0, range(12))
        (broken,) = [reason for reason in found.values() if isinstance(reason, str)]
        assert said in broken

    @pytest.mark.parametrize(
        ("place", "count", "broken"),
        [(0, 500, True), (2**31, 500, True), (500, 2**31, True), (500, 0, False), (0, 0, False)],
    )
    @pytest.mark.parametrize("compression", ["jpeg", None])
    def test_places_that_are_none(
        self, tmp_path: Path, place: int, count: int, broken: bool, compression: str | None
    ) -> None:
        """Without bytes a segment is left out; without a place, or with more bytes than there are, it is damaged."""
        path = write_slide(tmp_path / "s.tiff", texture(256, 192), compression=compression)
        with tifffile.TiffFile(path, mode="r+") as tiff:
            for name, value in (("TileOffsets", place), ("TileByteCounts", count)):
                tag = tiff.pages[0].tags[name]
                tag.overwrite([value if k == 5 else v for k, v in enumerate(tag.value)], dtype="I")
        with open_slide(path) as slide:
            found = decode(slide, 0, range(12))
        assert isinstance(found.pop(5), str) == broken
        assert all(isinstance(pixels, np.ndarray) for pixels in found.values())

    def test_plain_pixels_with_too_many_bytes(self, tmp_path: Path) -> None:
        """As where compressed ones are taken for plain ones."""
        path = write_slide(tmp_path / "s.tiff", texture(256, 192), compression="lzw")
        content = bytearray(path.read_bytes())
        (tag,) = [tag for tag in tags_of(bytes(content)) if tag.code == 259]
        put(content, tag.values, "<H", 1)
        path.write_bytes(content)
        with open_slide(path) as slide:
            assert set(decode(slide, 0, range(12)).values()) == {"it is longer than its pixels are"}


def test_too_many_bad_patches() -> None:
    path = Path("s.svs")
    require_readable(path, 0, 10, 0.0, "")
    require_readable(path, 1, 100, 0.01, "bad marker")
    with pytest.raises(
        DecodeError, match=r"s\.svs: 2 of 100 patches.*bad marker.*1\.0%.*copy it again.*--max-bad-patches"
    ):
        require_readable(path, 2, 100, 0.01, "bad marker")
    assert issubclass(DecodeError, SlideError)
