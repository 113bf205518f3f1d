"""The space key: a digest of every number that decides what is stored, and of nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from her2cache import embedder
from her2cache.embedder import Augmentation, EmbedderSpec, FeatureSpace, Resize, canonical_json, tensors_sha256
from her2cache.ingest import ReadOptions
from her2cache.tiling import PatchSpec
from her2cache.tissue import PRESETS, THRESHOLDS

SPACE = FeatureSpace(
    PatchSpec(),
    PRESETS["he"],
    EmbedderSpec("alexnet-imagenet", 1024, 96, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "ab" * 32),
)
PARTS = ("patch", "tissue", "embedder")
FIELDS = [(part, field.name) for part in PARTS for field in dataclasses.fields(getattr(SPACE, part))] + [
    (None, "views"),
    (None, "dtype"),
]
FIELDS.remove(("patch", "resample"))  # there is no other
BOUNDS = {("tissue", name): limits for name, limits in THRESHOLDS.items()} | {
    ("tissue", "mpp"): (0.5, 100.0),
    ("patch", "mpp"): (1e-3, 1e3),
    ("patch", "min_tissue"): (0.0, 1.0),
    ("patch", "snap_tolerance"): (0.0, 0.99),
    ("patch", "min_edges"): (0.0, 1e6),
}


def _get(space: FeatureSpace, part: str | None, name: str) -> Any:
    return getattr(space if part is None else getattr(space, part), name)


def _set(space: FeatureSpace, part: str | None, name: str, value: Any) -> FeatureSpace:
    if part is None:
        return dataclasses.replace(space, **{name: value})
    return dataclasses.replace(space, **{part: dataclasses.replace(getattr(space, part), **{name: value})})


def _others(value: Any, bounds: tuple[float, float] | None = None) -> st.SearchStrategy[Any]:
    """Other values of the same kind."""
    if value is None:  # a resize
        sides, filters = st.integers(1, 999), st.sampled_from(["bilinear", "bicubic"])
        return st.none() | st.builds(Resize, sides, sides, filters, st.booleans())
    if isinstance(value, bool):
        return st.booleans()
    if bounds is not None:
        return st.floats(*bounds)
    if isinstance(value, tuple):
        return st.tuples(*(_others(item) for item in value))
    if isinstance(value, str):
        return st.text(max_size=20)
    if isinstance(value, int):
        return st.integers(1, 10**6)
    return st.floats(allow_nan=False, allow_infinity=False)


class TestKey:
    @given(st.data(), st.sampled_from(FIELDS))
    def test_changes_with_every_field(self, data: st.DataObject, field: tuple[str | None, str]) -> None:
        value = data.draw(_others(_get(SPACE, *field), BOUNDS.get(field)))
        changed = _set(SPACE, *field, value)
        assert (changed.key == SPACE.key) == (value == _get(SPACE, *field))

    @given(st.data(), st.sampled_from([field.name for field in dataclasses.fields(Augmentation)]))
    def test_augmentation_counts_where_there_are_augmented_views(self, data: st.DataObject, name: str) -> None:
        value = getattr(Augmentation(), name)
        other = data.draw(_others(value).filter(lambda other: other != value))
        changed = _set(SPACE, "augmentation", name, other)
        assert changed.key == SPACE.key
        assert dataclasses.replace(changed, views=2).key != dataclasses.replace(SPACE, views=2).key

    @given(st.data())
    def test_equal_spaces_have_equal_keys(self, data: st.DataObject) -> None:
        """Whole numbers too, which a table gives as 96.0 and a command line as 96."""
        space = SPACE
        for field in data.draw(st.lists(st.sampled_from(FIELDS), max_size=5)):
            value = _get(space, *field)
            if isinstance(value, float | int) and not isinstance(value, bool) and float(value).is_integer():
                space = _set(space, *field, data.draw(st.sampled_from([int(value), float(value)])))
        assert space == SPACE
        assert space.key == SPACE.key

    @given(st.floats(1e-6, 1e6), st.integers(1, 3))
    def test_the_smallest_change_of_a_number_counts(self, value: float, steps: int) -> None:
        near = value
        for _ in range(steps):
            near = math.nextafter(near, math.inf)
        assume(near != value)
        assert _set(SPACE, "patch", "mpp", value).key != _set(SPACE, "patch", "mpp", near).key

    def test_changes_with_the_schema(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = SPACE.key
        monkeypatch.setattr(embedder, "SCHEMA", embedder.SCHEMA + 1)
        assert SPACE.key != before

    def test_is_pinned(self) -> None:
        """If this fails, every store out there has lost its features: raise SCHEMA, or undo the change."""
        assert SPACE.key == "1a5602132da2b5708ae010cd57714e339ef5bf852e2c6a0451945e17443ae21e"

    @pytest.mark.parametrize(
        "change", [{"side": 257}, {"crop": 192}, {"interpolation": "bicubic"}, {"antialias": False}]
    )
    def test_every_part_of_a_resize_counts(self, change: dict[str, Any]) -> None:
        resize = Resize(256, 224)
        one = _set(SPACE, "embedder", "resize", resize)
        assert one.key != _set(SPACE, "embedder", "resize", dataclasses.replace(resize, **change)).key

    def test_survives_json(self) -> None:
        document = json.loads(json.dumps(SPACE.document()))
        assert canonical_json(document) == canonical_json(SPACE.document())

    def test_holds_nothing_of_how_the_work_is_done(self) -> None:
        """Only patches, tissue, embedder, views and dtype; no workers, device, block size, package version."""
        assert set(SPACE.document()) == {"patch", "tissue", "embedder", "views", "dtype", "schema"}
        read = {field.name for field in dataclasses.fields(ReadOptions)}
        assert not {"block", "max_bad_patches", "assume_power", "allow_upsample"} & set(SPACE.document())
        assert read - {"block", "max_bad_patches", "assume_power", "allow_upsample"} == {"patch", "tissue"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class TestCanonicalJson:
    @given(st.dictionaries(st.text(), JSON, max_size=5), st.randoms())
    def test_order_does_not_matter_and_nothing_is_lost(self, document: dict[str, Any], random: Any) -> None:
        items = list(document.items())
        random.shuffle(items)
        text = canonical_json(document)
        assert canonical_json(dict(items)) == text
        assert json.loads(text) == document
        assert text.isascii()

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_no_number_that_json_lacks(self, value: float) -> None:
        with pytest.raises(ValueError):
            canonical_json({"mpp": value})


TENSORS = {"0.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "0.bias": np.zeros(2, np.float32)}


class TestTensorsDigest:
    def test_order_and_layout_do_not_matter(self) -> None:
        weight, bias = TENSORS["0.weight"], TENSORS["0.bias"]
        assert tensors_sha256({"0.bias": bias, "0.weight": np.asfortranarray(weight)}) == tensors_sha256(TENSORS)

    @pytest.mark.parametrize(
        "change",
        [
            {"0.weight": np.arange(6, dtype=np.float32).reshape(3, 2)},
            {"0.weight": np.arange(6, dtype=np.float64).reshape(2, 3)},
            {"0.weight": np.arange(6, dtype=np.int32).reshape(2, 3)},
            {"0.weight": np.nextafter(np.arange(6, dtype=np.float32), np.float32(9)).reshape(2, 3)},
            {"0.bias": np.ones(2, np.float32)},
            {"1.bias": np.zeros(2, np.float32)},
        ],
    )
    def test_anything_else_does(self, change: dict[str, np.ndarray]) -> None:
        assert tensors_sha256(TENSORS | change) != tensors_sha256(TENSORS)

    def test_names_count(self) -> None:
        swapped = {"a": TENSORS["0.weight"], "b": TENSORS["0.weight"] + 1}
        assert tensors_sha256(swapped) != tensors_sha256({"a": swapped["b"], "b": swapped["a"]})

    def test_is_pinned(self) -> None:
        assert tensors_sha256(TENSORS) == "4160d23513ae72df8b6b9fb0214aa014166f5482161d26e870143ae4c37849ff"
