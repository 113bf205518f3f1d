"""R attention-MIL models trained in lockstep on one bag stream.

Classifying the pooled vector equals pooling the class contributions, `W (sum_k a_k v_k) = sum_k a_k W v_k`,
so all that the models need of a patch is one product with their first layers, stacked: W2 and W of every
run, `(runs * (hidden + classes), dim)`. A training step is that product, its weight gradient, and small
elementwise work in between. The gradient is written out by hand:

    s_k = w1 . tanh(W2 v_k + b2) + b1      z_k = W v_k      a = softmax(s)      y = sum_k a_k z_k + b
    g   = (softmax(y) - onehot) / bags     dL/dz_k = a_k g  dL/ds_k = a_k (g . z_k - g . sum_j a_j z_j)

`dL/ds` sums to zero over a bag: b1 cancels in the softmax, and only weight decay moves it. In dL/dW2 the
factor w1 depends on the unit alone, so it is applied once, to the finished product. Gated attention (Ilse et al.
2018) has as many hidden rows again, U below W2, and `s_k = w1 . (tanh(W2 v_k + b2) * sigmoid(U v_k + c)) + b1`.
`trainers.model.AttentionMIL` with autograd and `torch.optim.Adam` is the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from trainers.model import AttentionMIL
from trainers.patch_scores import PatchScores

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # torch.optim.Adam's defaults


@dataclass(frozen=True)
class Configuration:
    """Hyperparameters of one run.

    Attributes:
        learning_rate: Adam's.
        weight_decay: L2 factor, added to the gradient of every parameter.
    """

    learning_rate: float
    weight_decay: float


@dataclass
class Parameters:
    """One value of each kind a parameter; every tensor leads with the runs.

    Attributes:
        first: W2, below it U where attention is gated, below them W: (runs, hidden + classes, dim).
        b2: biases of the hidden rows, (runs, hidden); `hidden` is the units, or twice them.
        w1: (runs, units).
        b1: (runs, 1).
        b: (runs, classes).
    """

    first: Tensor
    b2: Tensor
    w1: Tensor
    b1: Tensor
    b: Tensor

    @classmethod
    def repeated(cls, model: AttentionMIL, runs: int) -> Parameters:
        """The same parameters for every run."""
        one = {name: t.detach() for name, t in model.state_dict().items()}
        layers = ("hidden", "gate") if model.gated else ("hidden",)
        return cls(
            first=torch.cat([*(one[f"{layer}.weight"] for layer in layers), one["classifier.weight"]]).repeat(
                runs, 1, 1
            ),
            b2=torch.cat([one[f"{layer}.bias"] for layer in layers]).repeat(runs, 1),
            w1=one["attention.weight"].repeat(runs, 1),
            b1=one["attention.bias"].repeat(runs, 1),
            b=one["classifier.bias"].repeat(runs, 1),
        )

    @torch.no_grad()
    def model(self, run: int) -> AttentionMIL:
        """A copy of one run's model, in main memory."""
        units, (_, hidden) = self.w1.shape[1], self.b2.shape
        first, bias = self.first[run].cpu(), self.b2[run].cpu()
        model = AttentionMIL(self.first.shape[2], self.b.shape[1], units, gated=hidden > units)
        state = {
            "hidden.weight": first[:units],
            "hidden.bias": bias[:units],
            "attention.weight": self.w1[run].unsqueeze(0),
            "attention.bias": self.b1[run],
            "classifier.weight": first[hidden:],
            "classifier.bias": self.b[run],
        }
        if model.gated:
            state |= {"gate.weight": first[units:hidden], "gate.bias": bias[units:]}
        model.to(self.first.dtype).load_state_dict({name: t.clone() for name, t in state.items()})
        return model

    def named(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def tensors(self) -> list[Tensor]:
        return list(self.named().values())

    def zeros(self) -> Parameters:
        return Parameters(*(torch.zeros_like(t) for t in self.tensors()))

    def to(self, device: torch.device) -> Parameters:
        return Parameters(*(t.to(device) for t in self.tensors()))

    def keep(self, runs: Tensor) -> Parameters:
        return Parameters(*(t[runs] for t in self.tensors()))

    @torch.no_grad()
    def replace(self, runs: Sequence[int], source: Parameters, of: Sequence[int]) -> None:
        """Overwrites some runs with others of another set."""
        for mine, theirs in zip(self.tensors(), source.tensors(), strict=True):
            mine[list(runs)] = theirs[list(of)]


class Stack:
    """Models of one architecture and one initialisation, each with its own learning rate and weight decay.

    Args:
        model: the initial model of every run.
        configurations: one a run.
        device: where to train.
    """

    def __init__(
        self, model: AttentionMIL, configurations: Sequence[Configuration], device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.units, self.classes, self.gated = model.units, model.classes, model.gated
        self._hidden = self.units * (2 if self.gated else 1)
        self.parameters = Parameters.repeated(model, len(configurations)).to(self.device)
        self._gradient = self.parameters.zeros()
        self._mean, self._square = self.parameters.zeros(), self.parameters.zeros()  # Adam's moments
        dtype = self.parameters.first.dtype
        self._learning_rate = torch.tensor([c.learning_rate for c in configurations], dtype=dtype, device=self.device)
        self._weight_decay = torch.tensor([c.weight_decay for c in configurations], dtype=dtype, device=self.device)
        self._class_numbers = torch.arange(self.classes, device=self.device).unsqueeze(1)  # (classes, 1)
        self._steps = 0
        self._product = torch.empty(0, dtype=dtype, device=self.device)

    @property
    def runs(self) -> int:
        return len(self._learning_rate)

    @property
    def dim(self) -> int:
        return self.parameters.first.shape[2]

    @torch.no_grad()
    def train_batch(self, parts: Iterable[tuple[Tensor, Tensor]], bags: int) -> Tensor:
        """One optimiser step of every run.

        Args:
            parts: the batch in parts that fit the processor's cache, each (features (bags, size, dim), classes
                int64 (bags,)); a part may lie in a buffer that the next one reuses.
            bags: bags of the whole batch.

        Returns:
            Sum of the bags' cross-entropy before the step, (runs,).
        """
        g = self._gradient
        for t in g.tensors():
            t.zero_()
        loss = torch.zeros_like(self._learning_rate)  # (runs,)
        for v, labels in parts:
            loss += self._accumulate(v, labels, bags)
        w1 = self.parameters.w1.repeat(1, self._hidden // self.units)  # (runs, hidden)
        g.first[:, : self._hidden] *= w1.unsqueeze(2)
        g.b2 *= w1
        self._adam()
        return loss

    @torch.no_grad()
    def score(self, blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores patches once under every run.

        Args:
            blocks: features, (rows, dim) each.

        Returns:
            Attention logits (runs, patches) and class contributions (runs, patches, classes).
        """
        logits: list[Tensor] = []
        contributions: list[Tensor] = []
        for v in blocks:
            hidden, z = self._split(self._first_layers(v))  # (runs, hidden, rows), (runs, classes, rows)
            logits.append((self.parameters.w1.unsqueeze(1) @ self._gate(hidden)).squeeze(1) + self.parameters.b1)
            contributions.append(z.transpose(1, 2).contiguous())  # (runs, rows, classes)
        return torch.cat(logits, dim=1), torch.cat(contributions, dim=1)

    def patch_scores(self, blocks: Iterable[Tensor]) -> list[PatchScores]:
        """`score` as one `PatchScores` a run."""
        s, z = (t.cpu().numpy() for t in self.score(blocks))
        b = self.parameters.b.cpu().clone().numpy()
        return [PatchScores(s[r], z[r], b[r]) for r in range(self.runs)]

    def model(self, run: int) -> AttentionMIL:
        """A copy of one run's model."""
        return self.parameters.model(run)

    def keep(self, runs: Sequence[int]) -> None:
        """Drops all other runs; those kept go on exactly as they would have."""
        index = torch.tensor(runs, dtype=torch.int64, device=self.device)
        self.parameters, self._gradient = self.parameters.keep(index), self._gradient.keep(index)
        self._mean, self._square = self._mean.keep(index), self._square.keep(index)
        self._learning_rate, self._weight_decay = self._learning_rate[index], self._weight_decay[index]

    def state(self) -> dict[str, Tensor]:
        """Everything that training changes; `restore` goes on from it, to the same bits."""
        kinds = {"value": self.parameters, "mean": self._mean, "square": self._square}
        named = {f"{kind}.{name}": t for kind, p in kinds.items() for name, t in p.named().items()}
        return {**named, "steps": torch.tensor(self._steps)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes over the `state` of a stack of the same runs."""
        for kind, p in {"value": self.parameters, "mean": self._mean, "square": self._square}.items():
            for name, t in p.named().items():
                t.copy_(state[f"{kind}.{name}"])
        self._steps = int(state["steps"])

    def _first_layers(self, v: Tensor) -> Tensor:
        """Activated hidden rows above W v; (rows, dim) -> (runs, hidden + classes, rows), a buffer used again."""
        p, height = self.parameters, self._hidden + self.classes
        width = self.runs * height
        if self._product.numel() < width * len(v):
            self._product = self._product.new_empty(width * len(v))
        product = self._product[: width * len(v)].view(width, len(v))
        # rows last: the hidden units of a run are then one contiguous block, which tanh takes twice as fast
        torch.mm(p.first.view(width, -1), v.T, out=product)
        both = product.view(self.runs, height, len(v))
        hidden, _ = self._split(both)
        hidden.add_(p.b2.unsqueeze(2))
        hidden[:, : self.units].tanh_()
        if self.gated:
            hidden[:, self.units :].sigmoid_()
        return both

    def _split(self, both: Tensor) -> tuple[Tensor, Tensor]:
        return both[:, : self._hidden], both[:, self._hidden :]

    def _gate(self, hidden: Tensor) -> Tensor:
        """What w1 sees, (runs, units, rows): the hidden units, times their gates where there are any."""
        return hidden[:, : self.units] * hidden[:, self.units :] if self.gated else hidden

    def _accumulate(self, v: Tensor, labels: Tensor, batch_bags: int) -> Tensor:
        """Adds the gradient of some bags, all but the factor w1, and returns their summed loss, (runs,)."""
        p, grad = self.parameters, self._gradient
        bags, size, dim = v.shape
        rows = v.view(bags * size, dim)  # (rows, dim)
        both = self._first_layers(rows)  # (runs, hidden + classes, rows)
        hidden, z = self._split(both)
        z = z.view(self.runs, self.classes, bags, size)  # (runs, classes, bags, size)
        seen = self._gate(hidden)  # (runs, units, rows)
        s = (p.w1.unsqueeze(1) @ seen).view(self.runs, bags, size)  # (runs, bags, size); b1 cancels
        a = s.softmax(dim=2)  # (runs, bags, size)
        y = (a.unsqueeze(1) * z).sum(dim=3) + p.b.unsqueeze(2)  # (runs, classes, bags)
        log_p = y.log_softmax(dim=1)  # (runs, classes, bags)
        target = (labels == self._class_numbers).to(y.dtype)  # (classes, bags)
        g = (log_p.exp() - target) / batch_bags  # (runs, classes, bags)

        gz = (g.unsqueeze(3) * z).sum(dim=1)  # (runs, bags, size)
        ds = a * (gz - (a * gz).sum(dim=2, keepdim=True))  # (runs, bags, size)
        ds = ds.view(self.runs, 1, bags * size)  # (runs, 1, rows)
        torch.mul(a.unsqueeze(1), g.unsqueeze(3), out=z)  # the buffer now holds dL/dz
        grad.w1.add_((seen @ ds.transpose(1, 2)).squeeze(2))
        self._to_gradient(hidden, seen, ds)
        grad.b2.add_(hidden.sum(dim=2))
        grad.b.add_(g.sum(dim=2))
        grad.first.view(-1, dim).addmm_(both.view(-1, bags * size), rows)
        return -(log_p * target).sum(dim=(1, 2))

    def _to_gradient(self, hidden: Tensor, seen: Tensor, ds: Tensor) -> None:
        """Turns activations, in place, into dL/d(their argument) / w1; `ds` is dL/ds, (runs, 1, rows)."""
        if not self.gated:  # tanh' = 1 - tanh^2, in one pass
            torch.ops.aten.tanh_backward.grad_input(ds.expand_as(hidden), hidden, grad_input=hidden)
            return
        tanh, gate = hidden[:, : self.units], hidden[:, self.units :]
        tanh.mul_(seen).neg_().add_(gate).mul_(ds)  # gate (1 - tanh^2) = gate - tanh (tanh gate)
        gate.neg_().add_(1).mul_(seen).mul_(ds)  # tanh gate (1 - gate)

    def _adam(self) -> None:
        """Kingma and Ba 2015, with L2 in the gradient: `torch.optim.Adam`, a rate and a decay for each run."""
        self._steps += 1
        step = self._learning_rate / (1 - BETA1**self._steps)  # (runs,)
        correction = (1 - BETA2**self._steps) ** 0.5
        rows = zip(*(x.tensors() for x in (self.parameters, self._gradient, self._mean, self._square)), strict=True)
        for p, g, mean, square in rows:
            per_run = (self.runs,) + (1,) * (p.dim() - 1)
            g.addcmul_(p, self._weight_decay.view(per_run))
            mean.lerp_(g, 1 - BETA1)
            square.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
            scale = square.sqrt().div_(correction).add_(EPS).div_(-step.view(per_run))
            p.addcdiv_(mean, scale)
