"""Pictures inside the page: small enough that a page of many slides can still be sent by mail."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

BUDGET_BYTES = 9_000_000
"""Of all pictures of slides together; base64 makes them a third larger."""

_STEPS = ((1800, 80), (1400, 80), (1100, 80), (850, 75), (600, 70), (420, 60))
"""Width in px and JPEG quality, from what a laptop can show down to what can just be read."""

_COLOURS = 128


def drawing(path: Path) -> str:
    """A picture of lines as a data URI: a PNG of few colours, so that thin lines stay sharp."""
    with Image.open(path) as picture:
        few = _on_white(picture).quantize(_COLOURS, dither=Image.Dither.NONE)
    return _uri("png", few, optimize=True)


def photographs(paths: Sequence[Path], budget: int = BUDGET_BYTES) -> list[str]:
    """Pictures of slides as data URIs: JPEGs, all by the largest step at which they fit into the budget together.

    The last of them are "" where even the smallest step is too large.
    """
    made: list[str] = []
    for width, quality in _STEPS:
        made = [_photograph(path, width, quality) for path in paths]
        if sum(map(len, made)) * 3 // 4 <= budget:
            return made
    kept, used = [""] * len(made), 0
    for k, uri in enumerate(made):
        used += len(uri) * 3 // 4
        if used > budget:
            break
        kept[k] = uri
    return kept


def _photograph(path: Path, width: int, quality: int) -> str:
    with Image.open(path) as picture:
        shown = _on_white(picture)
    if shown.width > width:
        shown = shown.resize((width, round(shown.height * width / shown.width)), Image.Resampling.LANCZOS)
    return _uri("jpeg", shown, quality=quality, optimize=True)


def _on_white(picture: Image.Image) -> Image.Image:
    whole = picture.convert("RGBA")
    white = Image.new("RGBA", whole.size, "white")
    return Image.alpha_composite(white, whole).convert("RGB")


def _uri(kind: str, picture: Image.Image, **options: int | bool) -> str:
    file = BytesIO()
    picture.save(file, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
