"""Features that another tool made, into a space of a store: slide by slide, each committed like any other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from her2cache.cohort import Slide
from her2cache.errors import ConfigError, Her2CacheError, StoreUnreachableError
from her2cache.ids import encode_slide_id
from her2cache.interchange.checking import checked, require_storable, scale_doubts
from her2cache.interchange.layouts import SOURCES
from her2cache.interchange.origin import find_slide_file, provenance
from her2cache.interchange.patches import Features, Given, SlidePatches
from her2cache.interchange.space import ImportedSpace, difference, imported_space
from her2cache.slide import file_changed
from her2cache.store.audit import retire
from her2cache.store.reader import FeatureStore
from her2cache.store.schema import FailureRecord
from her2cache.store.writer import SlideShape

_THERE = "it is in the store already"


@dataclass(frozen=True)
class ImportOptions:
    """What is imported, and how.

    Attributes:
        tool: whose files they are, of `SOURCES`.
        embedder: name of the feature space.
        dtype: in which features are stored; None for that of the tool's files, which loses nothing.
        dim: that features must have; None for that of the first file.
        given: what the files may not say.
        replace: whether slides that are there are imported anew.
    """

    tool: str
    embedder: str
    dtype: str | None = None
    dim: int | None = None
    given: Given = field(default_factory=Given)
    replace: bool = False


@dataclass(frozen=True)
class Imported:
    """What became of a file.

    Attributes:
        slide_id: of its slide; the file's path where that is in doubt.
        status, reason: as in every verb.
        patches: imported.
        notes: what is not known of the slide.
    """

    slide_id: str
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    patches: int = 0
    notes: tuple[str, ...] = ()


@dataclass
class ImportReport:
    """What became of every file, in the order of their paths, and the space they went to; None when none did."""

    space: ImportedSpace | None = None
    imported: list[Imported] = field(default_factory=list[Imported])


def import_features(
    source: Path,
    uri: str | Path,
    options: ImportOptions,
    slides: Sequence[Slide] | None = None,
    watch: Callable[[int, int], None] = lambda _done, _total: None,
) -> ImportReport:
    """Imports a folder of feature files into one space of a store. A bad file does not stop the others.

    Slides that are committed already are skipped, so an import that was cut off goes on when it is run again. The first
    good file decides dim and sizes; those that differ from it fail. One slide at a time is held in memory.

    Args:
        source: folder of another tool.
        uri: of the store; it is made with the first good file.
        options: which tool's, and what its files do not say.
        slides: of the cohort; only theirs are imported, under their ids. None imports every file under its name.
        watch: called with files done and files in all.

    Raises:
        ConfigError: there is no such folder, or no file of the tool in it.
        StoreError: the store cannot be opened or made.
    """
    paths = _files(source, options)
    names = [_slide_of(path, slides) for path in paths]
    repeated = Counter(_folded(name) for name, _ in names if name)
    report, job = ImportReport(), _Job(uri, options)
    for k, (path, (name, slide)) in enumerate(zip(paths, names, strict=True)):
        watch(k, len(paths))
        if not name:
            report.imported.append(
                Imported(path.stem, "skipped", "the cohort table lists no slide of this name, or several")
            )
        elif repeated[_folded(name)] > 1:
            reason = f"{path}: several files would be slide {name!r} (case is not told apart); name the folder of one"
            report.imported.append(Imported(str(path), "failed", reason))
        else:
            report.imported.append(job.take(path, name, slide))
    watch(len(paths), len(paths))
    job.record_failures()
    report.space = job.space
    return report


class _Job:
    """An import under way: its space is that of the first good file."""

    def __init__(self, uri: str | Path, options: ImportOptions) -> None:
        self._uri = uri
        self._options = options
        self._store: FeatureStore | None = None
        self._failures: dict[str, Her2CacheError] = {}
        self.space: ImportedSpace | None = None

    def take(self, path: Path, slide_id: str, slide: Slide | None) -> Imported:
        """Imports a file; a slide whose file changed since is not taken for done.

        Raises:
            StoreError: there can be no store.
        """
        try:
            encode_slide_id(slide_id)
            if self._is_there(path, slide_id):
                return Imported(slide_id, "skipped", _THERE)
            about = find_slide_file(slide)
            given = replace(self._options.given, slide_mpp=about.mpp)
            patches = checked(SOURCES[self._options.tool].read(path, given), about, path)
            space = self._space_of(patches, path)
        except StoreUnreachableError:
            raise
        except (Her2CacheError, OSError) as error:
            return self._failed(path, slide_id, error)
        if self._store is None:
            self._store = FeatureStore.create(self._uri)
            self._store.add_space(space)
            self.space = space
        try:
            if self._is_there(path, slide_id):  # of the first file only now, for now the space is known
                return Imported(slide_id, "skipped", _THERE)
            shape = _shape(space, slide_id, patches, provenance(patches, about, space.tool, path))
            if not _commit(self._store, shape, patches.features, replace=self._options.replace):
                return Imported(slide_id, "skipped", "another process imported it meanwhile")
        except StoreUnreachableError:
            raise  # concerns every slide
        except (Her2CacheError, OSError) as error:
            return self._failed(path, slide_id, error)
        notes = (*about.notes, *scale_doubts(patches))
        return Imported(slide_id, "done", patches=len(patches.coords), notes=notes)

    def _failed(self, path: Path, slide_id: str, error: Exception) -> Imported:
        known = error if isinstance(error, Her2CacheError) else ConfigError(f"{path} cannot be read ({error})")
        self._failures[slide_id] = known
        return Imported(slide_id, "failed", str(known))

    def _is_there(self, path: Path, slide_id: str) -> bool:
        if self._store is None or self.space is None or self._options.replace:
            return False
        if not self._store.has(slide_id, self.space.key):
            return False
        if file_changed(path, self._store.record(slide_id, self.space.key).slide["imported"]):
            raise ConfigError(
                f"{path} is not the file whose features the store holds as {slide_id!r}: it changed since; import it"
                " anew with --replace"
            )
        return True

    def _space_of(self, patches: SlidePatches, path: Path) -> ImportedSpace:
        """The space of a slide, which must be that of the slides before."""
        options = self._options
        dtype = options.dtype or SOURCES[options.tool].dtype
        require_storable(patches.features, dtype, path, may_round=options.dtype is not None)
        space = imported_space(patches, options.tool, options.embedder, dtype)
        if options.dim not in {None, space.embedder.dim}:
            raise ConfigError(
                f"{path}: features have {space.embedder.dim} numbers, not --dim {options.dim}: of another network"
            )
        if self.space is not None and space != self.space:
            raise ConfigError(
                f"{path}: {difference(space, self.space)}, as the files before have it: it belongs to another feature"
                " space; import it by itself, or give --patch-px, --mpp or --dim if it is the others that are wrong"
            )
        return space

    def record_failures(self) -> None:
        """Writes down why slides have no features, as far as there is a space that they lack."""
        if self._store is None or self.space is None:
            return
        for slide_id, error in self._failures.items():
            try:
                encode_slide_id(slide_id)
            except Her2CacheError:
                continue  # such an id is the failure
            key, name = self.space.key, type(error).__name__
            if not self._store.has(slide_id, key):
                self._store.add_failure(FailureRecord(key, slide_id, name, str(error), "", 1, _now()))


def _files(source: Path, options: ImportOptions) -> list[Path]:
    layout = SOURCES[options.tool]
    if not source.is_dir():
        raise ConfigError(f"{source} is no folder: name the one that {options.tool} wrote its features to")
    found = layout.files(source, options.embedder)
    if not found:
        raise ConfigError(
            f"{source} holds no features of {options.tool}, which lie there as {layout.looks_like}: correct SOURCE, or"
            " --from"
        )
    return found


def _slide_of(path: Path, slides: Sequence[Slide] | None) -> tuple[str, Slide | None]:
    """The slide that a file is named after: a slide_id of the cohort, or else the only slide file of that name.

    Returns:
        Its id, "" where the cohort has none; and its row.
    """
    if slides is None:
        return path.stem, None
    found = [s for s in slides if s.slide_id == path.stem] or [s for s in slides if s.path.stem == path.stem]
    return (found[0].slide_id, found[0]) if len(found) == 1 else ("", None)


def _folded(slide_id: str) -> str:
    """An id as a file system sees it that does not tell A from a."""
    return slide_id.casefold()


def _shape(space: ImportedSpace, slide_id: str, patches: SlidePatches, slide: dict[str, Any]) -> SlideShape:
    return SlideShape(
        slide_id=slide_id,
        space_key=space.key,
        coords=patches.coords,
        views=1,
        dim=space.embedder.dim,
        dtype=space.dtype,
        patch_level0_px=patches.patch_level0_px,
        slide=slide,
    )


def _commit(store: FeatureStore, shape: SlideShape, features: Features, *, replace: bool) -> bool:
    """Writes and commits a slide; one that it replaces is retired only when the new one is whole.

    Returns:
        Whether it was committed; False when another process was first.
    """
    writer = store.writer(shape)
    try:
        writer.write(0, features.astype(shape.dtype, copy=False)[None], np.ones(len(features), np.bool_))  # (1, n, dim)
        if replace:
            retire(store.records, shape.space_key, shape.slide_id)
        return writer.commit({"versions": {"her2cache": version("her2cache")}, "at": _now()}) == "committed"
    finally:
        writer.discard()  # which spares what is committed


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
