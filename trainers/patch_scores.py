"""What a trained attention-MIL model says of each patch, and the identity that turns it into bag scores.

The model pools `A = sum_k a_k v_k` with `a = softmax(s)` over the bag (paper eq. 1-2) and classifies
with one linear layer, so `W A + b = sum_k a_k (W v_k) + b`: the attention logit `s_k` and the class
contribution `z_k = W v_k` of each patch are all that any bag needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PatchScores:
    """Scores of the patches of one slide under one trained model.

    Attributes:
        attention_logit: s_k, float32 (patches,).
        contribution: z_k = W v_k, float32 (patches, classes).
        bias: b, float32 (classes,), added once after pooling.
    """

    attention_logit: NDArray[np.float32]
    contribution: NDArray[np.float32]
    bias: NDArray[np.float32]

    def attention(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Attention weights of bags.

        Args:
            rows: patch rows of each bag, (bags, size).

        Returns:
            softmax over each bag, float32 (bags, size).
        """
        s = self.attention_logit[rows]  # (bags, size)
        e = np.exp(s - s.max(axis=1, keepdims=True))  # (bags, size)
        return e / e.sum(axis=1, keepdims=True)

    def bag_logits(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Class logits of bags, float32 (bags, classes); `rows` as in `attention`."""
        a = self.attention(rows)  # (bags, size)
        return np.einsum("bk,bkc->bc", a, self.contribution[rows]) + self.bias  # (bags, classes)

    def bag_probabilities(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Class probabilities of bags, float32 (bags, classes); `rows` as in `attention`."""
        z = self.bag_logits(rows)  # (bags, classes)
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)
