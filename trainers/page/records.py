"""Tables of what a sweep was: settings, cohort and splits, feature spaces, failures, and the machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel

from trainers.page.sheet import EMPTY, Cell, Column, Line, Sheet, number, texts
from trainers.page.sources import Sources
from trainers.results import Row, group

_KEY_DIGITS = 12
"""Of a digest: enough to tell them apart."""


def settings(sources: Sources) -> Sheet | None:
    """Every setting of the experiment, also those that its file leaves out; None where it cannot be read."""
    if sources.experiment is None:
        return None
    lines: list[Line] = []
    for name in type(sources.experiment).model_fields:
        section: BaseModel = getattr(sources.experiment, name)
        written = section.model_fields_set
        lines.append(Line([Cell(f"[{name}]")], heading=True))
        for key in type(section).model_fields:
            if (name, key) not in {("data", "cohort"), ("data", "store")}:  # of the machine, see the provenance
                said = "as written" if key in written else "default"
                lines.append(Line(texts(key, _plain(getattr(section, key)), said)))
    columns = [Column("Setting", numeric=False), Column("Value", numeric=False), Column("", numeric=False)]
    return Sheet("Settings of the experiment.", columns, lines)


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return EMPTY if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def splits(sources: Sources) -> Sheet | None:
    """Cases and slides of each class in the fixed test set and the folds; None without splits.csv."""
    rows = sources.splits
    if not rows:
        return None
    places = {row["fold"]: f"Fold {row['fold']}" for row in sorted(rows, key=lambda row: row["fold"]) if row["fold"]}
    columns = [Column("Class", numeric=False), Column("All"), Column("Fixed test set"), *map(Column, places.values())]
    parts = [list(rows), [r for r in rows if r["split"] == "test"]]
    parts += [[r for r in rows if r["fold"] == fold] for fold in places]
    lines = [
        Line([Cell(name), *(_counted([row for row in part if row["label"] == str(label)]) for part in parts)])
        for label, name in enumerate(sources.classes)
    ]
    lines.append(Line([Cell("all"), *map(_counted, parts)]))
    caption = (
        "Cases of each class, in brackets their slides where these are more. All slides of a case are in one place. "
        "A model is trained on all folds but one, which its epoch and configuration are chosen by."
    )
    return Sheet(caption, columns, lines)


def _counted(rows: Sequence[Row]) -> Cell:
    cases, slides = len({row["case_id"] for row in rows}), len(rows)
    return Cell(str(cases) if cases == slides else f"{cases} ({slides})")


def spaces(sources: Sources) -> Sheet | None:
    """The feature spaces; only their keys where the store is elsewhere now."""
    keys = sources.environment.get("spaces", {})
    if not keys:
        return None
    titles = ("Patch", "Scale", "Dimensions", "Views")
    columns = [
        Column("Feature space", numeric=False),
        Column("Space key", numeric=False),
        *map(Column, titles),
        Column("Weights", numeric=False),
    ]
    lines: list[Line] = []
    for name, key in keys.items():
        if space := sources.spaces.get(name):
            patch = space.document["patch"]
            weights = f"sha256 {space.document['embedder']['weights_sha256'][:_KEY_DIGITS]}…"
            cells = (f"{patch['patch_px']} px", f"{patch['mpp']} µm/px", str(space.dim), str(space.views), weights)
        else:
            cells = (EMPTY,) * (len(titles) + 1)
        lines.append(Line(texts(name, f"{key[:_KEY_DIGITS]}…", *cells)))
    caption = "Feature spaces: what each patch embedder made of the patches."
    if not sources.spaces:
        caption += " The store that describes them is not where it was, so only their keys are known."
    return Sheet(caption, columns, lines)


def cards(sources: Sources) -> Sheet | None:
    """What the weights files say of themselves; None where none does."""
    lines: list[Line] = []
    for name, space in sources.spaces.items():
        if card := space.card:
            trained = ", ".join(f"{key} {_plain(value)}" for key, value in card.settings.items())
            seen = f"{len(card.case_ids)} cases" if card.case_ids else "none of a cohort"
            file = Path(space.weights).name if space.weights else EMPTY
            made = f"{card.architecture}, {card.source_task}, {card.source_mpp:g} µm/px, her2cache {card.version}"
            lines.append(Line(texts(name, file, made, seen, trained, f"{card.data_digest[:_KEY_DIGITS]}…")))
    if not lines:
        return None
    titles = ("Feature space", "File", "Trained", "Labels seen", "Settings", "Data digest")
    caption = "Weights cards: what each weights file says of its training."
    return Sheet(caption, [Column(title, numeric=False) for title in titles], lines)


def views(sources: Sources) -> str:
    """The paper augments afresh at every step; stored features are of finitely many views: a sentence of that."""
    counts = sorted({space.views for space in sources.spaces.values()})
    asked = sources.experiment.data.views if sources.experiment else None
    n = str(asked) if asked else " or ".join(map(str, counts))
    if not n:
        return ""
    if n == "1":
        return (
            "Every patch was embedded once, without augmentation (views = 1). The paper augments afresh at every step: "
            "this is a deviation from it."
        )
    return (
        f"Training draws each patch from {n} stored views of it, of which the first is unaltered: finite views, where "
        "the paper augments afresh at every step. This is a deviation from it. Validation, tests and scores use the "
        "unaltered patch."
    )


def failed_runs(sources: Sources) -> Sheet | None:
    """Runs that failed, by reason; None where there is none."""
    if not sources.failed:
        return None
    lines: list[Line] = []
    for (embedder, outer, reason), rows in group(sources.failed, "embedder", "outer", "reason"):
        of = "fixed test set" if outer is None else f"outer fold {outer}"
        ids = ", ".join(row["run_id"] for row in rows[:3]) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
        lines.append(Line(texts(embedder, of, str(len(rows)), reason, ids)))
    columns = [
        Column("Patch embedder", numeric=False),
        Column("Round", numeric=False),
        Column("Runs"),
        Column("Why", numeric=False),
        Column("Which", numeric=False),
    ]
    return Sheet(f"Runs that failed: {len(sources.failed)}.", columns, lines)


def left_out(sources: Sources) -> Sheet | None:
    """Slides that took no part; None where all did."""
    left: dict[str, str] = sources.environment.get("left_out", {})
    if not left:
        return None
    columns = [Column("Slide", numeric=False), Column("Why", numeric=False)]
    lines = [Line(texts(slide, why)) for slide, why in left.items()]
    return Sheet(f"Slides of the cohort that took no part: {len(left)}.", columns, lines, sortable=len(left) > 1)


def environment(sources: Sources) -> Sheet | None:
    """What the sweep ran with; None without environment.json."""
    if not sources.environment:
        return None
    columns = [Column("", numeric=False), Column("", numeric=False)]
    return Sheet("What the sweep ran with.", columns, [Line(texts(*pair)) for pair in _environment(sources)])


def _environment(sources: Sources) -> Iterator[tuple[str, str]]:
    e = sources.environment
    machine, packages = e.get("machine", {}), e.get("packages", {})
    seconds = e.get("seconds")
    known = {
        "Started": e.get("started"),
        "Wall time": None if seconds is None else _duration(float(seconds)),
        "Experiment (digest)": e.get("experiment"),
        "Features (digest)": e.get("features"),
        "Cohort": e.get("cohort"),
        "Store": e.get("store"),
        "Share of patches": None if "fraction" not in e else f"{100 * e['fraction']:.4g} %",
        "Embedder overlap allowed": None if "allow_embedder_overlap" not in e else _plain(e["allow_embedder_overlap"]),
        "Python": e.get("python"),
        "Packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "Platform": machine.get("platform"),
        "Processors": machine.get("cpus"),
        "Threads a fit": e.get("threads_per_fit"),
        "GPUs a fit": e.get("gpus_per_fit"),
        "Runs a stack": e.get("stack"),
    }
    yield from ((name, str(value)) for name, value in known.items() if value not in {None, ""})
    yield from ((f"Space key of {name}", key) for name, key in e.get("spaces", {}).items())
    if of := sources.experiment:
        seeds = {"splits": of.splits.seed, "training": of.training.seed, "search": of.search.seed}
        yield "Seeds", ", ".join(f"{name} {seed}" for name, seed in seeds.items())


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{number(seconds, 1)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
