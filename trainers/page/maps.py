"""The attention maps of the slides, as figures of the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from her2cache.ids import encode_slide_id
from trainers.page.images import photographs
from trainers.page.sheet import number, to_number
from trainers.page.slides import her2_name
from trainers.page.sources import Sources
from trainers.results import Row

FOLDER = "heatmaps"


@dataclass(frozen=True)
class Map:
    """A slide's map.

    Attributes:
        slide_id: of it.
        caption: what is known of the slide and of the map.
        alt: what the picture shows.
        picture: as a data URI; "" where its file is missing, or pictures of all slides are too large for a page.
        patches: contact sheet of top and bottom patches, likewise.
    """

    slide_id: str
    caption: str
    alt: str
    picture: str
    patches: str


def maps(sources: Sources) -> list[Map]:
    """By HER2 score, then by slide."""
    rows = sorted(sources.maps, key=lambda row: (row["her2_score"], row["slide_id"]))
    names = [f"{encode_slide_id(row['slide_id'])}{end}" for end in (".png", ".top.png") for row in rows]
    there = [path for name in names if (path := sources.folder / FOLDER / name).is_file()]
    uris = dict(zip((path.name for path in there), photographs(there), strict=True))
    n = len(rows)
    return [
        Map(
            row["slide_id"], "; ".join(_facts(row)) + ".", _alt(row), uris.get(names[k], ""), uris.get(names[n + k], "")
        )
        for k, row in enumerate(rows)
    ]


def _facts(row: Row) -> Iterator[str]:
    yield f"Case {row['case_id']}"
    yield f"HER2 score {her2_name(row['her2_score'])}"
    expected = number(to_number(row["expected_score"]))
    yield f"by this fold alone predicted {row['predicted_score']}, expected score {expected}"
    yield f"run {row['run_id']} ({row['embedder']})"
    patches, bags = (number(to_number(row[key]), 0) for key in ("n_patches", "bags"))
    yield f"{patches} patches in {bags} bags"
    if truth := to_number(row.get("truth_auc")):
        yield f"AUC of attention against the truth map {number(truth)}"


def _alt(row: Row) -> str:
    beside = ", the IHC section of the same case beside it" if row.get("has_ihc") in {"True", "true", "1"} else ""
    return f"H&E slide {row['slide_id']} with the attention-weighted score of its patches over it{beside}."


def truth_sentence(sources: Sources) -> str:
    """How attention agrees with the truth maps of a synthetic cohort, over all slides."""
    aucs = [auc for row in sources.maps if (auc := to_number(row.get("truth_auc"))) is not None]
    if not aucs:
        return ""
    mean = sum(aucs) / len(aucs)
    return (
        f"Attention against the truth maps of the synthetic cohort (which patches show tumour): AUC {number(mean)} in "
        f"the mean over {len(aucs)} slides, {number(min(aucs))} to {number(max(aucs))}; 0.5 is no relation."
    )
