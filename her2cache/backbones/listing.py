"""Which embedders there are, and which of them can be used here and now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, metadata

from torchvision.models import AlexNet_Weights, WeightsEnum

from her2cache.backbones import alexnet, hub, plugins, pooled
from her2cache.backbones.download import cached, damage
from her2cache.embedder import RANDOM
from her2cache.errors import EmbedderError

_IMAGENET_TERMS = "ImageNet's terms"
_SWAG_TERMS = "CC BY-NC 4.0 (SWAG)"


@dataclass(frozen=True)
class Listing:
    """An embedder, or a family of them, as far as this machine knows it.

    Attributes:
        name: to ask for.
        dim: length of its features; None where that is known once it is loaded.
        input_px: side of what its network sees; None for a family.
        licence: of its weights, as far as it is known. A note, no advice.
        usable: whether it can be used now, without a download and without a file to be given.
        why: why it cannot, and how it could; of a usable one, what there is to say.
    """

    name: str
    dim: int | None
    input_px: int | None
    licence: str
    usable: bool
    why: str = ""


def available(patch_px: int = 96, *, every: bool = False) -> list[Listing]:
    """The embedders of this machine.

    Args:
        patch_px: side of the patches they would be given.
        every: each network of torchvision and timm, too; otherwise those whose weights are here, and a line for all.
    """
    found = [*_trunks(patch_px), *_torchvision(every=every), *_timm(every=every)]
    try:
        entries = plugins.plugins()
    except EmbedderError as error:
        return [*found, Listing(plugins.GROUP, None, None, "", usable=False, why=str(error))]
    return [*found, *(_plugin(entry, patch_px) for entry in entries.values())]


def _trunks(patch_px: int) -> Iterator[Listing]:
    fits = patch_px >= alexnet.MIN_PX
    dim = alexnet.trunk_dim(patch_px) if fits else None
    too_small = "" if fits else f"takes patches of at least {alexnet.MIN_PX} px"
    yield Listing(RANDOM, dim, patch_px, "no weights", fits, too_small or f"{RANDOM}=SEED for another seed")
    why = too_small or _lacking(AlexNet_Weights.IMAGENET1K_V1, alexnet.IMAGENET)
    yield Listing(alexnet.IMAGENET, dim, patch_px, _IMAGENET_TERMS, not why, why)
    for name in alexnet.NAMES[2:]:
        why = f"needs a file: `her2cache pretrain {name.partition('-')[2]}`, then {name}=FILE"
        yield Listing(name, dim, patch_px, "yours", usable=False, why=too_small or why)


def _torchvision(*, every: bool) -> Iterator[Listing]:
    names = pooled.names()
    for name in names:
        weights = pooled.best_weights(name)
        if every or cached(weights) is not None:
            why = _lacking(weights, pooled.PREFIX + name)
            yield Listing(
                pooled.PREFIX + name,
                pooled.dim_of(name),
                pooled.own_resize(weights).crop,
                _SWAG_TERMS if "SWAG" in weights.name else _IMAGENET_TERMS,
                not why,
                why,
            )
    if not every:
        why = f"{len(names)} networks, weights come with the first use; --all lists them"
        yield Listing(f"{pooled.PREFIX}NAME", None, None, _IMAGENET_TERMS, usable=False, why=why)


def _lacking(weights: WeightsEnum, name: str) -> str:
    """Why torchvision's weights cannot be used at once; "" where they can."""
    file = cached(weights)
    if file is None:
        return f"weights come with the first use ({weights.meta['_file_size']:,.0f} MB); or {name}=FILE"
    return damage(file)


def _timm(*, every: bool) -> Iterator[Listing]:
    try:
        hub.require_timm()
    except EmbedderError as error:
        yield Listing(f"{hub.PREFIX}NAME", None, None, "", usable=False, why=str(error))
        return
    import timm
    from timm.models import get_pretrained_cfg

    names = timm.list_models(pretrained=True)
    for name in names:
        here = hub.is_cached(name)
        if (every or here) and (config := get_pretrained_cfg(name)) is not None:
            why = "" if here else f"weights come with the first use; or {hub.PREFIX}{name}=FILE"
            yield Listing(hub.PREFIX + name, None, config.input_size[-1], config.license or "not stated", here, why)
    if not every:
        why = f"{len(names):,} networks, weights come with the first use; --all lists them"
        yield Listing(f"{hub.PREFIX}NAME", None, None, "each its own", usable=False, why=why)
        why = "any network on the Hugging Face hub that timm can make"
        yield Listing(f"{hub.PREFIX}hf-hub:ORG/NAME", None, None, "each its own", usable=False, why=why)


def _plugin(entry: EntryPoint, patch_px: int) -> Listing:
    """A third party's; it is loaded to see whether it can be."""
    package = plugins.package_of(entry)
    try:
        stated = metadata(package)
        said = [stated[key] for key in ("License-Expression", "License") if key in stated]
    except PackageNotFoundError:
        said = []
    licence = said[0] if said else "not stated"
    try:
        spec = plugins.load_plugin(entry, "", patch_px, offline=True).spec
    except EmbedderError as error:
        return Listing(entry.name, None, None, licence, usable=False, why=str(error))
    return Listing(entry.name, spec.dim, spec.input_px, licence, usable=True, why=f"from the package {package}")
