"""Thin actors around `her2cache.ingest`: reader -> embedder -> writer.

Each is a plain class whose methods call one function; `remote_*` make Ray actors of them. Handles are
`Any`: Ray adds `.remote` to every method at run time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from threading import Lock
from typing import Any

import ray

from cluster.deadline import in_time
from cluster.telemetry.stages import DecodedBlock, EmbeddedBlock, Meter, Spent
from her2cache.cohort import Slide
from her2cache.embedder import Batching, Embedder, Recipe
from her2cache.errors import EmbedderError, SlideOpenError, StoreError
from her2cache.ingest import FeatureBlock, PatchBlock, ReadOptions, ReadSummary, SlideSurvey, embed_block, read_slide
from her2cache.store.reader import FeatureStore
from her2cache.store.writer import SlideShape, SlideWriter


@dataclass(frozen=True)
class SpaceShape:
    """What a writer needs to know of a feature space."""

    key: str
    dim: int
    views: int
    dtype: str


@dataclass(frozen=True)
class SpaceResult:
    """What became of a slide in one space: "committed", "lost" to another writer, or an error.

    The first result of a slide says what the commit took.
    """

    key: str
    outcome: str
    error: EmbedderError | StoreError | None = None
    spent: Spent | None = None


class Reader:
    """Opens slides and streams their patches."""

    def __init__(self) -> None:
        self._meter = Meter("decode")

    def read(self, slide: Slide, options: ReadOptions) -> Iterator[SlideSurvey | PatchBlock | ReadSummary]:
        """See `ingest.read_slide`; a block says what it took to read.

        Raises:
            SlideOpenError: the slide cannot be opened; of several nodes it says which could not.
        """
        try:
            for item in self._meter.each(in_time(read_slide(slide, options))):
                if isinstance(item, PatchBlock):
                    spent = self._meter.spent(len(item.ok), item.patches.nbytes)
                    yield DecodedBlock(**vars(item), spent=spent)
                else:
                    yield item
        except SlideOpenError as error:
            raise SlideOpenError(f"{error}{_on_this_node()}") from error


def _on_this_node() -> str:
    """Which node this is, for a message; "" where there is only one."""
    several = sum(node["Alive"] for node in ray.nodes()) > 1
    return f" (on node {ray.util.get_node_ip_address()})" if several else ""


class Embed:
    """Holds every embedder of a job on one device. One that cannot be built there fails for itself alone."""

    def __init__(self, recipes: Sequence[Recipe], batchings: Sequence[Batching], views: int) -> None:
        self._embedders = [_built(recipe, batching) for recipe, batching in zip(recipes, batchings, strict=True)]
        self._views = views
        self._passes = [0] * len(recipes)
        self._meter = Meter("forward")
        self._counting = Lock()  # on a GPU two blocks are at work here, see `remote_embedder`

    def ready(self) -> dict[str, Any]:
        """Provenance of the features made here: versions, device, instruction set; and the node."""
        from importlib.metadata import version

        from her2cache.backbones.device import device_name, instruction_set

        names = ("her2cache", "torch", "torchvision", "tiffslide", "tifffile", "imagecodecs", "pillow", "numpy", "zarr")
        versions = {name: version(name) for name in names}
        made = {"versions": versions, "instruction_set": instruction_set(), "device": device_name()}
        return made | {"node": ray.get_runtime_context().get_node_id()}

    def embed(self, block: PatchBlock, which: Sequence[int]) -> EmbeddedBlock:
        """Features of a block under some of the embedders; see `ingest.embed_block`."""
        chosen = [self._embedders[k] for k in which]
        built = [embedder for embedder in chosen if not isinstance(embedder, EmbedderError)]
        with self._meter:
            made = embed_block(block, built, self._views)
        with self._counting:
            for k in which:
                if not isinstance(self._embedders[k], EmbedderError):
                    self._passes[k] += self._views * len(block.ok)
        found = iter(zip(made.features, made.seconds, strict=True))
        every = [(one, 0.0) if isinstance(one, EmbedderError) else next(found) for one in chosen]
        given = [features for features, _ in every]
        nbytes = sum(features.nbytes for features in given if not isinstance(features, EmbedderError))
        spent = (*([block.spent] if isinstance(block, DecodedBlock) else []), self._meter.spent(len(made.ok), nbytes))
        return EmbeddedBlock(made.start, made.ok, given, [took for _, took in every], spent)

    def counted(self) -> list[int]:
        """Patches that went through each embedder here, every view counted."""
        return list(self._passes)


def _built(recipe: Recipe, batching: Batching) -> Embedder | EmbedderError:
    try:
        return recipe.build(batching)
    except EmbedderError as error:
        return error
    except Exception as error:  # noqa: BLE001 - anybody's network, a full GPU among it
        return EmbedderError(f"{recipe.spec.name} cannot be built ({type(error).__name__}: {error})")


class Writer:
    """Writes one slide at a time, into one or more spaces, each of which succeeds or fails by itself."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._meter = Meter("write")
        self._store: FeatureStore | None = None  # opened by the first slide: what is raised here does not come home
        self._spaces: list[SpaceShape] = []
        self._seconds: list[float] = []
        self._attempts: list[SlideWriter | EmbedderError | StoreError] = []

    def begin(self, survey: SlideSurvey, spaces: Sequence[SpaceShape]) -> None:
        """Reserves the space of a slide's features; ends an attempt that was under way.

        Raises:
            StoreError: there is room for it in none of the spaces.
        """
        self.discard()
        self._spaces = list(spaces)
        self._seconds = [0.0] * len(spaces)
        with self._meter:
            for space in spaces:  # one by one: what has begun is discarded if the next fails as nobody foresaw
                self._attempts.append(self._start(survey, space))
        errors = [attempt for attempt in self._attempts if isinstance(attempt, StoreError)]
        if len(errors) == len(spaces):
            raise errors[0]

    def write(self, block: EmbeddedBlock) -> tuple[Spent, ...]:
        """Takes the features of a block, in the order of the spaces; returns what reader, embedder and it spent."""
        with self._meter:
            nbytes = self._take(block)
        return (*block.spent, self._meter.spent(len(block.ok), nbytes))

    def _take(self, block: FeatureBlock) -> int:
        """Bytes that were written."""
        nbytes = 0
        for k, (features, seconds) in enumerate(zip(block.features, block.seconds, strict=True)):
            attempt = self._attempts[k]
            self._seconds[k] += seconds
            if isinstance(attempt, SlideWriter):
                if isinstance(features, EmbedderError):
                    attempt.discard()
                    self._attempts[k] = features
                else:
                    attempt.write(block.start, features, block.ok)
                    nbytes += features.nbytes
        return nbytes

    def commit(self, made: dict[str, Any], batchings: Sequence[Batching]) -> list[SpaceResult]:
        """Commits the slide in every space that has not failed.

        Args:
            made: provenance of all of them.
            batchings: how the embedder of each space was run.
        """
        attempts, self._attempts = self._attempts, []
        each = zip(self._spaces, attempts, batchings, self._seconds, strict=True)
        with self._meter:
            first, *others = [
                _commit(space.key, attempt, made | {"batching": asdict(batching), "embed_seconds": round(seconds, 6)})
                for space, attempt, batching, seconds in each
            ]
        return [replace(first, spent=self._meter.spent()), *others]

    def discard(self) -> None:
        """Removes the attempts that are under way."""
        for attempt in self._attempts:
            if isinstance(attempt, SlideWriter):
                attempt.discard()
        self._attempts = []

    def _start(self, survey: SlideSurvey, space: SpaceShape) -> SlideWriter | StoreError:
        shape = SlideShape(
            slide_id=survey.slide_id,
            space_key=space.key,
            coords=survey.coords,
            views=space.views,
            dim=space.dim,
            dtype=space.dtype,
            patch_level0_px=survey.patch_level0_px,
            slide=survey.provenance,
        )
        try:
            self._store = self._store or FeatureStore.open(self._uri)
            return self._store.writer(shape)
        except StoreError as error:
            return type(error)(f"{error}{_on_this_node()}")


