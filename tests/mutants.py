"""Slides damaged at random, the same ones every time: small healthy slides, and mutations of them."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from her2cache.units import RgbImage
from tests.dicoms import write_series
from tests.slides import reduced, texture, write_jpeg2000, write_ome, write_scn, write_slide

WIDTH, HEIGHT = 256, 192
APERIO = "Aperio Image Library v12.0.0 \r\n256x192 [0,0 256x192] (64x64) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5"


@dataclass(frozen=True)
class Mutant:
    """A damaged slide.

    Attributes:
        number: of the mutant; with the seed it says all.
        container: name of the healthy slide that it was made of.
        change: what was done to it.
        content: bytes of the file.
        suffix: of its name.
    """

    number: int
    container: str
    change: str
    content: bytes
    suffix: str


def write_healthy(folder: Path) -> dict[str, Path]:
    """Writes a healthy slide of 256 x 192 px at 0.5 um/px in each container: name -> file."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = texture(WIDTH, HEIGHT)
    ycbcr = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    two = {"factors": (1, 2)}
    return {
        "svs-jpeg": write_slide(folder / "a.svs", pixels, **two, mpp=None, description=APERIO, software=False),
        "svs-jpeg2000": write_jpeg2000(folder / "b.svs", pixels, 33003),
        "svs-jpeg2000-rgb": write_jpeg2000(folder / "c.svs", pixels, 33005),
        "ndpi": write_ndpi(folder / "d.ndpi", pixels),
        "tiff-jpeg": write_slide(folder / "e.tiff", ycbcr, photometric="ycbcr"),
        "tiff-deflate": write_slide(folder / "f.tiff", pixels, **two, compression="deflate", predictor=True),
        "tiff-lzw": write_slide(folder / "g.tiff", pixels, **two, compression="lzw"),
        "tiff-plain": write_slide(folder / "h.tiff", pixels, **two, compression=None),
        "strips-lzw": write_slide(folder / "i.tiff", pixels, compression="lzw", segment_px=None, rowsperstrip=32),
        "ome-tiff": _without_uuid(write_ome(folder / "j.ome.tiff", pixels)),
        "scn": write_scn(folder / "m.scn", [(pixels, (64, 128))], glass_px=(600, 400), factors=(1, 2)),
        "dicom-jpeg": write_series(folder / "k", [pixels])[0],
        "dicom-plain": write_series(folder / "l", [pixels], jpeg=False)[0],
    }


def _without_uuid(path: Path) -> Path:
    """tifffile makes up another one every time."""
    path.write_bytes(re.sub(rb"urn:uuid:[-0-9a-f]{36}", b"urn:uuid:" + b"0" * 36, path.read_bytes()))
    return path


