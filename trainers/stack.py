"""R attention-MIL models trained in lockstep on one bag stream.

Classifying the pooled vector equals pooling the class contributions, `W (sum_k a_k v_k) = sum_k a_k W v_k`,
so all that the models need of a patch is one product with their first layers, stacked: W2 and W of every
run, `(runs * (units + classes), dim)`. A training step is that product, its weight gradient, and small
elementwise work in between. The gradient is written out by hand:

    s_k = w1 . tanh(W2 v_k + b2) + b1      z_k = W v_k      a = softmax(s)      y = sum_k a_k z_k + b
    g   = (softmax(y) - onehot) / bags     dL/dz_k = a_k g  dL/ds_k = a_k (g . z_k - g . sum_j a_j z_j)

`dL/ds` sums to zero over a bag: b1 cancels in the softmax, and only weight decay moves it. In dL/dW2 the
factor w1 depends on the unit alone, so it is applied once, to the finished product.
`trainers.model.AttentionMIL` with autograd and `torch.optim.Adam` is the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import one_hot

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
class _Parameters:
    """One value of each kind a parameter; every tensor leads with the runs."""

    first: Tensor  # W2 above W: (runs, units + classes, dim)
    b2: Tensor  # (runs, units)
    w1: Tensor  # (runs, units)
    b1: Tensor  # (runs, 1)
    b: Tensor  # (runs, classes)

    def tensors(self) -> list[Tensor]:
        return [getattr(self, f.name) for f in fields(self)]

    def zeros(self) -> _Parameters:
        return _Parameters(*(torch.zeros_like(t) for t in self.tensors()))

    def keep(self, runs: Tensor) -> _Parameters:
        return _Parameters(*(t[runs] for t in self.tensors()))


class Stack:
    """Models of one architecture and one initialisation, each with its own learning rate and weight decay.

    Args:
        model: the initial model of every run.
        configurations: one a run.
    """

    def __init__(self, model: AttentionMIL, configurations: Sequence[Configuration]) -> None:
        runs = len(configurations)
        state = {name: t.detach() for name, t in model.state_dict().items()}
        stacked = {name: t.expand(runs, *t.shape) for name, t in state.items()}
        self.units = model.hidden.out_features
        self.classes = model.classifier.out_features
        self._p = _Parameters(
            first=torch.cat([stacked["hidden.weight"], stacked["classifier.weight"]], dim=1),
            b2=stacked["hidden.bias"].clone(),
            w1=stacked["attention.weight"].squeeze(1).clone(),
            b1=stacked["attention.bias"].clone(),
            b=stacked["classifier.bias"].clone(),
        )
        self._gradient = self._p.zeros()
        self._mean, self._square = self._p.zeros(), self._p.zeros()  # Adam's moments
        dtype = self._p.first.dtype
        self._learning_rate = torch.tensor([c.learning_rate for c in configurations], dtype=dtype)
        self._weight_decay = torch.tensor([c.weight_decay for c in configurations], dtype=dtype)
        self._steps = 0
        self._product = torch.empty(0, dtype=dtype)

    @property
    def runs(self) -> int:
        return len(self._learning_rate)

    @property
    def dim(self) -> int:
        return self._p.first.shape[2]

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
        g.first[:, : self.units] *= self._p.w1.unsqueeze(2)
        g.b2 *= self._p.w1
        self._adam()
        return loss

    @torch.no_grad()
    def patch_scores(self, blocks: Iterable[Tensor]) -> list[PatchScores]:
        """Scores patches once under every run; blocks of features (rows, dim) -> one `PatchScores` a run."""
        logits: list[Tensor] = []
        contributions: list[Tensor] = []
        for v in blocks:
            hidden, z = self._first_layers(v)  # (runs, units, rows), (runs, classes, rows)
            logits.append((self._p.w1.unsqueeze(1) @ hidden).squeeze(1) + self._p.b1)  # (runs, rows)
            contributions.append(z.transpose(1, 2).contiguous())  # (runs, rows, classes)
        s, z = torch.cat(logits, dim=1).numpy(), torch.cat(contributions, dim=1).numpy()
        b = self._p.b.clone().numpy()
        return [PatchScores(s[r], z[r], b[r]) for r in range(self.runs)]

    @torch.no_grad()
    def model(self, run: int) -> AttentionMIL:
        """A copy of one run's model."""
        p = self._p
        model = AttentionMIL(self.dim, self.classes, self.units)
        state = {
            "hidden.weight": p.first[run, : self.units],
            "hidden.bias": p.b2[run],
            "attention.weight": p.w1[run].unsqueeze(0),
            "attention.bias": p.b1[run],
            "classifier.weight": p.first[run, self.units :],
            "classifier.bias": p.b[run],
        }
        model.load_state_dict({name: t.clone() for name, t in state.items()})
        return model.to(p.first.dtype)

    def keep(self, runs: Sequence[int]) -> None:
        """Drops all other runs; those kept go on exactly as they would have."""
        index = torch.tensor(runs, dtype=torch.int64)
        self._p, self._gradient = self._p.keep(index), self._gradient.keep(index)
        self._mean, self._square = self._mean.keep(index), self._square.keep(index)
        self._learning_rate, self._weight_decay = self._learning_rate[index], self._weight_decay[index]

    def _first_layers(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """tanh(W2 v + b2) and W v; (rows, dim) -> views (runs, units, rows), (runs, classes, rows) of one buffer."""
        width = self.runs * (self.units + self.classes)
        if self._product.shape != (width, len(v)):
            self._product = self._product.new_empty(width, len(v))
        # rows last: the hidden units of a run are then one contiguous block, which tanh takes twice as fast
        torch.mm(self._p.first.view(width, -1), v.T, out=self._product)
        both = self._product.view(self.runs, self.units + self.classes, len(v))
        hidden, z = both[:, : self.units], both[:, self.units :]
        hidden.add_(self._p.b2.unsqueeze(2)).tanh_()
        return hidden, z

    def _accumulate(self, v: Tensor, labels: Tensor, batch_bags: int) -> Tensor:
        """Adds the gradient of some bags, all but the factor w1, and returns their summed loss, (runs,)."""
        p, grad = self._p, self._gradient
        bags, size, dim = v.shape
        rows = v.view(bags * size, dim)  # (rows, dim)
        hidden, z = self._first_layers(rows)  # (runs, units, rows), (runs, classes, rows)
        z = z.view(self.runs, self.classes, bags, size)  # (runs, classes, bags, size)
        s = (p.w1.unsqueeze(1) @ hidden).view(self.runs, bags, size)  # (runs, bags, size); b1 cancels
        a = s.softmax(dim=2)  # (runs, bags, size)
        y = (a.unsqueeze(1) * z).sum(dim=3) + p.b.unsqueeze(2)  # (runs, classes, bags)
        log_p = y.log_softmax(dim=1)  # (runs, classes, bags)
        target = one_hot(labels, self.classes).T.to(y.dtype)  # (classes, bags)
        g = (log_p.exp() - target) / batch_bags  # (runs, classes, bags)

        gz = (g.unsqueeze(3) * z).sum(dim=1)  # (runs, bags, size)
        ds = a * (gz - (a * gz).sum(dim=2, keepdim=True))  # (runs, bags, size)
        ds = ds.view(self.runs, 1, bags * size)  # (runs, 1, rows)
        torch.mul(a.unsqueeze(1), g.unsqueeze(3), out=z)  # the buffer now holds dL/dz
        grad.w1.add_((hidden @ ds.transpose(1, 2)).squeeze(2))
        # ... and dL/d(W2 v + b2) / w1: tanh' = 1 - tanh^2, in one pass and in place
        torch.ops.aten.tanh_backward.grad_input(ds.expand_as(hidden), hidden, grad_input=hidden)
        grad.b2.add_(hidden.sum(dim=2))
        grad.b.add_(g.sum(dim=2))
        grad.first.view(-1, dim).addmm_(self._product, rows)
        return -(log_p * target).sum(dim=(1, 2))

    def _adam(self) -> None:
        """Kingma and Ba 2015, with L2 in the gradient: `torch.optim.Adam`, a rate and a decay for each run."""
        self._steps += 1
        step = self._learning_rate / (1 - BETA1**self._steps)  # (runs,)
        correction = (1 - BETA2**self._steps) ** 0.5
        rows = zip(*(x.tensors() for x in (self._p, self._gradient, self._mean, self._square)), strict=True)
        for p, g, mean, square in rows:
            per_run = (self.runs,) + (1,) * (p.dim() - 1)
            g.addcmul_(p, self._weight_decay.view(per_run))
            mean.lerp_(g, 1 - BETA1)
            square.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
            scale = square.sqrt().div_(correction).add_(EPS).div_(-step.view(per_run))
            p.addcdiv_(mean, scale)
