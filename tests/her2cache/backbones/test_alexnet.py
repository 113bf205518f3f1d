"""The AlexNet trunks: their weights from any file, their features, and files that are none."""

from __future__ import annotations

import copy
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models import alexnet

from her2cache.backbones.alexnet import NAMES, Trunk, load_trunk, trunk_dim
from her2cache.backbones.registry import load_recipe
from her2cache.embedder import Batching, FeatureSpace, Recipe
from her2cache.errors import EmbedderError, WeightsMismatchError
from her2cache.tiling import PatchSpec
from her2cache.tissue import preset
from her2cache.weights import write_weights
from tests.embedders import card, trained

pytestmark = pytest.mark.usefixtures("torch_threads")


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return alexnet(weights=None).eval()


@pytest.fixture(scope="module")
def state(network: Any) -> dict[str, Tensor]:
    return dict(network.features.state_dict())


@pytest.fixture(scope="module")
def trunk(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    path = tmp_path_factory.mktemp("weights") / "trunk.pth"
    torch.save(state, path)
    return load_trunk("alexnet-imagenet", str(path), 64)


@pytest.fixture(scope="module")
def untrained() -> Recipe:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return load_recipe("alexnet-random", 96)


def _load(path: Path) -> Trunk:
    return load_trunk("alexnet-imagenet", str(path), 96)


class TestFiles:
    def test_one_trunk_has_one_digest_whatever_its_file(
        self, tmp_path: Path, state: dict[str, Tensor], trunk: Trunk
    ) -> None:
        torch.save(dict(reversed(state.items())), tmp_path / "reversed.pth")
        torch.save(state, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
        torch.save({name: value.double() for name, value in state.items()}, tmp_path / "double.pth")
        last = {
            name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
            for name, value in state.items()
        }
        torch.save(last, tmp_path / "channels_last.pth")
        safetensors.torch.save_file(state, tmp_path / "trunk.safetensors")
        self._all_of_one_trunk(tmp_path, 5, state, trunk)

    @pytest.mark.slow
    def test_a_trunk_has_its_digest_in_the_whole_network(
        self, tmp_path: Path, network: torch.nn.Module, state: dict[str, Tensor], trunk: Trunk
    ) -> None:
        torch.save(network.state_dict(), tmp_path / "whole.pth")
        safetensors.torch.save_file(dict(network.state_dict()), tmp_path / "whole.safetensors")
        self._all_of_one_trunk(tmp_path, 2, state, trunk)

    def _all_of_one_trunk(self, folder: Path, n: int, state: dict[str, Tensor], trunk: Trunk) -> None:
        files = sorted(path for path in folder.iterdir())
        assert len(files) == n
        for path in files:
            loaded = _load(path)
            assert loaded.spec.weights_sha256 == trunk.spec.weights_sha256, path.name
            assert list(loaded.tensors) == list(state)
            assert loaded.source == str(path)
            for name, value in state.items():
                assert np.array_equal(loaded.tensors[name], value.numpy())

    def test_other_weights_have_another_digest(self, tmp_path: Path, state: dict[str, Tensor], trunk: Trunk) -> None:
        changed = {name: value.clone() for name, value in state.items()}
        changed["10.bias"][17] = torch.nextafter(changed["10.bias"][17], torch.tensor(9.0))
        torch.save(changed, tmp_path / "t.pth")
        assert _load(tmp_path / "t.pth").spec.weights_sha256 != trunk.spec.weights_sha256

    def test_the_imagenet_file(self, data: Path) -> None:
        spec = _load(data / "weights/alexnet_features_imagenet.pth").spec
        assert spec.weights_sha256 == "d6bb1ac1d4f3e5dfde3f6e1183c5e76751c9e1b53f30d7764ce45de7a5ca2a34"
        assert (spec.name, spec.dim, spec.input_px) == ("alexnet-imagenet", 1024, 96)
        assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def test_missing(self, tmp_path: Path) -> None:
        for path in (tmp_path / "no.pth", tmp_path):
            with pytest.raises(EmbedderError, match=r"does not exist.*NAME=FILE"):
                _load(path)

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("content", [b"", b"text\n" * 50, b"PK\x03\x04 cut off", b"\x80\x02}q\x00.", b"\x80\x04N."])
    def test_no_weights_file(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        path = tmp_path / f"w{suffix}"
        path.write_bytes(content)
        with pytest.raises(WeightsMismatchError) as caught:
            _load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    @settings(max_examples=100)
    @given(st.integers(0, 2**32), st.integers(1, 60))
    def test_any_bytes(self, tmp_path_factory: pytest.TempPathFactory, seed: int, n: int) -> None:
        path = tmp_path_factory.getbasetemp() / "any.pth"
        path.write_bytes(random.Random(seed).randbytes(n))
        with pytest.raises(WeightsMismatchError):
            _load(path)

    def test_truncated(self, tmp_path: Path, state: dict[str, Tensor]) -> None:
        torch.save(state, tmp_path / "t.pth")
        safetensors.torch.save_file(state, tmp_path / "t.safetensors")
        for path in (tmp_path / "t.pth", tmp_path / "t.safetensors"):
            content = path.read_bytes()
            for share in (0.5, 0.999):
                path.write_bytes(content[: int(len(content) * share)])
                with pytest.raises(WeightsMismatchError, match=r"not a (weights|whole safetensors) file"):
                    _load(path)

    def test_code_in_a_pickle_is_not_run(self, tmp_path: Path) -> None:
        witness = tmp_path / "ran"

        class Attack:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (witness,)

        for name, protocol in (("old.pth", 0), ("new.pth", 4)):
            (tmp_path / name).write_bytes(pickle.dumps({"0.weight": Attack()}, protocol))
        torch.save({"0.weight": Attack()}, tmp_path / "torch.pth")
        for path in sorted(tmp_path.glob("*.pth")):
            with pytest.raises(WeightsMismatchError):
                _load(path)
        assert not witness.exists()
        pickle.loads((tmp_path / "new.pth").read_bytes())
        assert witness.exists()  # it would have

    def test_a_whole_module_is_refused(self, tmp_path: Path, network: Any) -> None:
        torch.save(network.features, tmp_path / "module.pth")
        with pytest.raises(WeightsMismatchError):
            _load(tmp_path / "module.pth")


class TestMismatch:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"0.weight": torch.zeros(64, 3, 7, 7)}, ["0.weight"]),
            ({"0.weight": None}, ["0.weight"]),
            ({"0.weight": None, "10.bias": None}, ["0.weight", "10.bias"]),
            ({"99.weight": torch.zeros(3)}, ["99.weight"]),
            ({"0.weight": [1.0, 2.0]}, ["0.weight"]),
            ({7: torch.zeros(3)}, ["7"]),
            ({"module.x": torch.zeros(1)}, ["module.x"]),
        ],
    )
    def test_names_the_tensors(
        self, tmp_path: Path, state: dict[str, Tensor], change: dict[Any, Any], named: list[str]
    ) -> None:
        changed = {name: value for name, value in (state | change).items() if value is not None}
        torch.save(changed, tmp_path / "t.pth")
        with pytest.raises(WeightsMismatchError) as caught:
            _load(tmp_path / "t.pth")
        assert f"{len(named)} tensors" in str(caught.value)
        for name in named:
            assert name in str(caught.value)

    @pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"epoch": 3}, [torch.zeros(1)], torch.zeros(3), 5])
    def test_no_trunk_at_all(self, tmp_path: Path, content: Any) -> None:
        torch.save(content, tmp_path / "t.pth")
        with pytest.raises(WeightsMismatchError, match=r"t\.pth"):
            _load(tmp_path / "t.pth")


