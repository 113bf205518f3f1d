"""The experiment file: TOML in, a checked `Experiment` out. The defaults are the paper's."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from her2cache.embedder import canonical_json
from her2cache.errors import ConfigError
from trainers.stack import Configuration
from trainers.tasks import Task, find_task, mapped_task

RANDOM = "alexnet-random"
"""The embedder that `[data] random_seeds` is about."""

Positive = Annotated[int, Field(ge=1)]
Rates = Annotated[tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...], Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # TOML knows lists only


class DataSection(_Section):
    """[data]: which slides, and which stored features of them.

    Attributes:
        cohort: table of the slides; a relative path starts at the experiment file's folder.
        store: feature store, a folder or URI; the same.
        embedders: feature spaces to train on, by embedder name or space key.
        views: stored views of a patch, of which training draws one an instance; None takes the one space that an
            embedder has, however many views it holds.
        stain: slides of the cohort to use.
        random_seeds: how many stored seeds of alexnet-random take part (alexnet-random, alexnet-random-s1, ...).
        seeds_a_fold: "one" gives fold k the seed k, as the original drew it anew for every fold; "all" trains every
            seed on every fold, and the tables average over them.
    """

    cohort: str
    store: str
    embedders: Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_as_tuple)]
    views: Positive | None = None
    stain: Literal["HE", "IHC"] = "HE"
    random_seeds: Positive = 1
    seeds_a_fold: Literal["one", "all"] = "one"


class TaskSection(_Section):
    """[task]: what to tell apart.

    Attributes:
        preset: a name of `trainers.tasks.PRESETS`.
        class_of_score: instead of a preset, the classes of the scores 0, 1+, 2+ and 3+.
    """

    preset: Literal["four", "paper-binary", "her2-low"] = "four"
    class_of_score: Annotated[tuple[int, ...] | None, BeforeValidator(_as_tuple)] = None


class SplitsSection(_Section):
    """[splits]: test set and folds.

    Attributes:
        folds: number of folds, stratified by score and grouped by case; "paper" is the original's plain
            KFold(5, shuffle) over slides.
        test_slides: slides of the fixed test set, unless the cohort has a column `split`.
        seed: of both.
        file: a splits.csv, of another sweep or made by hand, to use instead; a relative path starts at the experiment
            file's folder.
        nested: outer folds of a nested cross-validation over all slides, beside the fixed test set; 0 leaves it out.
    """

    folds: Annotated[int, Field(ge=2)] | Literal["paper"] = 5
    test_slides: Positive = 8
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 123
    file: str | None = None
    nested: Literal[0] | Annotated[int, Field(ge=3)] = 0


class BagsSection(_Section):
    """[bags]: instances a bag, and bags a training epoch, validation set and test set.

    Attributes:
        size: patches a bag.
        per_epoch: fresh bags a training epoch.
        validation: fixed bags of the validation fold.
        test: fixed bags of the test set.
        balanced: whether training sees every class equally often, rather than every slide.
        allow_replacement: lets a slide with fewer patches than `size` repeat them.
    """

    size: Positive = 100
    per_epoch: Positive = 6400
    validation: Positive = 2500
    test: Positive = 2500
    balanced: bool = False
    allow_replacement: bool = False


class ModelSection(_Section):
    """[model]: the attention network.

    Attributes:
        attention_units: width of W2 in the paper's equation 1.
        attention: "tanh" is that equation; "gated" multiplies its hidden units by sigmoid(U v), Ilse et al. 2018.
    """

    attention_units: Positive = 256
    attention: Literal["tanh", "gated"] = "tanh"


class TrainingSection(_Section):
    """[training]: Adam and its grid; every learning rate is tried with every weight decay.

    Attributes:
        epochs: epochs of a run.
        patience: epochs without a lower validation loss after which a run ends; 0 lets every run take all epochs.
        batch_bags: bags an optimiser step.
        learning_rate: rates of the grid.
        weight_decay: L2 factors of the grid.
        feature_norm: "standardize" brings each feature to mean 0 and SD 1 over the training slides of a fold.
        seed: of the initial weights and the bags.
    """

    epochs: Positive = 50
    patience: Annotated[int, Field(ge=0)] = 0
    batch_bags: Positive = 64
    learning_rate: Annotated[Rates, BeforeValidator(_as_tuple)] = (1e-3, 1e-4, 1e-5, 1e-6)
    weight_decay: Annotated[Rates, BeforeValidator(_as_tuple)] = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
    feature_norm: Literal["none", "standardize"] = "none"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 123

    def grid(self) -> tuple[Configuration, ...]:
        """Every configuration once, in the order of the file."""
        rates, decays = dict.fromkeys(self.learning_rate), dict.fromkeys(self.weight_decay)
        return tuple(Configuration(lr, wd) for lr, wd in product(rates, decays))


class SearchSection(_Section):
    """[search]: which configurations are tried.

    Attributes:
        method: "grid" is every learning rate with every weight decay. The others draw from the range that these lists
            span, evenly on a logarithmic scale: "random" trains every draw to its end, "asha" ends the worse ones
            early, "optuna" lets earlier results guide later draws.
        samples: draws of an embedder.
        at_once: draws of an embedder that "optuna" has trained at once: each knows the results of all but these.
        seed: of the draws.
    """

    method: Literal["grid", "random", "asha", "optuna"] = "grid"
    samples: Positive = 20
    at_once: Positive = 4
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 123


class TestingSection(_Section):
    """[testing]: "chosen" tests the configuration of least mean validation loss, "all" every one; selection is blind to
    it."""

    configurations: Literal["chosen", "all"] = "chosen"


class Experiment(_Section):
    """An experiment file, checked; see the sections."""

    data: DataSection
    task: TaskSection = TaskSection()
    splits: SplitsSection = SplitsSection()
    bags: BagsSection = BagsSection()
    model: ModelSection = ModelSection()
    training: TrainingSection = TrainingSection()
    search: SearchSection = SearchSection()
    testing: TestingSection = TestingSection()

    @property
    def classification(self) -> Task:
        """The task in full."""
        own = self.task.class_of_score
        return find_task(self.task.preset) if own is None else mapped_task(own)

    def digest(self) -> str:
        """sha256 of everything that changes a result; where files lie does not."""
        document = self.model_dump(mode="json", exclude={"data": {"cohort", "store"}, "splits": {"file"}})
        return hashlib.sha256(canonical_json(document).encode()).hexdigest()


def read_experiment(path: Path) -> Experiment:
    """Reads an experiment file; relative paths in it start at its folder.

    Raises:
        ConfigError: the file is missing, no TOML, or has a key or value that makes no sense; the message
            names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): name an experiment file; `her2cache init DIR` writes one"
        ) from error
    try:
        experiment = Experiment.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is no TOML ({error}): text stands in quotes, lists in brackets") from error
    except ValidationError as error:
        raise ConfigError(_explain(path, text, error)) from error
    if faults := [
        f"{path}:{_line_of(text, *place)}: [{place[0]}] {place[1]} {why}" for place, why in _clashes(experiment)
    ]:
        raise ConfigError("; ".join(faults))
    folder = path.absolute().parent
    data = experiment.data
    store = data.store if "://" in data.store else str(folder / data.store)
    resolved = data.model_copy(update={"cohort": str(folder / data.cohort), "store": store})
    splits = experiment.splits
    if splits.file is not None:
        splits = splits.model_copy(update={"file": str(folder / splits.file)})
    return experiment.model_copy(update={"data": resolved, "splits": splits})


