"""`--log-file`, which verbs that run jobs have: where the events of these jobs are written."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.telemetry.logs import LOG_FILE


def _set(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    token = LOG_FILE.set(path and path.absolute())
    context.call_on_close(lambda: LOG_FILE.reset(token))


log_file_option = click.option(
    "--log-file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="HER2CACHE_LOG",
    show_envvar=True,
    expose_value=False,
    callback=_set,
    help="Append events to FILE, a JSON object a line.",
)
