"""One tree of exceptions.

Every exception takes exactly one positional message, so that it survives pickling between Ray
processes. A message gives the fact, the likely cause and the remedy.
"""

from __future__ import annotations


class Her2CacheError(Exception):
    """Root of every error that her2cache raises on purpose."""


class ConfigError(Her2CacheError):
    """An option, an experiment file or an argument is wrong."""


class CohortError(Her2CacheError):
    """A cohort table is malformed, or contradicts itself or the store."""


class SlideError(Her2CacheError):
    """A slide cannot be used."""


class SlideOpenError(SlideError):
    """A slide file is missing, unreadable, truncated or in an unknown format."""


class MissingMppError(SlideError):
    """The scale of a slide (um/px) is unknown or implausible."""


class DecodeError(SlideError):
    """Too much of a slide's pixel data cannot be decoded."""


class EmptyPlanError(SlideError):
    """A slide yields no eligible patch."""


class EmbedderError(Her2CacheError):
    """An embedder is unknown or cannot be used here."""


class WeightsMismatchError(EmbedderError):
    """A weights file does not fit the embedder it was given for."""


class StoreError(Her2CacheError):
    """A feature store cannot be read or written."""


class StoreUnreachableError(StoreError):
    """An object store does not answer, or refuses us: nothing is wrong with what is being stored."""


class StoreSilentError(StoreUnreachableError):
    """No server answers at all, however long it was waited for."""


class SchemaVersionError(StoreError):
    """A store was written with a schema that this version does not read."""


class IncompleteSlideError(StoreError):
    """A slide has no committed features in a feature space."""


class CorruptFeaturesError(StoreError):
    """Stored features do not match their checksum or their record."""


class BagError(Her2CacheError):
    """Bags cannot be drawn as asked."""


class TrainingError(Her2CacheError):
    """A fit failed (no finite loss, a class missing in training, ...)."""


class SweepError(Her2CacheError):
    """A sweep directory is incomplete or does not fit what was asked of it."""
