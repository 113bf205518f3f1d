"""What errors of a job say, for people and for the records of failures."""

from __future__ import annotations

import re

from her2cache.errors import Her2CacheError

_TRACEBACK_LINES = 20
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # Ray colours its tracebacks


def reason(error: BaseException) -> str:
    """What an error says; the name of one that we did not foresee says more than its message."""
    return str(error) if isinstance(error, Her2CacheError) else f"not expected: {type(error).__name__}: {error}"


def last_line(error: BaseException) -> str:
    """Of a traceback that Ray brought home: what was raised there."""
    lines = _COLOUR.sub("", str(error)).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def tail(traceback: str) -> str:
    """The last lines of a traceback that Ray brought home."""
    return "\n".join(_COLOUR.sub("", traceback).splitlines()[-_TRACEBACK_LINES:])
