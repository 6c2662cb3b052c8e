"""A page as a browser would read it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "img", "line", "circle"}


class Document(HTMLParser):
    """Elements, attributes, text, and what style and scripts hold; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = self.style = ""
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            self.style += data
        elif self.open[-1:] == ["script"]:
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def data(self) -> Any:
        """What the charts are drawn from."""
        return json.loads(self.scripts[0])

    def attributes(self, name: str) -> list[str]:
        """All values of an attribute."""
        return [attributes[name] or "" for _, attributes in self.tags if name in attributes]


TAGS = VOID | {
    "html", "head", "title", "style", "script", "body", "header", "nav", "main", "section", "h1", "h2", "h3", "ul", "li", "div",
    "strong", "figure", "figcaption", "details", "summary", "p", "span", "table", "thead", "tbody", "tr", "th", "td", "pre", "a",
    "button", "svg",
}  # fmt: skip
HANDLERS = re.compile(r"on[a-z]+")


def check_is_harmless(text: str) -> Document:
    """Parse a page; nothing in it loads anything, and no script runs but the two that its policy names."""
    document = Document(text)
    assert {tag for tag, _ in document.tags} <= TAGS
    assert not [name for _, attributes in document.tags for name in attributes if HANDLERS.fullmatch(name)]
    assert all(value.startswith("data:image/png;base64,") for value in document.attributes("src"))
    assert all(re.fullmatch(r"#[a-z]+", value) for value in document.attributes("href"))
    assert not re.search(r"url\(|@import|expression", document.style)
    (policy,) = [attributes["content"] or "" for _, attributes in document.tags if "Policy" in str(attributes)]
    assert policy.startswith("default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'sha256-")
    assert len(document.scripts) == 3
    hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in document.scripts[1:]]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert "plotly.js v" in document.scripts[1][:200]
    assert not re.search("[<>&]", document.scripts[0])
    return document
