"""Events of jobs as JSON lines: one object a line, with time, level, event, job, node and pid.

The driver writes them all, those of its actors as well, of which it hears with their results. So one file tells of a
whole cluster, and nothing is to be collected.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from her2cache.errors import ConfigError

Level = Literal["info", "warning", "error"]

LOG_FILE: ContextVar[Path | None] = ContextVar("LOG_FILE", default=None)
"""Where jobs that are begun in this context write their events; None for nowhere."""

_USER_INFO = re.compile(r"(?<=://)[^/\s@]+@")
_SIGNED = re.compile(r"(?i)\b(X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig)=[^&\s]+")
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_SHORTEST_SECRET = 8


def mask(text: str) -> str:
    """A text without what opens somebody's storage: users in URLs, signatures, keys of this process's environment."""
    text = _SIGNED.sub(r"\1=***", _USER_INFO.sub("***@", text))
    for name in _SECRETS:
        secret = os.environ.get(name, "")
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return text


def line_of(event: dict[str, Any]) -> str:
    """An event as a line of plain ASCII: nothing in it can end the line or steer a terminal."""
    return json.dumps({key: _masked(value) for key, value in event.items()}).replace("\x7f", "\\u007f")


def _masked(value: Any) -> Any:
    return mask(value) if isinstance(value, str) else value


class EventLog:
    """A file that events are appended to; several jobs may share one, as every line is one write.

    Args:
        path: of the file; None writes nothing.

    Raises:
        ConfigError: it cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._lock, self._file = path, Lock(), -1
        if path is not None:
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            except OSError as error:
                raise ConfigError(f"--log-file {path} cannot be written ({error.strerror}): give another") from error

    def write(self, event: str, level: Level = "info", **facts: Any) -> None:
        """Appends an event. A disk that is full ends the log with a warning, not the job."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._lock:
            if self._file < 0:
                return
            try:
                line = line_of({"time": now, "level": level, "event": event, **facts})
                os.write(self._file, f"{line}\n".encode("ascii"))
            except OSError as error:
                self._end()
                warnings.warn(f"no more events are written to {self._path}: {error.strerror}", stacklevel=2)

    def close(self) -> None:
        """Ends the log; later events are dropped."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
