"""What a browser makes of a page of ours."""

from __future__ import annotations

from html.parser import HTMLParser

# Elements without an end.
_VOID = {"meta", "br", "img", "input"}


class Elements(HTMLParser):
    """The elements of a page, each with its attributes, every one closed. `open`: around what is read, with classes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, str]] = []

    def read(self, html: str) -> None:
        """Read all of a page."""
        self.feed(html)
        self.close()
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in _VOID:
            self.open.append((tag, attributes.get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag
