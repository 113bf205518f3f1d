"""Embedders of third parties, by the entry-point group `her2cache.embedders`.

An entry is a callable `(weights: str, patch_px: int, offline: bool) -> Recipe` under the name that people ask for:
`weights` is what follows "=" in NAME=WEIGHTS, or "". It raises `EmbedderError` where the embedder cannot be had. Around
a network of torch a recipe is a `network.NetworkRecipe`; anything else is a class with the few attributes of
`embedder.Recipe`, which can be imported wherever it is built.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from her2cache.embedder import EmbedderSpec, Recipe
from her2cache.errors import EmbedderError

GROUP = "her2cache.embedders"


def plugins() -> dict[str, EntryPoint]:
    """Entries by name.

    Raises:
        EmbedderError: two packages have one name for different embedders.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise EmbedderError(
                f"embedder {entry.name!r} is in two packages, {package_of(other)} and {package_of(entry)}; uninstall"
                " one of them"
            )
    return found


def package_of(entry: EntryPoint) -> str:
    """The name of the package that an entry is of."""
    return entry.dist.name if entry.dist is not None else entry.module


def load_plugin(entry: EntryPoint, weights: str, patch_px: int, *, offline: bool = False) -> Recipe:
    """The recipe that an entry gives.

    Raises:
        EmbedderError: it gives none, or one that is not what it should be.
    """
    where = f"embedder {entry.name} of the package {package_of(entry)}"
    try:
        recipe: Any = entry.load()(weights, patch_px, offline)
    except EmbedderError:
        raise
    except Exception as error:  # another's code
        raise EmbedderError(
            f"{where} cannot be loaded ({type(error).__name__}: {error}); that is for its authors to mend"
        ) from error
    spec = getattr(recipe, "spec", None)
    missing = [name for name in ("spec", "source", "card", "build") if not hasattr(recipe, name)]
    if missing or not isinstance(spec, EmbedderSpec):
        raise EmbedderError(
            f"{where} gave no recipe: {', '.join(missing) or 'its spec'} is not as in her2cache.embedder"
        )
    if spec.name != entry.name:
        raise EmbedderError(
            f"{where} calls itself {spec.name!r}: a store could not find it again; that is for its authors to mend"
        )
    return recipe
