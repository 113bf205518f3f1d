"""An HTML page, read as strictly as a browser is lenient."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "img", "input", "br", "link", "hr"}


@dataclass
class Element:
    """An element with its attributes, its text and that of all within it, and the names of those around it."""

    name: str
    attributes: dict[str, str | None]
    around: tuple[str, ...]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """All elements of a page, in order; an element that is not closed where it should be is an error."""

    html: str
    elements: list[Element] = field(default_factory=list[Element])
    _open: list[Element] = field(default_factory=list[Element])

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice"
        element = Element(tag, dict(attrs), tuple(each.name for each in self._open))
        self.elements.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open
        assert self._open.pop().name == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, name: str, within: str = "") -> list[Element]:
        return [e for e in self.elements if e.name == name and (not within or within in e.around)]

    def ids(self) -> list[str]:
        return [i for e in self.elements if (i := e.attributes.get("id"))]
