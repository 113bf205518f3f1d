"""What every verb says at its end: a line an item, or one JSON object, and an exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console

Status = Literal["done", "skipped", "failed"]

err = Console(stderr=True, highlight=False, soft_wrap=True)
# a pipe has no width of its own; tables need one
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)


@dataclass(frozen=True)
class Item:
    """One thing a verb worked on, and what became of it."""

    id: str
    status: Status
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """The result of a verb.

    Attributes:
        items: what was worked on.
        outputs: name -> path of each file or folder written.
        extra: further keys of the JSON object.
        summary: lines for a person, printed unless --json was given.
    """

    items: list[Item] = field(default_factory=list[Item])
    outputs: Mapping[str, str] = field(default_factory=dict[str, str])
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    summary: Iterable[Any] = ()

    @property
    def ok(self) -> bool:
        return all(item.status != "failed" for item in self.items)


def finish(outcome: Outcome, *, as_json: bool) -> int:
    """Prints an outcome and returns the exit code: 0 when all succeeded, 1 when some items failed."""
    if as_json:
        document = {
            "ok": outcome.ok,
            "items": [{"id": i.id, "status": i.status, "reason": i.reason} for i in outcome.items],
            "outputs": dict(outcome.outputs),
            **outcome.extra,
        }
        sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")
    else:
        for line in outcome.summary:
            out.print(line)
        for item in outcome.items:
            if item.status == "failed":
                err.print(f"[red]failed[/] {_plain(item.id)}: {_plain(item.reason)}")
    return 0 if outcome.ok else 1


def fail(message: str, *, as_json: bool) -> int:
    """Prints an error that ended a verb and returns its exit code, 2."""
    if as_json:
        sys.stdout.write(json.dumps({"ok": False, "items": [], "outputs": {}, "error": message}) + "\n")
    else:
        err.print(f"[red]error[/] {_plain(message)}")
    return 2


def count_of(n: int, noun: str) -> str:
    """A number and its noun: "1 slide", "1,200 slides"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("[", r"\[")
