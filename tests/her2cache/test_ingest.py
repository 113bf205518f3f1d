"""One slide from file to features, against a slow reference that shares no code with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tiffslide
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.models import alexnet

from her2cache.backbones.alexnet import Trunk
from her2cache.backbones.registry import load_recipe
from her2cache.cohort import Slide
from her2cache.embedder import Batching
from her2cache.errors import DecodeError, EmbedderError, EmptyPlanError, MissingMppError, SlideError
from her2cache.ingest import (
    PatchBlock,
    ReadOptions,
    ReadSummary,
    SlideLook,
    SlideSurvey,
    embed_block,
    look_at,
    read_slide,
)
from her2cache.slide import SlideReader
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from her2cache.units import PatchBatch
from tests.slides import GLASS, Damage, corrupt, level_pixels, make_sparse, texture, write_slide

SMALL = ReadOptions(PatchSpec(patch_px=64, stride_px=64), preset("HE"), block=16)


@dataclass(frozen=True)
class Reading:
    """All that `read_slide` yields for a slide."""

    survey: SlideSurvey
    blocks: list[PatchBlock]
    summary: ReadSummary

    @property
    def patches(self) -> PatchBatch:
        return np.concatenate([block.patches for block in self.blocks])

    @property
    def ok(self) -> NDArray[np.bool_]:
        return np.concatenate([block.ok for block in self.blocks])


def _read(path: Path, options: ReadOptions = SMALL, mpp: float | None = None) -> Reading:
    survey, *blocks, summary = read_slide(Slide("s", "c", path, "HE", mpp=mpp), options)
    assert isinstance(survey, SlideSurvey)
    assert isinstance(summary, ReadSummary)
    return Reading(survey, blocks, summary)  # pyright: ignore[reportArgumentType]


pytestmark = pytest.mark.usefixtures("torch_threads")


@pytest.fixture(scope="module")
def random_trunk() -> Trunk:
    return load_recipe("alexnet-random", 64)


# -- the slow reference ------------------------------------------------------------------------------------------


def _reference_patch(
    slide: tiffslide.TiffSlide, coords: NDArray[np.int32], level: int, target_mpp: float, side: int
) -> NDArray[np.uint8]:
    """`read_region` of the whole pixels under the patch's exact box, then Pillow's BOX from that box."""
    downsample = (1, 2, 4)[level]
    level_mpp = slide.properties["tiffslide.mpp-x"] * downsample
    factor = 1.0 if abs(level_mpp / target_mpp - 1) <= 0.01 else target_mpp / level_mpp
    stride = side * factor  # level px
    start = np.rint(coords / (stride * downsample)) * stride
    first, last = np.floor(start).astype(int), np.ceil(start + stride).astype(int)
    window = slide.read_region(tuple(first * downsample), level, tuple(last - first)).convert("RGB")
    if factor == 1.0:
        return np.asarray(window)
    box = (*(start - first), *(start - first + stride))
    return np.asarray(window.resize((side, side), Image.Resampling.BOX, box=tuple(map(float, box))))


def _reference_features(patches: PatchBatch, weights: Path) -> NDArray[np.float32]:
    """torchvision's alexnet in float32, (n, 1024)."""
    trunk = alexnet(weights=None).features.eval()
    trunk.load_state_dict(torch.load(weights, weights_only=True))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        pixels = torch.from_numpy(patches) / 255
        return trunk(((pixels - mean) / std).permute(0, 3, 1, 2).contiguous()).flatten(1).numpy()


