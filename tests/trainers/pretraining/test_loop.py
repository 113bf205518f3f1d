"""Training an AlexNet: what it writes, when it ends, and that a kill changes no bit."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from torchvision.models import alexnet

from her2cache.errors import ConfigError, TrainingError, WeightsMismatchError
from her2cache.weights import read_weights
from tests.processes import eventually
from trainers.pretraining.checkpoint import checkpoint_of, save
from trainers.pretraining.loop import PretrainEpoch, PretrainSettings, pretrain, training_digest
from trainers.pretraining.network import build
from trainers.pretraining.patches import SourceData
from trainers.pretraining.stored import StoredPatches

SETTINGS = PretrainSettings(epochs=9, patience=1, batch=8, learning_rate=1e-3, augment=False, seed=5)


pytestmark = pytest.mark.usefixtures("torch_threads")


def patches(n: int, seed: int, *, swapped: bool = False) -> StoredPatches:
    """Noise, brighter where the label is 1; or the other way round."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    shown = 1 - labels if swapped else labels
    x = rng.normal(110 + 40 * shown[:, None, None, None], 30, (n, 64, 64, 3)).clip(0, 255).astype(np.uint8)
    return StoredPatches(labels, partial(nullcontext, x))


def source(*, swapped: bool = False, digest: str = "d") -> SourceData:
    """A task that is soon learned; `swapped` has a validation loss that only rises."""
    train, valid, test = patches(20, 1), patches(12, 2, swapped=swapped), patches(16, 3)
    return SourceData("pcam", ("dark", "bright"), 0.97, 64, digest, train, valid, test, case_ids=("c1", "c2"))


