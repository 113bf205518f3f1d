"""The stack against its reference: separate AttentionMIL modules, autograd, torch.optim.Adam."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainers.model import AttentionMIL
from trainers.stack import Configuration, Stack

DIM, UNITS, CLASSES, BAGS, SIZE = 12, 7, 3, 8, 5
GRID = [Configuration(lr, wd) for lr in (1e-2, 1e-3) for wd in (1e-1, 1e-4)]


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=[False, True], ids=["tanh", "gated"])
def gated(request: pytest.FixtureRequest) -> bool:
    return request.param


def seeded(gated: bool = False) -> AttentionMIL:
    return AttentionMIL.seeded(DIM, CLASSES, UNITS, seed=1, gated=gated)


def batches(n: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(BAGS, SIZE, DIM, generator=g), torch.randint(CLASSES, (BAGS,), generator=g)) for _ in range(n)]


def in_parts(v: Tensor, labels: Tensor, bags: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(v.split(bags), labels.split(bags), strict=True)


def train_alone(
    configuration: Configuration, data: list[tuple[Tensor, Tensor]], gated: bool = False
) -> tuple[AttentionMIL, list[float]]:
    model = seeded(gated)
    adam = torch.optim.Adam(model.parameters(), lr=configuration.learning_rate, weight_decay=configuration.weight_decay)
    losses = []
    for v, labels in data:
        adam.zero_grad()
        loss = cross_entropy(model(v), labels)
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return model, losses


def assert_same_model(stacked: AttentionMIL, alone: AttentionMIL, rtol: float, atol: float) -> None:
    expected = alone.state_dict()
    for name, value in stacked.state_dict().items():
        if name != "attention.bias":  # cancels in the softmax; autograd gives it rounding noise for a gradient
            torch.testing.assert_close(value, expected[name], rtol=rtol, atol=atol)


@pytest.mark.parametrize("part", [2, 8])
def test_a_stack_equals_separate_runs(dtype: torch.dtype, part: int, gated: bool) -> None:
    data = batches(25)
    stack = Stack(seeded(gated), GRID)
    losses = torch.stack([stack.train_batch(in_parts(v, y, part), BAGS) / BAGS for v, y in data])
    rtol, atol = (1e-9, 1e-10) if dtype == torch.float64 else (1e-3, 1e-4)
    for r, configuration in enumerate(GRID):
        alone, expected = train_alone(configuration, data, gated)
        torch.testing.assert_close(losses[:, r], torch.tensor(expected), rtol=rtol, atol=atol)
        assert_same_model(stack.model(r), alone, rtol, atol)
        v = data[0][0]
        torch.testing.assert_close(stack.model(r)(v), alone(v), rtol=rtol, atol=atol)


def test_weight_decay_alone_moves_the_attention_bias() -> None:
    model = seeded()
    start = model.attention.bias.item()
    stack = Stack(model, [Configuration(1e-2, 0.0), Configuration(1e-2, 1e-1)])
    for v, y in batches(5):
        stack.train_batch(in_parts(v, y, 8), BAGS)
    assert stack.model(0).attention.bias.item() == start
    assert abs(stack.model(1).attention.bias.item()) < abs(start)


def test_runs_that_stay_do_not_notice_the_others_leave(dtype: torch.dtype) -> None:
    data = batches(20)
    whole = Stack(seeded(), GRID)
    thinned = Stack(seeded(), GRID)
    for i, (v, y) in enumerate(data):
        if i == 10:
            thinned.keep([1, 3])
        whole.train_batch(in_parts(v, y, 8), BAGS)
        thinned.train_batch(in_parts(v, y, 8), BAGS)
    assert thinned.runs == 2
    rtol, atol = (1e-9, 1e-10) if dtype == torch.float64 else (1e-3, 1e-4)
    for kept, r in enumerate([1, 3]):
        assert_same_model(thinned.model(kept), whole.model(r), rtol, atol)


def test_a_run_that_overflows_does_not_touch_the_others() -> None:
    data = batches(6)
    healthy = Configuration(1e-2, 1e-4)
    stack = Stack(seeded(), [Configuration(float("inf"), 0.0), healthy])
    for v, y in data:
        loss = stack.train_batch(in_parts(v, y, 8), BAGS)
    assert loss.isfinite().tolist() == [False, True]
    assert_same_model(stack.model(1), train_alone(healthy, data)[0], 1e-3, 1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize(("precision", "rtol", "atol"), [("highest", 1e-3, 1e-4), ("high", 3e-2, 3e-3)])
def test_on_a_gpu_a_stack_equals_separate_runs_on_the_processor(
    precision: str, rtol: float, atol: float, gated: bool
) -> None:
    torch.set_float32_matmul_precision(precision)
    try:
        data = batches(25)
        stack = Stack(seeded(gated), GRID, "cuda")
        losses = torch.stack([stack.train_batch([(v.cuda(), y.cuda())], BAGS) / BAGS for v, y in data]).cpu()
    finally:
        torch.set_float32_matmul_precision("highest")
    for r, configuration in enumerate(GRID):
        alone, expected = train_alone(configuration, data, gated)
        torch.testing.assert_close(losses[:, r], torch.tensor(expected), rtol=rtol, atol=atol)
        assert_same_model(stack.model(r), alone, rtol, atol)


def test_a_stack_goes_on_from_its_state_to_the_same_bits(gated: bool) -> None:
    data = batches(20)
    whole = Stack(seeded(gated), GRID)
    for i, (v, y) in enumerate(data):
        if i == 8:
            whole.keep([0, 3])
        if i == 12:
            state = {name: t.clone() for name, t in whole.state().items()}
        whole.train_batch(in_parts(v, y, 4), BAGS)
    resumed = Stack(seeded(gated), [GRID[0], GRID[3]])
    resumed.restore(state)
    for v, y in data[12:]:
        resumed.train_batch(in_parts(v, y, 4), BAGS)
    for name, value in whole.state().items():
        assert torch.equal(value, resumed.state()[name]), name


def test_a_larger_block_does_not_disturb_a_smaller_one() -> None:
    """Both use the same buffer."""
    v = torch.randn(40, DIM, generator=torch.Generator().manual_seed(3))
    stack = Stack(seeded(), GRID)
    small, _ = stack.score([v[:5]])
    stack.score([v])
    again, _ = stack.score([v[:5]])
    assert torch.equal(small, again)


def test_patch_scores_are_those_of_each_model() -> None:
    v = torch.randn(11, DIM, generator=torch.Generator().manual_seed(3))
    stack = Stack(seeded(), GRID)
    for x, y in batches(3):
        stack.train_batch(in_parts(x, y, 8), BAGS)
    scores = stack.patch_scores(v.split(4))
    for r in range(len(GRID)):
        model = stack.model(r)
        with torch.no_grad():
            s, z = model.attention_logits(v), v @ model.classifier.weight.T
        torch.testing.assert_close(torch.from_numpy(scores[r].attention_logit), s)
        torch.testing.assert_close(torch.from_numpy(scores[r].contribution), z)
        torch.testing.assert_close(torch.from_numpy(scores[r].bias), model.classifier.bias.detach())
