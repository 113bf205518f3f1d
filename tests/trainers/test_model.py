from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from her2cache.errors import TrainingError
from trainers.model import AttentionMIL, Origin, TrainedModel
from trainers.tasks import find_task

DIM, UNITS, CLASSES = 12, 7, 4
ORIGIN = Origin("run", "1a2b", "alexnet-imagenet", "digest", fold=2, epoch=5, task=find_task("four"))


@pytest.fixture(params=[False, True], ids=["tanh", "gated"])
def model(request: pytest.FixtureRequest) -> AttentionMIL:
    return AttentionMIL.seeded(DIM, CLASSES, UNITS, seed=1, gated=request.param)


@pytest.fixture
def bags() -> torch.Tensor:
    return torch.randn(6, 9, DIM, generator=torch.Generator().manual_seed(0))


def test_the_model_is_equations_1_and_2(model: AttentionMIL, bags: torch.Tensor) -> None:
    """In float64; gated attention multiplies by sigmoid(U v + c), equation 9 of Ilse et al. 2018."""
    w = {name: t.numpy() for name, t in model.double().state_dict().items()}
    expected = []
    for bag in bags.numpy().astype(np.float64):
        hidden = [np.tanh(w["hidden.weight"] @ v + w["hidden.bias"]) for v in bag]
        if model.gated:
            gates = [1 / (1 + np.exp(-(w["gate.weight"] @ v + w["gate.bias"]))) for v in bag]
            hidden = [h * g for h, g in zip(hidden, gates, strict=True)]
        e = np.exp([w["attention.weight"][0] @ h + w["attention.bias"][0] for h in hidden])
        a = e / e.sum()
        pooled = sum(a_k * v for a_k, v in zip(a, bag, strict=True))
        expected.append(w["classifier.weight"] @ pooled + w["classifier.bias"])
    with torch.no_grad():
        np.testing.assert_allclose(model(bags.double()).numpy(), np.array(expected), rtol=1e-12)


def test_the_order_of_instances_does_not_matter(model: AttentionMIL, bags: torch.Tensor) -> None:
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(bags[:, order]), model(bags))


def test_initial_weights_depend_on_the_seed_alone(model: AttentionMIL) -> None:
    before = torch.random.get_rng_state()
    again = AttentionMIL.seeded(DIM, CLASSES, UNITS, seed=1, gated=model.gated)
    other = AttentionMIL.seeded(DIM, CLASSES, UNITS, seed=2, gated=model.gated)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(again.hidden.weight, model.hidden.weight)
    assert not torch.equal(other.hidden.weight, model.hidden.weight)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_patch_scores_give_the_direct_forward_pass(model: AttentionMIL, dtype: type) -> None:
    features = np.random.default_rng(0).standard_normal((5000, DIM)).astype(dtype)
    rows = np.random.default_rng(1).integers(0, 5000, (40, 20))
    scores = TrainedModel(model, ORIGIN).patch_scores(features)
    with torch.no_grad():
        direct = model(torch.from_numpy(features.astype(np.float32)[rows]))
    np.testing.assert_allclose(scores.bag_logits(rows), direct.numpy(), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_comes_back_as_it_was(model: AttentionMIL, bags: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "run.safetensors"
    TrainedModel(model, ORIGIN).save(path)
    loaded = TrainedModel.load(path, space_key="1a2b")
    assert loaded.origin == ORIGIN
    with torch.no_grad():
        assert torch.equal(loaded.module(bags), model(bags))
    assert [p.name for p in path.parent.iterdir()] == ["run.safetensors"]


def test_a_checkpoint_of_another_space_is_refused(model: AttentionMIL, tmp_path: Path) -> None:
    TrainedModel(model, ORIGIN).save(tmp_path / "run.safetensors")
    with pytest.raises(TrainingError, match=r"trained in feature space 1a2b .* the features are of ffff"):
        TrainedModel.load(tmp_path / "run.safetensors", space_key="ffff")


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint at all"])
def test_what_is_no_checkpoint_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TrainingError, match="no checkpoint of a sweep"):
        TrainedModel.load(path)


def test_a_truncated_checkpoint_is_refused(model: AttentionMIL, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    TrainedModel(model, ORIGIN).save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(TrainingError, match="no checkpoint of a sweep"):
        TrainedModel.load(path)
