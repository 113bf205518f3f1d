"""Which slides people mean who name them next to a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cluster.cli.inputs import TABLES, slides_of
from cluster.embed_more import slide_of
from cluster.scoring import SweepModels
from her2cache.cohort import Slide
from her2cache.errors import ConfigError
from her2cache.remote import slide_path


def slides_named(targets: Sequence[str], models: SweepModels) -> list[Slide]:
    """The slides that files, slide_ids or a cohort table name.

    Raises:
        ConfigError: a target is none of these.
    """
    stain = models.experiment.data.stain
    if Path(targets[0]).suffix.lower() in TABLES:
        return slides_of(targets, stain)
    space_key = models.space_keys[0]
    known = [slide for slide in models.cohort() if slide.stain == stain]
    by_id, by_path = {s.slide_id: s for s in known}, {s.path.resolve(): s for s in known}
    found: dict[str, Slide] = {}
    for target in targets:
        path = slide_path(target).absolute()
        if target in by_id:
            slide = by_id[target]
        elif path.exists():
            (named,) = slides_of([target], stain)
            slide = by_path.get(path.resolve(), named)
        elif models.store.has(target, space_key):
            slide = replace(slide_of(models.store.record(target, space_key)), stain=stain)
        else:
            raise ConfigError(
                f"{target} is neither a file on this machine nor a slide_id of the sweep's cohort or store;"
                f" correct it, or see the column slide_id of {models.experiment.data.cohort}"
            )
        other = found.setdefault(slide.slide_id, slide)
        if other != slide:
            raise ConfigError(
                f"{other.path} and {slide.path} would both be slide {slide.slide_id!r}; list them in a cohort"
                " table, each with a slide_id"
            )
    return list(found.values())


def ihc_named(target: str, models: SweepModels) -> Slide:
    """The slide to show beside a map: a slide_id of the cohort, or a file."""
    by_id = {slide.slide_id: slide for slide in models.cohort()}
    if target in by_id:
        return by_id[target]
    path = slide_path(target).absolute()
    return next((s for s in by_id.values() if s.path == path), Slide(path.stem, path.stem, path, "IHC"))
