"""`her2cache synth`: a synthetic cohort to try everything on."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.cli.bars import bar
from cluster.cli.output import Item, Outcome
from cluster.cli.verb import verb


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--slides", default=32, show_default=True, help="Number of cases, an H&E and an IHC slide each.")
@click.option("--width", default=1536, show_default=True, help="Width and height of a slide in px.")
@click.option(
    "--mpp", type=click.Choice(["0.25", "0.5"]), default="0.5", show_default=True, help="Scale of level 0 in um/px."
)
@click.option(
    "--pcam",
    default=0,
    show_default=True,
    help="Write also a PatchCamelyon of this many training patches (a multiple of 16), in OUT/pcam.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of everything.")
@verb
def synth(out: Path, slides: int, width: int, mpp: str, pcam: int, seed: int) -> Outcome:
    """Write a synthetic cohort of pyramidal slides to OUT.

    H&E slides with an IHC sister each, truth maps and cohort.csv. The link between score and nuclear
    morphology is put in: ranks of embedders on this cohort say nothing about real tissue.

    With --pcam also patches labelled by whether their middle shows tumour, in the six HDF5 files of
    PatchCamelyon: as many as asked for to train on, an eighth each for validation and test.
    """
    from her2cache.cohort import read_cohort
    from her2cache.synthetic.cohort import write_synthetic_cohort
    from her2cache.synthetic.pcam import check_patches, write_synthetic_pcam

    if pcam:
        check_patches(pcam)  # before minutes of writing slides
    with bar("writing slides", "cases") as watch:
        table = write_synthetic_cohort(out, slides=slides, width_px=width, mpp=float(mpp), seed=seed, progress=watch)
    if pcam:
        with bar("writing PatchCamelyon files", "patches") as watch:
            write_synthetic_pcam(out / "pcam", pcam, seed=seed, progress=watch)
    written = read_cohort(table).slides
    outputs = {"cohort": str(table), "slides": str(out / "slides"), "truth": str(out / "truth")}
    pcam_lines = [f"  PCam files   {out / 'pcam'} ({pcam:,} patches to train, {pcam // 8:,} each to validate and test)"]
    return Outcome(
        items=[Item(slide.slide_id, "done") for slide in written],
        outputs=outputs | ({"pcam": str(out / "pcam")} if pcam else {}),
        summary=(
            f"wrote {len(written)} slides of {slides} cases ({width} x {width} px at {mpp} um/px)",
            f"  table        {table}",
            f"  slides       {out / 'slides'}",
            f"  truth maps   {out / 'truth'}",
            *(pcam_lines if pcam else []),
            "the link between score and morphology was put in: ranks of embedders here say nothing about real tissue",
        ),
    )
