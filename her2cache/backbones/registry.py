"""Every embedder by its name."""

from __future__ import annotations

from her2cache.backbones import alexnet, hub, plugins, pooled
from her2cache.embedder import Recipe
from her2cache.errors import EmbedderError


def load_recipe(request: str, patch_px: int, *, offline: bool = False) -> Recipe:
    """The embedder behind `NAME` or `NAME=WEIGHTS`.

    Args:
        request: as on the command line. `alexnet-random=3` and `alexnet-random-s3` are both the untrained trunk of
            seed 3, whose name is the latter.
        patch_px: side of the patches it will be given.
        offline: never try a download.

    Raises:
        EmbedderError: the name is unknown, or the weights cannot be had.
        WeightsMismatchError: the file is not of that embedder.
    """
    name, _, weights = request.partition("=")
    if alexnet.is_trunk(name, weights):
        return alexnet.load_trunk(name, weights, patch_px, offline=offline)
    if name.startswith(pooled.PREFIX):
        return pooled.load_pooled(name.removeprefix(pooled.PREFIX), weights, patch_px, offline=offline)
    if name.startswith(hub.PREFIX):
        return hub.load_timm(name.removeprefix(hub.PREFIX), weights, patch_px, offline=offline)
    others = plugins.plugins()
    if name in others:
        return plugins.load_plugin(others[name], weights, patch_px, offline=offline)
    known = ", ".join([*alexnet.NAMES, f"{pooled.PREFIX}NAME", f"{hub.PREFIX}NAME", *others])
    meant = f"; {pooled.PREFIX}{name} is torchvision's" if name in pooled.names() else ""
    raise EmbedderError(
        f"embedder {name!r} is not known; this version has {known} (as NAME, or NAME=WEIGHTS_FILE){meant};"
        " see `her2cache embedders`"
    )
