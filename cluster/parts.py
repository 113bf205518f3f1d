"""What part slides had in the training of models: scores of slides that they were trained on look too good."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.scoring import SweepModels
from her2cache.cohort import Slide
from trainers.results import read_csv
from trainers.score_tables import NEW, TEST, TRAINED_ON


def parts_of(slides: Sequence[Slide], models: SweepModels, sweep: Path) -> dict[str, str | None]:
    """Part of each slide in the making of the models, by the table of splits in the sweep's directory.

    A file that has another slide_id there is known again by the digest of its bytes, which the store has. A slide that
    is new has the part of its case.

    Returns:
        slide_id -> "test", "trained on" (or chosen by) or "new"; None where the table of splits is missing.
    """
    outer = models.runs[0]["outer"]  # the same of all
    if outer is None:
        splits = read_csv(sweep, "splits.csv")
    else:
        splits = [row for row in read_csv(sweep, "nested_splits.csv") if row["outer"] == str(outer)]
    if not splits:
        return dict.fromkeys(slide.slide_id for slide in slides)
    known = {row["slide_id"]: TEST if row["split"] == "test" else TRAINED_ON for row in splits}
    others = [slide.slide_id for slide in slides if slide.slide_id not in known]
    by_file: dict[str, str] = {}
    for slide_id in known if others else ():
        digest = _file_digest(slide_id, models)
        if digest and by_file.get(digest) != TRAINED_ON:
            by_file[digest] = known[slide_id]
    by_case = {row["case_id"]: known[row["slide_id"]] for row in splits}
    found = {slide_id: by_file.get(_file_digest(slide_id, models)) for slide_id in others}
    return {s.slide_id: known.get(s.slide_id) or found[s.slide_id] or by_case.get(s.case_id, NEW) for s in slides}


def _file_digest(slide_id: str, models: SweepModels) -> str:
    """Digest of a slide's file when it was embedded; "" where the store has none."""
    store, key = models.store, models.space_keys[0]
    return str(store.record(slide_id, key).slide.get("sha256", "")) if store.has(slide_id, key) else ""
