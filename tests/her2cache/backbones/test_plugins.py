"""Third parties' embedders: found by their entry points, and what happens where they are not as they should be."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from her2cache.backbones.listing import _trunks, available
from her2cache.backbones.registry import load_recipe
from her2cache.errors import EmbedderError
from tests.embedders import THIRD_PARTY

Install = Callable[..., str]
_NUMBERS = itertools.count()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package of one module and one entry; gives the name of the embedder."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(code: str, name: str = "mine") -> str:
        module = f"third{next(_NUMBERS)}"  # modules stay imported
        (tmp_path / f"{module}.py").write_text(code)
        folder = tmp_path / f"{module}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {module}\nVersion: 1.0\nLicense: its own\n")
        (folder / "entry_points.txt").write_text(f"[her2cache.embedders]\n{name} = {module}:load\n")
        return name

    return install


_GOOD = """
from dataclasses import dataclass
from her2cache.embedder import EmbedderSpec
asked = []
@dataclass
class Recipe:
    spec: EmbedderSpec
    source: str
    card: None = None
    def build(self, batching): ...
def load(weights, patch_px, offline):
    asked.append((weights, patch_px, offline))
    return Recipe(EmbedderSpec("mine", 7, patch_px, (0.0,) * 3, (1.0,) * 3, "abc"), weights)
"""


def test_what_is_asked_for_reaches_it(install: Install) -> None:
    name = install(_GOOD)
    recipe = load_recipe(f"{name}=large=2", 128, offline=True)
    assert (recipe.spec.dim, recipe.spec.input_px, recipe.source) == (7, 128, "large=2")
    (listing,) = [one for one in available() if one.name == name]
    assert (listing.dim, listing.input_px, listing.licence, listing.usable) == (7, 96, "its own", True)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        pytest.param("load = 5", "TypeError", marks=pytest.mark.slow),
        pytest.param("def load(*_): return 5", "gave no recipe: spec, source, card, build", marks=pytest.mark.slow),
        (_GOOD.replace('"mine"', '"another"'), "calls itself 'another'"),
        ("from her2cache.errors import EmbedderError\ndef load(*_): raise EmbedderError('ask its author')", "ask its"),
    ],
)
def test_one_that_is_broken(install: Install, code: str, reason: str) -> None:
    name = install(code)
    with pytest.raises(EmbedderError, match=reason):
        load_recipe(name, 96)
    (listing,) = [one for one in available() if one.name == name]
    assert not listing.usable
    assert reason in listing.why


def test_two_packages_of_one_name(install: Install) -> None:
    install(_GOOD)
    install(_GOOD)
    with pytest.raises(EmbedderError, match=r"'mine' is in two packages, third\d+ and third\d+"):
        load_recipe("mine", 96)
    assert "in two packages" in available()[-1].why


def test_an_unknown_name_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(THIRD_PARTY))
    with pytest.raises(EmbedderError, match="colour-moments"):
        load_recipe("colour-moment", 96)
    with pytest.raises(EmbedderError, match="has no weights"):
        load_recipe("colour-moments=x", 96)


def test_the_list_without_and_with_every_network() -> None:
    short = {one.name: one for one in available(96)}
    assert {"alexnet-random", "alexnet-imagenet", "alexnet-pcam", "alexnet-ihc", "torchvision:NAME"} <= short.keys()
    assert (short["alexnet-random"].dim, short["alexnet-random"].usable) == (1024, True)
    assert not short["alexnet-pcam"].usable
    assert "her2cache pretrain pcam" in short["alexnet-pcam"].why
    tiny = {one.name: one for one in _trunks(32)}
    assert not tiny["alexnet-random"].usable
    assert "at least 63 px" in tiny["alexnet-random"].why
    assert next(_trunks(224)).dim == 9216


@pytest.mark.slow
def test_the_list_of_all() -> None:
    found = {one.name: one for one in available(96, every=True)}
    assert len(found) > 1000
    assert (found["torchvision:resnet50"].dim, found["torchvision:resnet50"].input_px) == (2048, 224)
    assert found["torchvision:vit_h_14"].licence == "CC BY-NC 4.0 (SWAG)"
    assert found["timm:resnet18.a1_in1k"].licence == "apache-2.0"
