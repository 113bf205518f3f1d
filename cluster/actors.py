"""Thin actors around `her2cache.ingest`: reader -> embedder -> writer.

Each is a plain class whose methods call one function; `remote_*` make Ray actors of them. Handles are
`Any`: Ray adds `.remote` to every method at run time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from her2cache.cohort import Slide
from her2cache.embedder import Batching
from her2cache.errors import EmbedderError, StoreError
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
    """What became of a slide in one space: "committed", "lost" to another writer, or an error."""

    key: str
    outcome: str
    error: EmbedderError | StoreError | None = None


class Reader:
    """Opens slides and streams their patches."""

    def read(self, slide: Slide, options: ReadOptions) -> Iterator[SlideSurvey | PatchBlock | ReadSummary]:
        """See `ingest.read_slide`."""
        yield from read_slide(slide, options)


class Embed:
    """Holds every embedder of a job on one device."""

    def __init__(self, trunks: Sequence[Any], batching: Batching, views: int) -> None:
        from her2cache.backbones import AlexNetEmbedder

        self._embedders = [AlexNetEmbedder(trunk, batching) for trunk in trunks]
        self._views = views

    def ready(self) -> dict[str, Any]:
        """Provenance of the features made here: versions, device, instruction set."""
        from importlib.metadata import version

        from her2cache.backbones import instruction_set

        names = ("her2cache", "torch", "torchvision", "tiffslide", "tifffile", "imagecodecs", "pillow", "numpy", "zarr")
        return {"versions": {name: version(name) for name in names}, "instruction_set": instruction_set()}

    def embed(self, block: PatchBlock, which: Sequence[int]) -> FeatureBlock:
        """Features of a block under some of the embedders; see `ingest.embed_block`."""
        return embed_block(block, [self._embedders[k] for k in which], self._views)

    def counted(self) -> list[int]:
        """Patches that went through each embedder here, every view counted."""
        return [embedder.embedded for embedder in self._embedders]


class Writer:
    """Writes one slide at a time, into one or more spaces, each of which succeeds or fails by itself."""

    def __init__(self, uri: str) -> None:
        self._store = FeatureStore.open(uri)
        self._spaces: list[SpaceShape] = []
        self._attempts: list[SlideWriter | EmbedderError | StoreError] = []

    def begin(self, survey: SlideSurvey, spaces: Sequence[SpaceShape]) -> None:
        """Reserves the space of a slide's features; ends an attempt that was under way.

        Raises:
            StoreError: there is room for it in none of the spaces.
        """
        self.discard()
        self._spaces = list(spaces)
        self._attempts = [self._start(survey, space) for space in spaces]
        errors = [attempt for attempt in self._attempts if isinstance(attempt, StoreError)]
        if len(errors) == len(spaces):
            raise errors[0]

    def write(self, block: FeatureBlock) -> None:
        """Takes the features of a block, in the order of the spaces."""
        for k, features in enumerate(block.features):
            attempt = self._attempts[k]
            if isinstance(attempt, SlideWriter):
                if isinstance(features, EmbedderError):
                    attempt.discard()
                    self._attempts[k] = features
                else:
                    attempt.write(block.start, features, block.ok)

    def commit(self, made: dict[str, Any]) -> list[SpaceResult]:
        """Commits the slide in every space that has not failed."""
        attempts, self._attempts = self._attempts, []
        return [_commit(space.key, attempt, made) for space, attempt in zip(self._spaces, attempts, strict=True)]

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
            return self._store.writer(shape)
        except StoreError as error:
            return error


def _commit(key: str, attempt: SlideWriter | EmbedderError | StoreError, made: dict[str, Any]) -> SpaceResult:
    if not isinstance(attempt, SlideWriter):
        return SpaceResult(key, "failed", attempt)
    try:
        return SpaceResult(key, attempt.commit(made))
    except StoreError as error:
        attempt.discard()
        return SpaceResult(key, "failed", error)


def remote_reader(waiting_blocks: int) -> Any:
    """Starts a reader that stops while `waiting_blocks` of its blocks are not yet taken."""
    streaming = ray.method(num_returns="streaming", _generator_backpressure_num_objects=waiting_blocks)
    kind = type("Reader", (Reader,), {"read": streaming(Reader.read)})
    return ray.remote(num_cpus=0)(kind).remote()


def remote_embedder(trunks: Any, batching: Batching, views: int) -> Any:
    """Starts an embedder: on a CPU with a core a thread, on a GPU with the whole of it."""
    gpu = batching.device == "cuda"
    actor = ray.remote(num_gpus=1) if gpu else ray.remote(num_cpus=batching.threads)
    return actor(Embed).remote(trunks, batching, views)


def remote_writer(uri: str) -> Any:
    """Starts a writer."""
    return ray.remote(num_cpus=0)(Writer).remote(uri)