def _commit(key: str, attempt: SlideWriter | EmbedderError | StoreError, made: dict[str, Any]) -> SpaceResult:
    if not isinstance(attempt, SlideWriter):
        return SpaceResult(key, "failed", attempt)
    try:
        return SpaceResult(key, attempt.commit(made))
    except StoreError as error:
        attempt.discard()
        return SpaceResult(key, "failed", error)
    except BaseException:
        attempt.discard()
        raise


def remote_reader(waiting_blocks: int, where: Any = "DEFAULT") -> Any:
    """Starts a reader that stops while `waiting_blocks` of its blocks are not yet taken."""
    streaming = ray.method(num_returns="streaming", _generator_backpressure_num_objects=waiting_blocks)
    kind = type("Reader", (Reader,), {"read": streaming(Reader.read)})
    return ray.remote(num_cpus=0, scheduling_strategy=where)(kind).remote()


def remote_embedder(recipes: Any, batchings: Sequence[Batching], views: int) -> Any:
    """Starts an embedder: on a CPU with a core a thread, on a GPU with the whole of it.

    A GPU gets two blocks at a time: while it computes on one, the processor unpacks the other and copies it there.
    """
    gpu = batchings[0].device == "cuda"
    needs = {"num_gpus": 1, "max_concurrency": 2} if gpu else {"num_cpus": batchings[0].threads}
    return ray.remote(Embed).options(**needs).remote(recipes, batchings, views)


def remote_writer(uri: str, where: Any = "DEFAULT") -> Any:
    """Starts a writer."""
    return ray.remote(num_cpus=0, scheduling_strategy=where)(Writer).remote(uri)
