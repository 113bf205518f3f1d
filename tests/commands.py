"""The installed command, run as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = Path(sys.executable).with_name("her2cache")


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the installed command, away from any terminal."""
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
