"""The decorator every verb wears: --json, --debug, and errors as one line and an exit code."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from cluster.cli.output import Outcome, fail, finish
from her2cache.errors import Her2CacheError


def _drop(record: logging.LogRecord) -> bool:
    return False


def verb(run: Callable[..., Outcome]) -> Callable[..., None]:
    """Turns a function that returns an `Outcome` into the body of a click command.

    Adds `--json` and `--debug`. An error of ours ends the verb with one line and exit code 2; anything
    else says that it was not expected. A traceback is printed only with `--debug`.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
    @click.option("--debug", is_flag=True, help="Print tracebacks and logs.")
    @wraps(run)
    def command(*args: Any, as_json: bool, debug: bool, **kwargs: Any) -> None:
        if not debug:  # third-party readers log what our own errors already say
            logging.getLogger("tifffile").addFilter(_drop)
        try:
            code = finish(run(*args, **kwargs), as_json=as_json)
        except Her2CacheError as error:
            if debug:
                traceback.print_exc()
            code = fail(str(error), as_json=as_json)
        except KeyboardInterrupt:
            code = fail(
                "interrupted; what was finished stays, run the same command again to go on (a sweep with --resume)",
                as_json=as_json,
            )
            code = 130
        except click.ClickException:
            raise
        except Exception as error:  # noqa: BLE001 - the edge: nothing but a line reaches the user
            if debug:
                traceback.print_exc()
            message = f"not expected: {type(error).__name__}: {error}; run again with --debug and report the traceback"
            code = fail(message, as_json=as_json)
        sys.exit(code)

    return command
