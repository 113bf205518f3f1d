"""Every error of ours travels between Ray processes as it is: class and message."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator

import pytest

from her2cache import errors
from her2cache.errors import Her2CacheError


def _family(root: type[Her2CacheError]) -> Iterator[type[Her2CacheError]]:
    yield root
    for child in root.__subclasses__():
        yield from _family(child)


EVERY = sorted(set(_family(Her2CacheError)), key=lambda error: error.__name__)


@pytest.mark.parametrize("error", EVERY, ids=lambda error: error.__name__)
def test_survives_pickling_with_its_message(error: type[Her2CacheError]) -> None:
    copy = pickle.loads(pickle.dumps(error("the fact: the remedy")))
    assert type(copy) is error
    assert str(copy) == "the fact: the remedy"


@pytest.mark.parametrize("error", EVERY, ids=lambda error: error.__name__)
def test_takes_one_message_and_says_what_it_is_for(error: type[Her2CacheError]) -> None:
    assert "__init__" not in vars(error)
    assert error.__doc__


def test_there_is_one_tree() -> None:
    ours = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert ours == {error.__name__ for error in EVERY}
