"""How many configurations fit into the memory that a fit may use."""

from __future__ import annotations

from trainers.config import BagsSection, ModelSection
from trainers.feeds import PART_BAGS

_COPIES = 5  # of a run's parameters: the value, its gradient, Adam's two moments, the best epoch
_FLOAT = 4  # bytes


def run_bytes(dim: int, classes: int, model: ModelSection, bags: BagsSection, *, whole_batch: int | None = None) -> int:
    """Bytes that one more configuration in a stack takes.

    Args:
        dim: of the features.
        classes: of the task.
        model, bags: sections of the experiment.
        whole_batch: bags of a batch, for a device that works on all of them at once; None works on `PART_BAGS`.
    """
    hidden = model.attention_units * (2 if model.attention == "gated" else 1)
    parameters = (hidden + classes) * (dim + 1) + model.attention_units + 1
    instances = (whole_batch or PART_BAGS) * bags.size
    activations = (hidden + 3 * classes) * instances * (2 if model.attention == "gated" else 1)
    scores = bags.validation * bags.size * (1 + classes)  # of as many patches as the validation bags can hold
    return _FLOAT * (_COPIES * parameters + activations + scores)


def largest_stack(
    dim: int,
    classes: int,
    model: ModelSection,
    bags: BagsSection,
    *,
    budget: int,
    whole_batch: int | None = None,
) -> int:
    """Most configurations that train in lockstep within `budget` bytes, at least 1; see `run_bytes`."""
    return max(1, budget // run_bytes(dim, classes, model, bags, whole_batch=whole_batch))
