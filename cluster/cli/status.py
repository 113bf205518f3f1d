"""`her2cache status`: which jobs run, how far they are, and what holds them up."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.bars import span
from cluster.cli.output import Item, Outcome, count_of
from cluster.cli.verb import verb

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from cluster.telemetry.notices import Found

_WATCH_S = 1.0
_REASON_LENGTH = 160


@click.command()
@click.option(
    "--address",
    default="local",
    show_default=True,
    help="local: your jobs on this machine. auto or HOST:PORT: those of that Ray cluster, from any of its nodes.",
)
@click.option("--watch", is_flag=True, help="Show it anew every second, until Ctrl-C; on a terminal.")
@verb
def status(address: str, watch: bool) -> Outcome:
    """Say which embed jobs, sweeps and pre-trainings run, how far they are, and what holds them up.

    Rates are of the last half minute. A stage that works all the time is what the others wait for.
    """
    from cluster.cli.output import out
    from cluster.telemetry.status import running_jobs

    if watch and out.is_terminal:
        _follow(address)
        return Outcome()
    found, silent = running_jobs(address)
    items = [Item(job.state["job"], "done") for job in found]
    items += [Item(job, "failed", "it does not answer: its machine is busy, or cut off") for job in silent]
    return Outcome(
        items=items,
        extra={"jobs": [job.state | {"age_s": round(job.age, 1)} for job in found]},
        summary=[render(found)] if found or not silent else [],
    )


def _follow(address: str) -> None:
    import time
    from contextlib import nullcontext, suppress

    from rich.live import Live

    from cluster.cli.output import out
    from cluster.resources import ray_session
    from cluster.telemetry.status import running_jobs

    def shown() -> RenderableType:
        return render(running_jobs(address)[0])

    joined = nullcontext() if address == "local" else ray_session(address)  # once for all looks
    with joined, suppress(KeyboardInterrupt), Live(shown(), console=out, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(_WATCH_S)
            live.update(shown(), refresh=True)


def render(found: list[Found]) -> RenderableType:
    """The jobs of a moment, for a person."""
    from rich.console import Group
    from rich.text import Text

    if not found:
        return Text("nothing is running")
    parts: list[RenderableType] = []
    for job in found:
        parts += [*([Text()] if parts else []), *_job(job)]
    return Group(*parts)


def _job(job: Found) -> list[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    from cluster.telemetry.status import SILENT_S

    state = job.state
    head = Text.assemble((state["job"], "bold"), f"  {_plain(state['about'])}")
    began = datetime.fromisoformat(state["since"])
    took = span((datetime.now(began.tzinfo) - began).total_seconds())
    where = [f"since {began.astimezone():%Y-%m-%d %H:%M}, {took}", f"{_plain(state['host'])}, process {state['pid']}"]
    where += [] if state["address"] == "local" else [f"Ray {_plain(state['address'])}"]
    lines: list[RenderableType] = [head, Text(f"  {' · '.join(where)}", style="dim")]
    if job.age > SILENT_S:
        lines.append(Text(f"  it has said nothing for {span(job.age)}: stopped, or its machine is too busy", "yellow"))
    tables = {"slides": _embed, "fits": _sweep, "training": _pretrain}
    parts = next((table(state) for key, table in tables.items() if key in state), [Text("starting ...", "dim")])
    lines += [Padding(part, (0, 0, 0, 2), expand=False) for part in parts]
    for failure in state.get("failures", []):
        name = failure.get("slide") or failure.get("fit")
        tried = f" ({count_of(failure['attempts'], 'attempt')})" if failure.get("attempts", 1) > 1 else ""
        lines.append(Text.assemble("  ", ("failed ", "red"), f"{_plain(name)}{tried}: {_short(failure['reason'])}"))
    return lines


def _embed(state: dict[str, Any]) -> list[RenderableType]:
    from rich.text import Text

    slides, patches, flight = state["slides"], state["patches"], state["in_flight"]
    numbers = [f"{slides[key]:,} {words}" for key, words in _SLIDES.items() if slides[key] or key == "done"]
    if not flight["embedders"] and not patches["written"]:
        return [Text(f"slides   {', '.join(numbers)}, of {slides['all']:,}"), Text("the embedders start ...", "dim")]
    again = f"; {count_of(state['requeued'], 'attempt')} lost" if state["requeued"] else ""
    lines: list[RenderableType] = [
        Text(f"slides   {', '.join(numbers)}, of {slides['all']:,}{again}"),
        Text(f"patches  {patches['written']:,} of {patches['planned']:,} of the slides looked at so far"),
        Text(
            f"queue    {count_of(flight['blocks'], 'block')} in flight, at most {flight['bytes'] / 1e6:,.0f} MB, for"
            f" {count_of(flight['embedders'], 'embedder')}"
        ),
        _left(state),
    ]
    table = _table("stage", "patches/s", "MB/s", "working", "")
    for stage, rate in state["stages"].items():
        here = stage == state["bottleneck"]
        table.add_row(
            stage,
            f"{rate['patches_per_s']:,.0f}",
            f"{rate['bytes_per_s'] / 1e6:,.1f}",
            f"{rate['busy']:.0%}",
            "the bottleneck" if here else "",
            style="bold" if here else "",
        )
    return [*lines, table, *([] if state["bottleneck"] else [Text("bottleneck: none yet", style="dim")])]


_SLIDES = {
    "done": "done",
    "failed": "failed",
    "skipped": "skipped",
    "in_flight": "in flight",
    "waiting": "waiting",
}


def _sweep(state: dict[str, Any]) -> list[RenderableType]:
    from rich.text import Text

    fits, epochs, rate = state["fits"], state["epochs"], state["epochs_per_s"]
    numbers = [f"{fits[key]:,} {key}" for key in ("done", "failed", "running", "waiting") if fits[key] or key == "done"]
    pace = "" if rate is None else f", {rate:,.1f}/s" if rate >= 1 else f", {rate * 60:,.1f}/min"
    lines: list[RenderableType] = [
        Text(f"fits     {', '.join(numbers)}, of {fits['all']:,}"),
        Text(f"epochs   {epochs['done']:,} of {epochs['all']:,}{pace}"),
        _left(state),
    ]
    table = _table("embedder", "fits", "running", "failed", "epochs", "best loss", "rate", "decay")
    for name, e in state["embedders"].items():
        best = [""] * 3
        if e["val_loss"] is not None:
            best = [f"{e['val_loss']:.3f}", f"{e['learning_rate']:g}", f"{e['weight_decay']:g}"]
        counts = [f"{e['done']}/{e['fits']}", str(e["running"]), str(e["failed"]), f"{e['epochs_done']}/{e['epochs']}"]
        table.add_row(_plain(name), *counts, *best)
    return [*lines, table]


def _pretrain(state: dict[str, Any]) -> list[RenderableType]:
    from rich.text import Text

    t = state["training"]
    losses = "" if t["val_loss"] is None else f", validation loss {t['val_loss']:.4f}, least {t['best']:.4f}"
    return [Text(f"epochs   {t['done']:,} of {t['all']:,}{losses}"), _left(state)]


def _left(state: dict[str, Any]) -> RenderableType:
    from rich.text import Text

    left = state["remaining_s"]
    return Text(f"left     {'nothing can be said yet' if left is None else f'about {span(left)}'}")


def _table(first: str, *numbers: str) -> Table:
    from rich.table import Column, Table

    columns = [Column(name, justify="right", no_wrap=True) for name in numbers]
    return Table(
        Column(first, no_wrap=True), *columns, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim"
    )


def _short(text: str) -> str:
    """The beginning of a reason; --json and the store's failures/ have the whole."""
    text = _plain(text)
    return text if len(text) <= _REASON_LENGTH else f"{text[: _REASON_LENGTH - 1]}…"


def _plain(text: str) -> str:
    """On one line, and unable to steer the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
