"""`her2cache view`: the slides of a sweep with their heatmaps, in a browser."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.cli.output import Outcome, count_of
from cluster.cli.verb import verb


@click.command()
@click.argument("sweep", metavar="SWEEP_DIR", type=click.Path(path_type=Path))
@click.option("--port", default=0, show_default="a free one", type=click.IntRange(0, 65535), help="Port to serve at.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to bind. Another one than the default lets everybody look who reaches it and has the token.",
)
@click.option("--embedder", metavar="NAME", help="Whose models; by default those of least mean validation loss.")
@click.option("--run", "run_id", metavar="RUN_ID", help="One model; by default those of all folds.")
@verb
def view(sweep: Path, port: int, host: str, embedder: str | None, run_id: str | None) -> Outcome:
    """Look at the slides of a sweep: deep zoom, heatmap, IHC sister, patches. Ends with Ctrl-C."""
    import asyncio
    import signal

    from cluster.cli.output import err
    from cluster.limits import available_cpus
    from cluster.viewing import SweepScenes
    from trainers.viewer.server import Viewer

    scenes = SweepScenes(sweep, embedder=embedder, run_id=run_id)
    viewer = Viewer(scenes, host, port, workers=available_cpus())

    async def serve() -> None:
        until, loop = asyncio.Event(), asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, until.set)
        slides = count_of(len(scenes.entries()), "slide")
        err.print(f"{slides} at\n  {viewer.url}\nEnd with Ctrl-C.", markup=False)
        await viewer.serve(until)

    asyncio.run(serve())
    return Outcome(summary=["The viewer has ended."])