class TestTrained:
    """Files of `her2cache pretrain`."""

    @pytest.mark.parametrize("task", ["pcam", "ihc"])
    def test_the_trunk_of_the_whole_network_normalised_as_it_was_trained(
        self, tmp_path: Path, network: Any, task: str
    ) -> None:
        path = trained(tmp_path / "w.safetensors", task)
        trunk = load_recipe(f"alexnet-{task}={path}", 96)
        assert (trunk.spec.name, trunk.spec.dim, trunk.source) == (f"alexnet-{task}", 1024, str(path))
        assert (trunk.spec.mean, trunk.spec.std) == ((0.7, 0.5, 0.6), (0.2, 0.25, 0.15))
        assert trunk.card == card(task)
        stored = {name.removeprefix("features."): v for name, v in safetensors.torch.load_file(path).items()}
        patches = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), np.uint8)
        features = copy.deepcopy(network.features)
        features.load_state_dict(stored, strict=False)  # beside them is the classifier
        with torch.no_grad():
            x = (torch.from_numpy(patches) / 255 - torch.tensor(trunk.spec.mean)) / torch.tensor(trunk.spec.std)
            expected = features(x.permute(0, 3, 1, 2)).flatten(1).numpy()
        assert np.abs(trunk.build(Batching(batch=4)).embed(patches) - expected).max() < 1e-5

    def test_the_key_follows_the_tensors_and_not_the_file(self, tmp_path: Path) -> None:
        def key(path: Path) -> str:
            return FeatureSpace(PatchSpec(), preset("HE"), load_recipe(f"alexnet-pcam={path}", 96).spec).key

        first = trained(tmp_path / "a.safetensors", "pcam")
        (tmp_path / "b.safetensors").write_bytes(first.read_bytes())
        again = trained(tmp_path / "c.safetensors", "pcam", metrics={"auc_roc": 0.5})
        other = trained(tmp_path / "d.safetensors", "pcam", seed=1)
        brighter = trained(tmp_path / "e.safetensors", "pcam", mean=(0.8, 0.5, 0.6))
        assert key(first) == key(tmp_path / "b.safetensors") == key(again)
        assert len({key(first), key(other), key(brighter)}) == 3

    @pytest.mark.parametrize("task", ["pcam", "ihc"])
    def test_without_a_file_it_says_how_to_get_one(self, task: str) -> None:
        with pytest.raises(EmbedderError, match=rf"her2cache pretrain {task} .*alexnet-{task}=W.safetensors"):
            load_recipe(f"alexnet-{task}", 96)

    def test_of_another_task(self, tmp_path: Path) -> None:
        path = trained(tmp_path / "w.safetensors", "ihc")
        with pytest.raises(WeightsMismatchError, match=r"source task 'ihc', not 'pcam'; ask for alexnet-ihc="):
            load_recipe(f"alexnet-pcam={path}", 96)
        with pytest.raises(WeightsMismatchError, match=r"not 'imagenet'; ask for alexnet-ihc="):
            load_recipe(f"alexnet-imagenet={path}", 96)

    def test_of_another_network(self, tmp_path: Path) -> None:
        path = trained(tmp_path / "w.safetensors", "pcam", architecture="resnet18")
        with pytest.raises(WeightsMismatchError, match="weights of resnet18, not of alexnet"):
            load_recipe(f"alexnet-pcam={path}", 96)
        write_weights(path, {"fc.weight": np.zeros((2, 4), np.float32)}, card("pcam"))
        with pytest.raises(WeightsMismatchError, match="does not hold an AlexNet trunk"):
            load_recipe(f"alexnet-pcam={path}", 96)

    def test_that_says_nothing_of_itself(self, tmp_path: Path, state: dict[str, Tensor]) -> None:
        safetensors.torch.save_file(state, tmp_path / "w.safetensors")
        torch.save(state, tmp_path / "w.pth")
        for name in ("w.safetensors", "w.pth"):
            with pytest.raises(WeightsMismatchError, match="does not say what it was trained for"):
                load_recipe(f"alexnet-pcam={tmp_path / name}", 96)

    def test_truncated(self, tmp_path: Path) -> None:
        path = trained(tmp_path / "w.safetensors", "pcam")
        content = path.read_bytes()
        for size in (0, 7, 100, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:size])
            with pytest.raises(WeightsMismatchError, match=r"w\.safetensors"):
                load_recipe(f"alexnet-pcam={path}", 96)

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    @pytest.mark.parametrize("request_", ["alexnet-pcam", "alexnet-imagenet", "torchvision:resnet18"])
    def test_no_code_of_a_pickle_runs(self, tmp_path: Path, suffix: str, request_: str) -> None:
        witness, path = tmp_path / "ran", tmp_path / f"w{suffix}"

        class Attack:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (witness,)

        for write in (lambda: torch.save({"a": Attack()}, path), lambda: path.write_bytes(pickle.dumps(Attack()))):
            write()
            with pytest.raises(WeightsMismatchError):
                load_recipe(f"{request_}={path}", 96)
            assert not witness.exists()
        pickle.loads(path.read_bytes())
        assert witness.exists()  # it would have


