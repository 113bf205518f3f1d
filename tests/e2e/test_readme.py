"""What the README says is run: its Python, and every verb and option it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from cluster.cli.main import main
from tests.conftest import ROOT
from tests.planted import DIM, planted_store

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted_store(tmp_path, {"alexnet-imagenet": 4.0}, 8)
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["features"].shape == (60, DIM)
    assert names["coords"].shape == (60, 2)
    bag, label = names["bags"][0]
    assert bag.shape == (50, DIM)
    assert label in range(4)


def commands() -> list[list[str]]:
    lines = [line.partition(" #")[0] for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("her2cache ")]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words[:2]))
def test_every_command_parses(words: list[str]) -> None:
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, f"the README names a verb that does not exist: {words[0]}"
        command, words = found, words[1:]
    command.make_context("her2cache", words)