class Touch:
    """A pickle that makes a file of its own accord."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[PretrainEpoch]]:
    """A training that nothing disturbed, whose best epoch is its first."""
    out = tmp_path_factory.mktemp("trained") / "w.safetensors"
    return out, list(pretrain(source(swapped=True), SETTINGS, out))


class TestWeights:
    def test_the_best_epoch_is_written_and_nothing_else(self, trained: tuple[Path, list[PretrainEpoch]]) -> None:
        out, epochs = trained
        assert [e.epoch for e in epochs] == list(range(1, len(epochs) + 1))
        losses = [e.val_loss for e in epochs]
        assert [e.best for e in epochs] == [loss < min([np.inf, *losses[:k]]) for k, loss in enumerate(losses)]
        assert [e.best for e in epochs[-2:]] == [True, False], "patience of 1 ends a training after the first lapse"
        assert len(epochs) < SETTINGS.epochs
        assert all(e.patches_per_second > 0 for e in epochs)
        assert list(out.parent.iterdir()) == [out]
        _, card = read_weights(out)
        assert card is not None
        assert card.settings["best_epoch"] == losses.index(min(losses)) + 1

    def test_the_card_says_what_it_is(self, trained: tuple[Path, list[PretrainEpoch]]) -> None:
        _, card = read_weights(trained[0])
        assert card is not None
        assert (card.architecture, card.source_task, card.classes) == ("alexnet", "pcam", ("dark", "bright"))
        assert (card.source_mpp, card.input_px, card.data_digest, card.case_ids) == (0.97, 64, "d", ("c1", "c2"))
        ((pixels, _),) = source().train.ordered()
        assert card.mean == pytest.approx((pixels / 255).mean(axis=(0, 1, 2)))
        assert card.std == pytest.approx((pixels / 255).std(axis=(0, 1, 2)))
        assert card.settings["learning_rate"] == SETTINGS.learning_rate
        assert card.settings["init"] == "random"
        assert card.version

    def test_whoever_reads_the_file_gets_its_metrics(self, trained: tuple[Path, list[PretrainEpoch]]) -> None:
        tensors, card = read_weights(trained[0])
        assert card is not None
        network = alexnet(weights=None, num_classes=2).eval()
        network.load_state_dict({name: torch.from_numpy(t) for name, t in tensors.items()})
        ((pixels, labels),) = source().test.ordered()
        x = ((pixels / 255 - card.mean) / card.std).astype(np.float32).transpose(0, 3, 1, 2)
        with torch.inference_mode():
            p = network(torch.from_numpy(x)).softmax(dim=1).numpy()
        assert card.metrics == pytest.approx(
            {
                "accuracy": accuracy_score(labels, p.argmax(axis=1)),
                "balanced_accuracy": balanced_accuracy_score(labels, p.argmax(axis=1)),
                "auc_roc": roc_auc_score(labels, p[:, 1]),
                "n": 16,
            }
        )

    @pytest.mark.slow
    def test_it_learns(self, tmp_path: Path) -> None:
        out = tmp_path / "w.safetensors"
        epochs = list(pretrain(source(), replace(SETTINGS, epochs=6, patience=0, learning_rate=3e-4), out))
        _, card = read_weights(out)
        assert card is not None
        assert epochs[-1].train_loss < 0.5 * epochs[0].train_loss
        assert card.metrics["auc_roc"] > 0.9


class TestResume:
    @pytest.mark.slow
    def test_a_training_that_was_stopped_equals_one_that_was_not(
        self, trained: tuple[Path, list[PretrainEpoch]], tmp_path: Path
    ) -> None:
        out, random_state = tmp_path / "w.safetensors", torch.random.get_rng_state()
        first = pretrain(source(swapped=True), SETTINGS, out, save_every=0)
        begun = [next(first)]
        first.close()  # pyright: ignore[reportAttributeAccessIssue]
        assert checkpoint_of(out).exists()
        assert not out.exists()
        rest = list(pretrain(source(swapped=True), SETTINGS, out))
        assert [replace(e, patches_per_second=0) for e in begun + rest] == [
            replace(e, patches_per_second=0) for e in trained[1]
        ]
        assert digest_of(out) == digest_of(trained[0])
        assert list(tmp_path.iterdir()) == [out]
        assert torch.equal(torch.random.get_rng_state(), random_state), "the process's own generator was used"

    def test_another_training_s_checkpoint_is_refused(self, tmp_path: Path) -> None:
        out, data = tmp_path / "w.safetensors", source()
        path = checkpoint_of(out)
        for other, settings, init in (
            (source(digest="e"), SETTINGS, None),
            (data, replace(SETTINGS, weight_decay=0.5), None),
            (data, SETTINGS, {"0.weight": np.zeros(3)}),
        ):
            save(path, training_digest(other, settings, init), {"epochs": []})
            with pytest.raises(ConfigError, match="checkpoint of another training"):
                next(pretrain(data, SETTINGS, out))
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(ConfigError, match="damaged"):
            next(pretrain(data, SETTINGS, out))

    def test_no_code_of_a_checkpoint_runs(self, tmp_path: Path) -> None:
        out, ran = tmp_path / "w.safetensors", tmp_path / "ran"
        torch.save({"training": Touch(ran)}, checkpoint_of(out))
        with pytest.raises(ConfigError, match="no epoch checkpoint"):
            next(pretrain(source(), SETTINGS, out))
        assert not ran.exists()

    @pytest.mark.slow
    def test_kill(self, tmp_path: Path) -> None:
        """kill -9 of a process in training, with augmentation, at the end of its second epoch or later."""
        killed, whole = tmp_path / "killed.safetensors", tmp_path / "whole.safetensors"
        code = (
            "import sys; from pathlib import Path; from tests.trainers.pretraining.test_loop import augmented\n"
            "for e in augmented(Path(sys.argv[1])): print(e.epoch, flush=True)"
        )
        command = [sys.executable, "-c", code]
        with subprocess.Popen([*command, str(killed)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(2)]
            assert lines == ["1\n", "2\n"]
            process.send_signal(signal.SIGKILL)
        assert eventually(checkpoint_of(killed).exists, 1)
        assert not killed.exists()
        for out in (killed, whole):
            subprocess.run([*command, str(out)], check=True)
        assert digest_of(killed) == digest_of(whole)


def augmented(out: Path) -> Iterator[PretrainEpoch]:
    return pretrain(source(), replace(SETTINGS, epochs=4, patience=0, augment=True), out, save_every=0, threads=2)


class TestEnd:
    def test_a_loss_that_is_no_number(self, tmp_path: Path) -> None:
        with pytest.raises(TrainingError, match="no longer finite in epoch 1: a learning rate of 1e\\+20"):
            list(pretrain(source(), replace(SETTINGS, learning_rate=1e20), tmp_path / "w.safetensors"))
        assert not list(tmp_path.iterdir())


class TestStart:
    def test_from_a_trunk(self, tmp_path: Path) -> None:
        out = tmp_path / "w.safetensors"
        with torch.random.fork_rng():
            torch.manual_seed(99)
            trunk = {name: t.numpy() for name, t in alexnet(weights=None).features.state_dict().items()}
        list(pretrain(source(), replace(SETTINGS, epochs=1, learning_rate=1e-12), out, init=trunk))
        tensors, card = read_weights(out)
        assert card is not None
        assert len(card.settings["init"]) == 64
        for name, value in trunk.items():
            assert np.allclose(tensors[f"features.{name}"], value, atol=1e-6)

    def test_the_seed_decides_where_there_is_no_trunk(self) -> None:
        first, again, other = (build(2, None, seed).features[0].weight for seed in (5, 5, 6))
        assert torch.equal(first, again)
        assert not torch.allclose(first, other, atol=0.01)

    def test_tensors_that_are_no_trunk(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsMismatchError, match="no trunk of an AlexNet"):
            next(pretrain(source(), SETTINGS, tmp_path / "w.safetensors", init={"0.weight": np.zeros((2, 2))}))

    @pytest.mark.parametrize(
        ("name", "value"), [("epochs", 0), ("patience", -1), ("batch", 0), ("learning_rate", 0.0), ("weight_decay", -1)]
    )
    def test_settings_that_make_no_sense(self, tmp_path: Path, name: str, value: float) -> None:
        with pytest.raises(ConfigError, match=name):
            next(pretrain(source(), replace(SETTINGS, **{name: value}), tmp_path / "w.safetensors"))

    def test_data_that_cannot_be_trained_on(self, tmp_path: Path) -> None:
        out = tmp_path / "w.safetensors"
        with pytest.raises(ConfigError, match="at least 63 px"):
            next(pretrain(replace(source(), px=32), SETTINGS, out))
        with pytest.raises(ConfigError, match="no patch to valid"):
            next(pretrain(replace(source(), valid=patches(0, 1)), SETTINGS, out))
        grey = StoredPatches(np.arange(4) % 2, partial(nullcontext, np.full((4, 64, 64, 3), 9, np.uint8)))
        with pytest.raises(TrainingError, match="show nothing"):
            next(pretrain(replace(source(), train=grey), SETTINGS, out))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_on_a_gpu(tmp_path: Path, precision: str) -> None:
    settings = replace(SETTINGS, epochs=8, patience=0, learning_rate=3e-4, augment=True, precision=precision)
    out = tmp_path / "w.safetensors"
    begun = pretrain(source(), settings, out, device="cuda", save_every=0)
    first = [next(begun), next(begun)]
    begun.close()  # pyright: ignore[reportAttributeAccessIssue]
    epochs = first + list(pretrain(source(), settings, out, device="cuda"))
    assert [e.epoch for e in epochs] == list(range(1, 9))
    tensors, card = read_weights(out)
    assert card is not None
    assert all(t.dtype == np.float32 for t in tensors.values())
    assert card.metrics["auc_roc"] > 0.9
