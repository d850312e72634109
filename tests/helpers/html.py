"""Reads a page of HTML and fails where its tags do not close in order."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "source", "br"}


class Tags(HTMLParser):
    """Every tag with its attributes; it fails where tags do not close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closes out of order"

    def handle_data(self, data: str) -> None:
        self.text += data
