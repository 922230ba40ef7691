"""What is in a page, as a browser would take it: text, tags, and whatever would be fetched or run."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br"}
"""Elements that this program writes without an end tag."""


class Page(HTMLParser):
    """Parses a page, and fails where tags are not nested or closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.style = ""
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}: {attrs}"
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        assert self._open.pop() == tag

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> ends nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
        elif data.strip():
            self.texts.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of this name."""
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def check_alone(page: Page) -> None:
    """Nothing is fetched from outside, nothing runs, and every link within the page leads somewhere."""
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} {name}"
            if name in ("src", "href", "srcset", "action", "poster"):
                assert value.startswith(("data:image/png;base64,", "data:application/yaml;base64,")) or (
                    value.startswith("#") and value[1:] in ids
                ), f"{tag} {name}={value[:80]}"
            if name == "style":
                assert re.fullmatch(r"((left|top|width):-?[\d.]+%;?)+", value), value
    assert "url(" not in page.style
    assert "@import" not in page.style
    (policy,) = (item["content"] for item in page.all("meta") if "http-equiv" in item)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
