"""A process that ends itself where a decoder, or the storage under it, does not come back.

Python cannot interrupt native code. The watchdog of faulthandler is a thread that needs neither interpreter nor lock;
the job finds the process dead, and tries the slide again or gives it up, as after a crash.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from typing import TypeVar

from her2cache.errors import ConfigError

SILENCE = "HER2CACHE_SILENCE_S"
"""Names the variable of the environment that says how long a reader may take from one block to the next, seconds."""

SILENCE_S = 3600.0
"""The survey of a slide decodes a whole level, and its digest reads the whole file, perhaps over a slow network."""

_STDERR = 2  # of the process, whatever has taken the place of `sys.stderr`
_Item = TypeVar("_Item")


def in_time(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items. The process ends when one takes too long to come; how long they are kept does not matter."""
    seconds = silence()
    while True:
        faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)
        try:
            item = next(items)
        except StopIteration:
            return
        finally:
            faulthandler.cancel_dump_traceback_later()
        yield item


def silence() -> float:
    """How long a reader may take from one block to the next, seconds.

    Raises:
        ConfigError: the environment names no such time.
    """
    given = os.environ.get(SILENCE, SILENCE_S)
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ConfigError(f"{SILENCE} is {given!r}, which is no number of seconds; set it to 3600, or unset it")
    return seconds