def _clashes(e: Experiment) -> Iterator[tuple[tuple[str, str], str]]:
    """Values that make no sense together: (section, key), why and what to do."""
    t, drawn = e.training, e.search.method != "grid"
    if t.batch_bags > e.bags.per_epoch:
        yield ("training", "batch_bags"), f"is {t.batch_bags}, an epoch has {e.bags.per_epoch} bags: lower it"
    if t.patience >= t.epochs:
        yield ("training", "patience"), f"is {t.patience}, which never ends a run of {t.epochs} epochs: lower it, or 0"
    for key, values in (("learning_rate", t.learning_rate), ("weight_decay", t.weight_decay)):
        if drawn and 0.0 in values:
            yield (
                ("training", key),
                f"has 0, which [search] method = {e.search.method!r} cannot draw from: leave it out",
            )
    if drawn and len({*t.learning_rate}) == len({*t.weight_decay}) == 1:
        yield ("search", "method"), "has nothing to draw from: give learning_rate or weight_decay two values, a range"
    if e.task.class_of_score is not None:
        try:
            mapped_task(e.task.class_of_score)
        except ConfigError as error:
            yield ("task", "class_of_score"), str(error).removeprefix("[task] class_of_score ")  # said by its place
    if e.data.random_seeds > 1 and RANDOM not in e.data.embedders:
        yield ("data", "random_seeds"), f"is of {RANDOM}, which embedders does not name: add it, or leave this out"


def _explain(path: Path, text: str, error: ValidationError) -> str:
    """Every fault once, as `file:line: fact; remedy`."""
    faults: dict[tuple[int, str], list[str]] = {}
    for fault in error.errors():
        section, *key = [str(k) for k in fault["loc"] if not _is_branch(k)][:2]
        name = f"[{section}] {key[0]}" if key else f"[{section}]"
        place = (_line_of(text, section, key[0] if key else None), name)
        faults.setdefault(place, []).append(_message(section, bool(key), fault["type"], fault["msg"], fault["input"]))
    lines: list[str] = []
    for (line, name), (first, *rest) in sorted(faults.items()):
        where = f"{path}:{line}" if line else str(path)
        # a value that fits no type of a union has a message for each
        lines.append(f"{where}: {name} {', or '.join([first, *(m.split(': ', 1)[1] for m in rest)])}")
    return "; ".join(lines)


def _message(section: str, is_key: bool, kind: str, message: str, value: object) -> str:
    if kind == "missing":
        return "is missing: add it; `her2cache init DIR` writes a file with every key explained"
    if kind == "extra_forbidden":
        model: Any = Experiment.model_fields[section].annotation if is_key else Experiment
        return f"is not known: a spelling mistake? There are {', '.join(model.model_fields)}"
    expected = message.replace("Tuple", "List").replace(" after validation", "")
    return f"is {str(value)[:60]!r}: {expected[0].lower()}{expected[1:]}"


def _is_branch(key: int | str) -> bool:
    """Whether part of an error's place is a list index or pydantic's name of one type of a union."""
    return isinstance(key, int) or key == "int" or "[" in key


def _line_of(text: str, section: str, key: str | None) -> int:
    """Line of a key, or else of its section's header, counted from 1; 0 where there is neither."""
    current, header = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if table := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            current = table[1]
            if current == section:
                header = number
        elif current == section and key and re.match(rf"\s*\"?{re.escape(key)}\"?\s*[=.]", line):
            return number
        elif not current and re.match(rf"\s*{re.escape(section)}\s*[=.]", line):
            header = number
    return header