def write_ndpi(path: Path, pixels: RgbImage) -> Path:
    """Writes an NDPI: 64-bit offsets, each level one strip of JPEG with restart markers and a tag of their places."""
    file = bytearray(b"II*\0" + bytes(8))
    link = 4  # where the offset of the next directory goes
    for factor in (1, 2):
        level = pixels if factor == 1 else reduced(pixels, factor)
        stream = BytesIO()
        Image.fromarray(level).save(stream, "JPEG", quality=90, subsampling=0, restart_marker_blocks=4)
        data = stream.getvalue()
        scan = data.index(b"\xff\xda")
        first = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4])
        marks = [k + 2 for k in range(first, len(data) - 2) if data[k] == 0xFF and 0xD0 <= data[k + 1] <= 0xD7]
        starts = np.array([first, *marks], np.uint32).tobytes()
        strip = _append(file, data)
        entries = [
            (256, 4, 1, level.shape[1]),
            (257, 4, 1, level.shape[0]),
            (258, 3, 3, _append(file, struct.pack("<3H", 8, 8, 8))),
            (259, 3, 1, 7),
            (262, 3, 1, 6),
            (271, 2, 10, _append(file, b"Hamamatsu\0")),
            (273, 4, 1, strip),
            (277, 3, 1, 3),
            (278, 4, 1, level.shape[0]),
            (279, 4, 1, len(data)),
            (282, 5, 1, _append(file, struct.pack("<2I", 20000 // factor, 1))),
            (283, 5, 1, _append(file, struct.pack("<2I", 20000 // factor, 1))),
            (296, 3, 1, 3),
            (65420, 4, 1, 1),
            (65421, 11, 1, struct.unpack("<I", struct.pack("<f", 20.0 / factor))[0]),
            (65426, 4, len(starts) // 4, _append(file, starts)),
        ]
        struct.pack_into("<Q", file, link, len(file))
        file += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        link = len(file)
        file += bytes(8 + 4 * len(entries))  # the next directory, and the high halves of the values
    path.write_bytes(file)
    return path


def _append(file: bytearray, data: bytes) -> int:
    file += bytes(len(file) % 2)
    place = len(file)
    file += data
    return place


def mutants(healthy: dict[str, Path], seed: int, count: int, first: int = 0) -> Iterator[Mutant]:
    """Damaged slides number `first` to `first + count - 1` of a seed, container after container."""
    for number in range(first, first + count):
        yield mutant(healthy, seed, number)


def mutant(healthy: dict[str, Path], seed: int, number: int) -> Mutant:
    """The damaged slide of a number."""
    names = sorted(healthy)
    name = names[number % len(names)]
    path = healthy[name]
    rng = np.random.default_rng([seed, number])
    content = bytearray(path.read_bytes())
    tags = [] if name.startswith("dicom") else list(tags_of(bytes(content)))
    kinds = [*_BYTES, *([_edit_tag] * 8 if tags else [_edit_dicom] * 4)]
    changes: list[str] = []
    for _ in range(int(rng.choice([1, 1, 1, 2]))):
        if len(content) < 16:
            break
        kind = kinds[int(rng.integers(len(kinds)))]
        changes.append(kind(content, rng, tags))
    suffix = ".ome.tiff" if path.name.endswith(".ome.tiff") else path.suffix
    return Mutant(number, name, ", ".join(changes), bytes(content), suffix)


@dataclass(frozen=True)
class Tag:
    """Where an entry of a TIFF lies: of the entry itself, and of its values."""

    code: int
    place: int
    kind: int
    count: int
    values: int
    order: str
    big: bool


_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 11: 4, 12: 8, 13: 4, 16: 8, 18: 8}
NEXT = -1
"""Stands for the code of an entry where it is the offset of the next directory."""
_WANTED = {256, 257, 258, 259, 262, 270, 273, 277, 278, 279, 282, 284, 296, 317, 322, 323, 324, 325, 330, 347, 65426}


def tags_of(content: bytes) -> Iterator[Tag]:
    """Entries of the chained directories of a healthy TIFF."""
    order = "<" if content[:2] == b"II" else ">"
    big = struct.unpack(order + "H", content[2:4])[0] == 43
    word, head, entry, inline = ("Q", 8, 20, 8) if big else ("I", 2, 12, 4)
    (place,) = struct.unpack_from(order + word, content, 8 if big else 4)
    while place:
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), content, place)
        for k in range(count):
            at = place + head + k * entry
            code, kind = struct.unpack_from(order + "HH", content, at)
            (values,) = struct.unpack_from(order + word, content, at + 4)
            start = at + entry - inline
            if _SIZES.get(kind, 1) * values > inline:
                (start,) = struct.unpack_from(order + word, content, start)
            yield Tag(code, at, kind, values, start, order, big)
        at = place + head + count * entry
        yield Tag(NEXT, at, 16 if big else 4, 1, at, order, big)
        (place,) = struct.unpack_from(order + word, content, at)


def _edit_tag(content: bytearray, rng: np.random.Generator, tags: list[Tag]) -> str:
    wanted = [tag for tag in tags if tag.code in _WANTED or tag.code == NEXT]
    tag = wanted[int(rng.integers(len(wanted)))]
    word = "Q" if tag.big else "I"
    if tag.code == NEXT:
        others = [
            0,
            8,
            tag.place,
            len(content) + 100,
            int(rng.integers(len(content))),
            tags[0].place - (8 if tag.big else 2),
        ]
        value = others[int(rng.integers(len(others)))]
        put(content, tag.place, tag.order + word, value)
        return f"next directory {value}"
    what = str(rng.choice(["type", "count", "offset", "value", "value", "value", "code"]))
    if what == "type":
        value = int(rng.choice([0, 1, 2, 3, 4, 5, 7, 12, 13, 16, 99, 65535]))
        put(content, tag.place + 2, tag.order + "H", value)
    elif what == "code":
        value = int(rng.choice([0, 65535, tag.code + 1]))
        put(content, tag.place, tag.order + "H", value)
    elif what == "count":
        value = _strange(rng, tag.count)
        put(content, tag.place + 4, tag.order + word, value)
    elif what == "offset":
        value = _strange(rng, tag.values)
        put(content, tag.place + (12 if tag.big else 8), tag.order + word, value)
    else:
        letter = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(tag.kind, "B")
        size = struct.calcsize(letter)
        which = int(rng.integers(max(1, tag.count * _SIZES.get(tag.kind, 1) // size)))
        at = tag.values + which * size
        if at + size > len(content):
            return f"tag {tag.code}: nothing"
        (before,) = struct.unpack_from(tag.order + letter, content, at)
        value = _strange(rng, before)
        if tag.code == 259 and rng.random() < 0.7:
            value = int(rng.choice([1, 5, 6, 7, 8, 32773, 33003, 33005, 34712, 34892, 50000, 50001, 50002, 99]))
        what = f"value {which}"
        put(content, at, tag.order + letter, value)
    return f"tag {tag.code}: {what} {value}"


def _strange(rng: np.random.Generator, value: int) -> int:
    choices = [0, 1, value - 1, value + 1, value * 2, value // 2, value + 64, 65535, 2**31 - 1, 2**32 - 1, 2**62]
    return int(choices[int(rng.integers(len(choices)))])


def put(content: bytearray, at: int, form: str, value: int) -> None:
    size = struct.calcsize(form)
    if at + size <= len(content):
        struct.pack_into(form, content, at, value % 256**size)


_NUMBERS = (b"\x48\x00\x06\x00UL\x04\x00", b"\x48\x00\x07\x00UL\x04\x00", b"\x28\x00\x10\x00US\x02\x00")
_NUMBERS += (b"\x28\x00\x11\x00US\x02\x00", b"\x28\x00\x02\x00US\x02\x00", b"\x28\x00\x00\x01US\x02\x00")


def _edit_dicom(content: bytearray, rng: np.random.Generator, _: list[Tag]) -> str:
    """Sizes of the matrix and of frames, samples and bits; or the table of frames, or the length of a frame."""
    if rng.random() < 0.5:
        head = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
        at = content.find(head) + len(head)
        form = "<I" if head[4:6] == b"UL" else "<H"
    else:
        at = content.find(b"\xe0\x7f\x10\x00") + int(rng.integers(8, 160))
        form = "<I"
    if at < 16 or at + 4 > len(content):
        return "nothing"
    (before,) = struct.unpack_from(form, content, at)
    value = _strange(rng, before)
    put(content, at, form, value)
    return f"DICOM @{at}: {value}"


def _flip(content: bytearray, rng: np.random.Generator, _: list[Tag]) -> str:
    count = int(rng.choice([1, 1, 2, 8, 64]))
    for at in rng.integers(len(content), size=count):
        content[at] ^= 1 << int(rng.integers(8))
    return f"{count} bits flipped"


def _flip_head(content: bytearray, rng: np.random.Generator, _: list[Tag]) -> str:
    at = int(rng.integers(min(512, len(content))))
    content[at] ^= 1 << int(rng.integers(8))
    return f"bit flipped @{at}"


def _truncate(content: bytearray, rng: np.random.Generator, _: list[Tag]) -> str:
    keep = int(len(content) * rng.random())
    del content[keep:]
    return f"truncated to {keep}"


def _fill(content: bytearray, rng: np.random.Generator, _: list[Tag]) -> str:
    size = min(int(rng.choice([4, 16, 100, 512, 4096])), len(content))
    at = int(rng.integers(len(content) - size + 1))
    filling = [bytes(size), b"\xff" * size, rng.bytes(size)][int(rng.integers(3))]
    content[at : at + size] = filling
    return f"{size} bytes of {filling[:1].hex()}.. @{at}"


def _swap(content: bytearray, rng: np.random.Generator, _: list[Tag]) -> str:
    size = min(int(rng.choice([16, 512, 4096])), len(content) // 2)
    a, b = (int(v) for v in rng.integers(len(content) - size + 1, size=2))
    content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]
    return f"{size} bytes swapped @{a} @{b}"


def _shift(content: bytearray, rng: np.random.Generator, _: list[Tag]) -> str:
    at, size = int(rng.integers(len(content))), int(rng.choice([1, 7, 512]))
    if rng.random() < 0.5:
        del content[at : at + size]
        return f"{size} bytes lost @{at}"
    content[at:at] = rng.bytes(size)
    return f"{size} bytes come in @{at}"


_BYTES: list[Callable[[bytearray, np.random.Generator, list[Tag]], str]] = [
    _flip,
    _flip,
    _flip_head,
    _truncate,
    _fill,
    _fill,
    _swap,
    _shift,
]
