"""The command `her2cache`: the group that every verb hangs on."""

from __future__ import annotations

import importlib

import click

# verb -> "module:attribute"; imported only when the verb is used, so that `her2cache --help` is quick
_VERBS = {
    "demo": "cluster.cli.demo:demo",
    "synth": "cluster.cli.synth:synth",
    "cohort": "cluster.cli.cohort:cohort",
    "tissue": "cluster.cli.tissue:tissue",
    "embed": "cluster.cli.embed:embed",
    "embedders": "cluster.cli.embedders:embedders",
    "pretrain": "cluster.cli.pretrain:pretrain",
    "init": "cluster.cli.sweep:init",
    "sweep": "cluster.cli.sweep:sweep",
    "compare": "cluster.cli.compare:compare",
    "score": "cluster.cli.score:score",
    "heatmap": "cluster.cli.score:heatmap",
    "report": "cluster.cli.score:report",
    "view": "cluster.cli.view:view",
    "status": "cluster.cli.status:status",
    "store": "cluster.cli.store:store",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module, attribute = _VERBS[cmd_name].split(":")
        return getattr(importlib.import_module(module), attribute)


@click.group(cls=_LazyGroup)
@click.version_option(package_name="her2cache")
def main() -> None:
    """Frozen patch embedders, a verifiable feature store and attention-MIL sweeps on Ray."""