class TestRequests:
    def test_unknown_lists_the_known(self) -> None:
        with pytest.raises(EmbedderError) as caught:
            load_recipe("resnet50", 96)
        assert "'resnet50'" in str(caught.value)
        assert all(name in str(caught.value) for name in NAMES)
        assert NAMES == ("alexnet-random", "alexnet-imagenet", "alexnet-pcam", "alexnet-ihc")
        assert "torchvision:resnet50 is torchvision's" in str(caught.value)

    @pytest.mark.parametrize("patch_px", [1, 62])
    def test_patches_too_small(self, patch_px: int) -> None:
        with pytest.raises(EmbedderError, match=r"at least 63 px.*--patch-px"):
            load_recipe("alexnet-random", patch_px)

    def test_random_takes_no_file(self) -> None:
        with pytest.raises(EmbedderError, match="takes no weights file"):
            load_recipe("alexnet-random=weights.pth", 96)

    def test_offline_without_the_weights(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        for weights in ("", "=torchvision AlexNet_Weights.IMAGENET1K_V1"):  # as a store keeps where they came from
            with pytest.raises(EmbedderError, match="downloads are off; give a file"):
                load_recipe(f"alexnet-imagenet{weights}", 96, offline=True)

    def test_random_is_reproducible(self, untrained: Recipe) -> None:
        first = untrained
        torch.manual_seed(2)
        second = load_recipe("alexnet-random", 64)
        assert first.spec.weights_sha256 == second.spec.weights_sha256
        # torchvision 0.29, seed 0; another value is another feature space under the same name
        assert first.spec.weights_sha256 == "94a2f6d5452d1a12e361abf7f2f1caa3ee15d85abd65434551f3a7771957cc5c"
        assert (first.spec.mean, first.spec.std) == ((0, 0, 0), (1, 1, 1))

    def test_seeds_of_the_untrained_trunk(self, untrained: Recipe) -> None:
        zero, three = untrained, load_recipe("alexnet-random=3", 96)
        assert three.spec.name == "alexnet-random-s3"
        assert three.spec.weights_sha256 != zero.spec.weights_sha256
        assert three.source is None
        for request in ("alexnet-random=-1", "alexnet-random=1.5"):
            with pytest.raises(EmbedderError, match="takes no weights file, but a seed"):
                load_recipe(request, 96)
        with pytest.raises(EmbedderError, match="is not known"):
            load_recipe("alexnet-random-s3=5", 96)

    @pytest.mark.slow
    def test_a_seed_by_its_other_name(self, untrained: Recipe) -> None:
        assert load_recipe("alexnet-random=0", 96).spec == untrained.spec
        three = load_recipe("alexnet-random=3", 96)
        assert load_recipe("alexnet-random-s3", 96).spec == three.spec  # as the store calls it, to embed more slides

    def test_the_generator_of_the_process_is_left_alone(self, tmp_path: Path, state: dict[str, Tensor]) -> None:
        torch.save(state, tmp_path / "t.pth")
        torch.manual_seed(123)
        before = torch.random.get_rng_state()
        load_recipe("alexnet-random", 64).build(Batching())
        _load(tmp_path / "t.pth").build(Batching())
        assert torch.equal(torch.random.get_rng_state(), before)


class TestFeatures:
    def test_side_of_the_output(self) -> None:
        """By the convolutions and pools of the network itself, on tensors without data."""
        with torch.device("meta"):
            features = alexnet(weights=None).features
            for px in range(63, 601):
                assert features(torch.empty(1, 3, px, px)).flatten(1).shape == (1, trunk_dim(px)), px

    @pytest.mark.parametrize(("px", "dim"), [(63, 256), (96, 1024), (224, 9216)])
    def test_length(self, trunk: Trunk, px: int, dim: int) -> None:
        trunk = load_trunk("alexnet-imagenet", str(trunk.source), px)
        assert trunk.spec.dim == dim
        patches = np.zeros((2, px, px, 3), np.uint8)
        assert trunk.build(Batching(batch=2)).embed(patches).shape == (2, dim)

    @pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 20])
    def test_equal_to_torchvision(self, network: Any, trunk: Trunk, n: int) -> None:
        patches = np.random.default_rng(n).integers(0, 256, (n, 64, 64, 3), np.uint8)
        found = trunk.build(Batching(batch=8)).embed(patches)
        assert found.dtype == np.float32
        mean, std = torch.tensor(trunk.spec.mean), torch.tensor(trunk.spec.std)
        with torch.no_grad():
            x = ((torch.from_numpy(patches) / 255 - mean) / std).permute(0, 3, 1, 2)
            expected = network.features(x).flatten(1).numpy() if n else np.empty((0, 256), np.float32)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max(initial=0) < 1e-5

    def test_rows_do_not_depend_on_neighbours_padding_or_position(self, trunk: Trunk) -> None:
        patches = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), np.uint8)
        embedder = trunk.build(Batching(batch=8))
        together = embedder.embed(patches)
        alone = np.concatenate([embedder.embed(patch[None]) for patch in patches])
        assert together.tobytes() == alone.tobytes()
        assert embedder.embed(patches[::-1])[::-1].tobytes() == together.tobytes()
        assert trunk.build(Batching(batch=8)).embed(patches).tobytes() == together.tobytes()

    def test_patches_are_left_as_they_are(self, trunk: Trunk) -> None:
        patches = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
        before = patches.copy()
        trunk.build(Batching(batch=8)).embed(patches)
        assert np.array_equal(patches, before)

    def test_a_trunk_travels(self, trunk: Trunk) -> None:
        sent = pickle.loads(pickle.dumps(trunk))
        assert sent.spec == trunk.spec
        patches = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
        first, second = (t.build(Batching(batch=8)).embed(patches) for t in (trunk, sent))
        assert first.tobytes() == second.tobytes()

    def test_it_is_frozen(self, trunk: Trunk) -> None:
        embedder = trunk.build(Batching())
        assert not any(p.requires_grad for p in embedder._network.parameters())
        embedder._network.load_state_dict({k: torch.zeros_like(v) for k, v in embedder._network.state_dict().items()})
        assert trunk.tensors["0.weight"].any()  # the embedder has tensors of its own