class TestAgainstReference:
    @pytest.mark.parametrize(
        ("name", "target_mpp", "level", "resampled"),
        [
            ("CMU-1-Small-Region.svs", 0.5, 0, False),
            ("CMU-1-Small-Region.svs", 0.8, 0, True),
            ("CMU-1-Small-Region.svs", 1.0, 0, True),  # it has no level of 1 um/px
            ("synthetic_cmu1.ndpi", 0.5, 0, False),
            ("synthetic_cmu1.ndpi", 0.8, 0, True),
            ("synthetic_cmu1.ndpi", 1.0, 1, False),
            ("synthetic_cmu1.ndpi", 1.5, 1, True),
        ],
    )
    def test_real_slides(self, data: Path, name: str, target_mpp: float, level: int, resampled: bool) -> None:
        path, weights = data / "slides" / name, data / "weights/alexnet_features_imagenet.pth"
        reading = _read(path, ReadOptions(PatchSpec(mpp=target_mpp), preset("HE")))
        n = len(reading.survey.coords)
        assert n > 20
        assert reading.ok.all()

        some = np.random.default_rng(0).choice(n, min(n, 48), replace=False)
        with tiffslide.TiffSlide(path) as slide:
            pixels = np.stack(
                [_reference_patch(slide, xy, level, target_mpp, 96) for xy in reading.survey.coords[some]]
            )
        expected = _reference_features(pixels, weights)
        embedder = load_recipe(f"alexnet-imagenet={weights}", 96).build(Batching())
        features = embed_block(_block(reading.patches[some]), [embedder]).features[0]
        assert isinstance(features, np.ndarray)
        assert features.shape == (1, len(some), 1024)
        found = features[0].astype(np.float32)
        if resampled:
            difference = np.abs(reading.patches[some].astype(int) - pixels).mean(axis=(1, 2, 3))
            assert difference.max() < 0.5
            norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
            assert ((found * expected).sum(axis=1) / norms).min() > 0.999
        else:
            assert np.array_equal(reading.patches[some], pixels)
            rounding = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float32) / 2
            assert (np.abs(found - expected) - rounding).max() < 1e-4  # float32 sums in another order

    def test_the_plan_of_the_real_svs(self, data: Path) -> None:
        """Patches in raster order, wholly inside, a stride apart; and hardly any of them blank."""
        survey = _read(data / "slides/CMU-1-Small-Region.svs", ReadOptions(PatchSpec(), preset("HE"))).survey
        coords = survey.coords
        assert (coords % 96 == 0).all()
        assert (coords >= 0).all()
        assert (coords + 96 <= [2220, 2967]).all()
        assert np.array_equal(np.lexsort(coords.T), np.arange(len(coords)))
        assert survey.patch_level0_px == 96
        assert survey.blocks == -(-len(coords) // 64)
        level = level_pixels(data / "slides/CMU-1-Small-Region.svs").astype(int)
        chosen = np.zeros((2967 // 96, 2220 // 96), np.bool_)
        chosen[coords[:, 1] // 96, coords[:, 0] // 96] = True
        colour = np.ptp(level[: 96 * chosen.shape[0], : 96 * chosen.shape[1]], axis=2)
        colour = colour.reshape(chosen.shape[0], 96, chosen.shape[1], 96).mean(axis=(1, 3))
        assert 0.2 < chosen.mean() < 0.9
        assert colour[chosen].mean() > 3 * colour[~chosen].mean()


# -- survey ------------------------------------------------------------------------------------------------------


class TestSurvey:
    def test_provenance(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tiff", texture(700, 500), mpp=0.25, factors=(1, 2))
        survey = _read(path).survey
        assert survey.slide_id == "s"
        assert survey.patch_level0_px == 128
        about = survey.provenance
        assert about["path"] == str(path.resolve())
        assert about["bytes"] == path.stat().st_size
        assert len(about["sha256"]) == 64
        assert (about["width"], about["height"]) == (700, 500)
        assert (about["mpp"], about["mpp_source"]) == (pytest.approx(0.25), "file")
        assert (about["read"]["level"], about["read"]["factor"], about["grid"]) == (1, 1.0, [5, 3])

    def test_the_cohort_overrides_the_file_and_is_recorded(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tiff", texture(700, 500), mpp=0.25)
        reading = _read(path, mpp=0.5)
        assert (reading.survey.provenance["mpp"], reading.survey.provenance["mpp_source"]) == (0.5, "cohort")
        assert reading.survey.patch_level0_px == 64
        assert np.array_equal(reading.patches[1], level_pixels(path)[:64, 64:128])

    @pytest.mark.parametrize(
        ("options", "mpp", "colour", "error"),
        [
            (SMALL, None, None, MissingMppError),
            (SMALL, 0.6, None, SlideError),
            (SMALL, 0.5, GLASS, EmptyPlanError),
        ],
    )
    def test_refusals(
        self,
        tmp_path: Path,
        options: ReadOptions,
        mpp: float | None,
        colour: tuple[int, int, int] | None,
        error: type[SlideError],
    ) -> None:
        pixels = texture(300, 300) if colour is None else np.full((300, 300, 3), colour, np.uint8)
        path = write_slide(tmp_path / "s.tiff", pixels, mpp=None)
        with pytest.raises(error):
            _read(path, options, mpp)

    def test_enlarging_when_allowed(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tiff", texture(300, 300), mpp=1.0, compression=None)
        reading = _read(path, replace(SMALL, allow_upsample=True))
        assert reading.survey.patch_level0_px == 32
        pixels = level_pixels(path)[:32, 32:64].repeat(2, axis=0).repeat(2, axis=1)
        assert np.array_equal(reading.patches[1], pixels)


# -- blocks ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = texture(600, 500)
    pixels[200:400, 100:300] = GLASS
    return write_slide(tmp_path_factory.mktemp("ingest") / "s.tiff", pixels)


@pytest.fixture(scope="module")
def expected(shared_slide: Path) -> Reading:
    return _read(shared_slide, replace(SMALL, block=10_000))


class TestBlocks:
    def test_one_block_is_the_plan(self, shared_slide: Path, expected: Reading) -> None:
        level = level_pixels(shared_slide)
        assert len(expected.blocks) == expected.survey.blocks == 1
        for (x, y), patch in zip(expected.survey.coords, expected.patches, strict=True):
            assert np.array_equal(patch, level[y : y + 64, x : x + 64])

    @settings(max_examples=25)
    @given(st.integers(1, 80))
    def test_any_block_size(self, shared_slide: Path, expected: Reading, block: int) -> None:
        reading = _read(shared_slide, replace(SMALL, block=block))
        n = len(expected.survey.coords)
        assert n < 80  # blocks of just n, and of more
        assert [b.start for b in reading.blocks] == list(range(0, n, block))
        assert {len(b.ok) for b in reading.blocks[:-1]} <= {block}
        assert len(reading.blocks) == reading.survey.blocks
        assert np.array_equal(reading.patches, expected.patches)
        assert np.array_equal(np.concatenate([b.coords for b in reading.blocks]), expected.survey.coords)
        assert {b.slide_id for b in reading.blocks} == {"s"}
        assert len(reading.ok) == n
        assert reading.ok.all()

    def test_blocks_do_not_share_memory(self, shared_slide: Path) -> None:
        blocks = _read(shared_slide).blocks
        assert not any(np.shares_memory(a.patches, b.patches) for a in blocks for b in blocks if a is not b)

    def test_two_reads_are_equal_byte_for_byte(self, shared_slide: Path) -> None:
        corrupted = shared_slide.with_name("damaged.tiff")
        corrupted.write_bytes(shared_slide.read_bytes())
        corrupt(corrupted, 3)
        options = replace(SMALL, max_bad_patches=0.5)
        first, second = _read(corrupted, options), _read(corrupted, options)
        assert first.survey.coords.tobytes() == second.survey.coords.tobytes()
        assert first.survey.provenance == second.survey.provenance
        assert first.summary == second.summary
        assert first.ok.tobytes() == second.ok.tobytes()
        assert first.patches[first.ok].tobytes() == second.patches[second.ok].tobytes()

    def test_each_segment_once_on_a_slide_of_one_level(self, shared_slide: Path) -> None:
        """The overview decodes them all; reading takes them from it."""
        assert _read(shared_slide).summary.segments_decoded == [10 * 8]

    def test_only_segments_under_patches_on_a_pyramid(self, tmp_path: Path) -> None:
        pixels = np.full((4096, 4096, 3), GLASS, np.uint8)
        pixels[1024:2048, 2048:3072] = texture(1024, 1024)
        path = write_slide(tmp_path / "s.tiff", pixels, factors=(1, 4, 16), segment_px=(128, 128))
        decoded = _read(path).summary.segments_decoded
        assert decoded == [64, 0, 4]


# -- damage ------------------------------------------------------------------------------------------------------


class TestDamage:
    OPTIONS = replace(SMALL, max_bad_patches=0.5)

    @staticmethod
    def _hit(coords: NDArray[np.int32], *segments: int) -> NDArray[np.bool_]:
        """Which patches of 64 px overlap segments of 96 px on a slide of 7 columns."""
        x, y = coords.T
        hits = [
            (x < c * 96 + 96) & (x + 64 > c * 96) & (y < r * 96 + 96) & (y + 64 > r * 96)
            for r, c in (divmod(index, 7) for index in segments)
        ]
        return np.any(hits, axis=0)

    @pytest.mark.parametrize("factors", [(1,), (1, 2, 4)], ids=["one level", "pyramid"])
    @pytest.mark.parametrize("damage", ["head", "middle", "tail"])
    def test_patches_on_damage_are_planned_marked_and_counted(
        self, tmp_path: Path, damage: Damage, factors: tuple[int, ...]
    ) -> None:
        """Also where the overview is made from the damaged level, and the patches might have vanished as glass."""
        path = write_slide(tmp_path / "s.tiff", texture(640, 640), segment_px=(96, 96), factors=factors)
        whole = _read(path)
        for index in (9, 10, 16, 17):  # some patches lie on them wholly
            corrupt(path, index, damage)
        reading = _read(path, self.OPTIONS)
        assert np.array_equal(reading.survey.coords, whole.survey.coords)
        hit = self._hit(reading.survey.coords, 9, 10, 16, 17)
        assert np.array_equal(reading.ok, ~hit)
        assert np.array_equal(reading.patches[~hit], whole.patches[~hit])
        assert reading.summary.failed == hit.sum() > 10
        assert reading.summary.reasons

    def test_sparse_segments_are_glass_and_no_failure(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tiff", texture(640, 640), segment_px=(96, 96))
        whole = _read(path)
        make_sparse(path, [9, 10, 16, 17])
        reading = _read(path)
        assert reading.summary.failed == 0
        assert reading.ok.all()
        left_out = set(map(tuple, whole.survey.coords)) - set(map(tuple, reading.survey.coords))
        assert left_out
        for x, y in left_out:
            white = (min(x + 64, 384) - max(x, 192)) * (min(y + 64, 288) - max(y, 96))
            assert white >= 0.4 * 64 * 64

    def test_too_much_damage_fails_the_slide(self, tmp_path: Path) -> None:
        path = write_slide(tmp_path / "s.tiff", texture(640, 640), segment_px=(96, 96))
        corrupt(path, 9)
        hit = 4
        with pytest.raises(DecodeError, match=rf"{hit} of 100 patches.*more than the 3\.0%.*--max-bad-patches"):
            _read(path, replace(SMALL, max_bad_patches=0.03))
        assert _read(path, replace(SMALL, max_bad_patches=0.04)).summary.failed == hit
        with pytest.raises(DecodeError):
            _read(path)  # 1 % by default


class TestMidRead:
    """What happens to a file while it is read."""

    @staticmethod
    def _interrupted(path: Path, happens: Callable[[], object]) -> str:
        """Reads on after something happened to the file, and gives the reason why the slide failed."""
        items = read_slide(Slide("s", "c", path, "HE"), SMALL)
        next(items), next(items)  # the survey, and a block
        happens()
        with pytest.raises(SlideError) as caught:
            list(items)
        return str(caught.value)

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write_slide(tmp_path / "s.tiff", texture(640, 640), factors=(1, 2))

    def test_it_disappears(self, path: Path) -> None:
        assert "s.tiff disappeared while it was read" in self._interrupted(path, path.unlink)

    def test_its_folder_disappears(self, path: Path) -> None:
        reason = self._interrupted(path, lambda: path.parent.rename(path.parent.with_name("moved")))
        assert "disappeared while it was read" in reason

    def test_it_is_truncated(self, path: Path) -> None:
        reason = self._interrupted(path, lambda: os.truncate(path, path.stat().st_size // 4))
        assert "the file ends before its segment does" in reason

    def test_it_is_written_to(self, path: Path) -> None:
        content = path.read_bytes()
        assert "was written to while it was read" in self._interrupted(path, lambda: path.write_bytes(content))

    def test_it_disappears_before_its_digest_is_taken(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def vanish(reader: SlideReader, slide: Slide, options: ReadOptions) -> SlideLook:
            look = look_at(reader, slide, options)
            path.unlink()
            return look

        monkeypatch.setattr("her2cache.ingest.look_at", vanish)
        with pytest.raises(SlideError, match=r"s\.tiff cannot be read to its end \(No such file.*embed it again"):
            _read(path)

    def test_its_storage_fails(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An open file of which nothing can be read: its descriptor is replaced by one that refuses."""
        items = read_slide(Slide("s", "c", path, "HE"), SMALL)
        next(items)
        (descriptor,) = [fd for fd in Path("/proc/self/fd").iterdir() if os.path.realpath(fd) == str(path.resolve())]
        refusing = os.open(path.parent, os.O_RDONLY)  # a directory cannot be read as a file
        try:
            os.dup2(refusing, int(descriptor.name))
            with pytest.raises(SlideError, match=r"s\.tiff cannot be read to its end \(Is a directory"):
                list(items)
        finally:
            os.close(refusing)


# -- embedding ---------------------------------------------------------------------------------------------------


def _block(patches: PatchBatch, ok: NDArray[np.bool_] | None = None) -> PatchBlock:
    coords = np.zeros((len(patches), 2), np.int32)
    return PatchBlock("s", 0, coords, patches, np.ones(len(patches), np.bool_) if ok is None else ok)


def _with_last_bias(trunk: Trunk, name: str, value: float) -> Trunk:
    tensors = dict(trunk.tensors) | {"10.bias": np.full_like(trunk.tensors["10.bias"], value)}
    return Trunk(replace(trunk.spec, name=name), tensors, None)


@pytest.fixture(scope="module")
def patches() -> PatchBatch:
    return np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def embed(random_trunk: Trunk) -> Callable[[PatchBatch], NDArray[np.float16]]:
    embedder = random_trunk.build(Batching(batch=16))

    def embed(patches: PatchBatch) -> NDArray[np.float16]:
        features = embed_block(_block(patches), [embedder]).features[0]
        assert not isinstance(features, EmbedderError)
        return features

    return embed


class TestEmbedBlock:
    def test_shape_and_dtype(self, embed: Callable[[PatchBatch], NDArray[np.float16]], patches: PatchBatch) -> None:
        features = embed(patches)
        assert (features.shape, features.dtype) == ((1, 40, 256), np.float16)
        assert len(np.unique(features, axis=1)[0]) == 40

    @settings(max_examples=20)
    @given(st.lists(st.integers(0, 39), min_size=1, max_size=40))
    def test_rows_do_not_depend_on_their_neighbours(
        self, embed: Callable[[PatchBatch], NDArray[np.float16]], patches: PatchBatch, chosen: list[int]
    ) -> None:
        assert embed(patches[chosen]).tobytes() == embed(patches)[:, chosen].tobytes()

    def test_read_only_patches(self, embed: Callable[[PatchBatch], NDArray[np.float16]], patches: PatchBatch) -> None:
        frozen = patches.copy()
        frozen.flags.writeable = False
        assert np.array_equal(embed(frozen), embed(patches))

    @pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
    def test_overflow_is_an_error_of_that_embedder(
        self, random_trunk: Trunk, patches: PatchBatch, value: float
    ) -> None:
        batching = Batching(batch=16)
        good = random_trunk.build(batching)
        bad = _with_last_bias(random_trunk, "too-large", value).build(batching)
        first, failed, last = embed_block(_block(patches), [good, bad, good]).features
        assert isinstance(failed, EmbedderError)
        assert str(failed).startswith("too-large gives features")
        assert "float16" in str(failed)
        assert isinstance(first, np.ndarray)
        assert isinstance(last, np.ndarray)
        assert np.array_equal(first, last)

    def test_undecodable_patches_cannot_overflow(self, random_trunk: Trunk, patches: PatchBatch) -> None:
        @dataclass
        class Loud:
            spec = replace(random_trunk.spec, dim=1)

            def embed(self, patches: PatchBatch, noise: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
                return patches[:, :1, 0, 0].astype(np.float32) * 1e6

        dark = patches.copy()
        dark[:, 0, 0, 0] = 0
        dark[7, 0, 0, 0] = 255
        ok = np.arange(len(dark)) != 7
        block = embed_block(_block(dark, ok), [Loud()])
        assert isinstance(block.features[0], np.ndarray)
        assert np.array_equal(block.ok, ok)
        assert isinstance(embed_block(_block(dark), [Loud()]).features[0], EmbedderError)
