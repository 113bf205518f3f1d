"""What import-linter cannot say of the house: short modules, empty rooms' doors, quick verbs, safe loading."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli.main import _VERBS

ROOT = Path(__file__).parents[2]
PACKAGES = ("her2cache", "trainers", "cluster")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 400
BANNED_NAMES = {"utils", "util", "core", "common", "helpers", "misc"}
UNPICKLERS = {"cloudpickle", "dill", "joblib", "shelve"}
LOADS = {"load", "loads", "Unpickler"}
HEAVY = ("torch", "torchvision", "ray", "matplotlib", "sklearn", "zarr", "tiffslide", "pyarrow", "scipy")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _unsafe(tree: ast.AST) -> list[str]:
    """Whatever in a module could run code of whoever wrote the file that it loads."""
    found = list[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.ImportFrom):
            source = (node.module or "").split(".")[0]
            loads = source in {"pickle", "torch"} and {alias.name for alias in node.names} & LOADS
            if source in UNPICKLERS or loads:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle" and node.attr in LOADS:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            unsafe_torch = ast.unparse(node.func) == "torch.load" and given.get("weights_only") != "True"
            if unsafe_torch or given.get("allow_pickle", "False") != "False":
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_module_is_short_and_safe(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert path.stem not in BANNED_NAMES
    assert _unsafe(ast.parse(text)) == []


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=_name)
def test_init_holds_no_code(path: Path) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(f)",
        "load = pickle.loads",
        "from pickle import Unpickler",
        "import joblib",
        "from joblib import load",
        "from torch import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_unsafe_loading_is_seen(line: str) -> None:
    assert _unsafe(ast.parse(line))


def test_safe_loading_passes() -> None:
    text = "import pickle\ntorch.load(f, map_location='cpu', weights_only=True)\nexcept_this = pickle.UnpicklingError"
    assert _unsafe(ast.parse(text)) == []


_PROBE = """
import json, sys
from click.testing import CliRunner
from cluster.cli.main import main
result = CliRunner().invoke(main, [*sys.argv[1:], "--help"])
heavy = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps({"code": result.exit_code, "text": result.output, "loaded": heavy}))
"""


def _written() -> list[str]:
    """Verbs whose module is there; a verb may be listed before it is written."""
    return [verb for verb, target in _VERBS.items() if importlib.util.find_spec(target.split(":")[0])]


@pytest.mark.parametrize("verb", [None, *_written()])
def test_help_is_quick(verb: str | None) -> None:
    arguments = [verb] if verb else []
    if verb is None and len(_written()) < len(_VERBS):
        pytest.skip("a verb is listed whose module is not written yet, and the group's help loads them all")
    process = subprocess.run(
        [sys.executable, "-c", _PROBE, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seen = json.loads(process.stdout)
    assert seen["code"] == 0, seen["text"]
    assert seen["text"].startswith("Usage:")
    assert sorted(set(HEAVY) & set(seen["loaded"])) == []
