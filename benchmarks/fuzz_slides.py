"""Thousands of damaged slides, each read as `embed` reads it and held against another reader; see `tests.fuzz`.

    python -m benchmarks.fuzz_slides [--count 2000] [--seed 0] [--workers 2] [--json FILE]

Ends with code 1 when one hung, crashed, took too much memory, raised what is no `SlideError`, or gave out pixels that
the other reader does not see.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.fuzz import DEADLINE_S, MEMORY_MIB, Finding, fuzz

_VERSIONS = ("tiffslide", "tifffile", "imagecodecs", "openslide-bin", "openslide-python", "pillow", "numpy")
_SHOWN = ("number", "container", "change", "kind", "reason", "seconds", "mib")


def report(found: list[Finding], seed: int, seconds: float) -> dict[str, Any]:
    """What is kept of a run."""
    containers = sorted({finding.container for finding in found})
    return {
        "seed": seed,
        "inputs": len(found),
        "seconds": round(seconds, 1),
        "limits": {"deadline_s": DEADLINE_S, "memory_mib": MEMORY_MIB},
        "kinds": dict(Counter(finding.kind for finding in found).most_common()),
        "containers": {
            name: dict(Counter(finding.kind for finding in found if finding.container == name).most_common())
            for name in containers
        },
        "patches": {
            "planned": sum(finding.patches for finding in found),
            "left_out": sum(finding.left_out for finding in found),
            "altered": sum(finding.altered for finding in found),
        },
        "slowest": _shown(max(found, key=lambda finding: finding.seconds)),
        "largest": _shown(max(found, key=lambda finding: finding.mib)),
        "faults": [asdict(finding) for finding in found if finding.faults],
        "openslide_differs": dict(Counter(_kind(note) for finding in found for note in finding.notes).most_common()),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS}},
    }


def _shown(finding: Finding) -> dict[str, Any]:
    shown = {name: getattr(finding, name) for name in _SHOWN}
    folder, _, name = finding.reason.partition("/mutant/")  # of a temporary folder nobody needs to know
    return shown | {"reason": name or folder, "seconds": round(finding.seconds, 3), "mib": round(finding.mib, 1)}


def _kind(note: str) -> str:
    """What OpenSlide makes of a TIFF, without numbers and names."""
    for kind in ("refuses it", "raises", "differs", "no such level", "hang", "crash"):
        if kind in note:
            return kind
    return note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the mutants")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="her2cache-fuzz-") as folder:
        found = list(fuzz(Path(folder), arguments.seed, range(arguments.count), arguments.workers))
    result = report(sorted(found, key=lambda finding: finding.number), arguments.seed, time.perf_counter() - began)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n")
    sys.exit(1 if result["faults"] else 0)


if __name__ == "__main__":
    main()
