"""A page as a reader of HTML sees it, without a browser."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "input", "link", "img"}
TEXTS = {"script", "style"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list["Element | str"] = field(default_factory=list)

    def all(self, tag: str, **attributes: str) -> list["Element"]:
        """All within, of a tag; with these attributes; `class_` is one of its classes."""
        return [e for e in self.walk() if e.tag == tag and e.fits(attributes)]

    def fits(self, wanted: dict[str, str]) -> bool:
        wanted = dict(wanted)
        name = wanted.pop("class_", None)
        classes = self.attributes.get("class", "").split()
        return (name is None or name in classes) and wanted.items() <= self.attributes.items()

    def one(self, tag: str, **attributes: str) -> "Element":
        (found,) = self.all(tag, **attributes)
        return found

    def walk(self) -> Iterator["Element"]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child.walk()

    @property
    def text(self) -> str:
        """What is read: scripts and styles are not."""
        parts = [
            child if isinstance(child, str) else f" {child.text} "
            for child in self.children
            if isinstance(child, str) or child.tag not in TEXTS
        ]
        return " ".join("".join(parts).split())


class _Tree(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.stack = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.stack[-1].children.append(element)
        if tag not in VOID:
            self.stack.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.stack[-1].tag == tag, f"</{tag}> ends <{self.stack[-1].tag}>"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        self.stack[-1].children.append(data)


def parse(page: str) -> Element:
    """Its root. Every element must be closed where it belongs."""
    tree = _Tree()
    tree.feed(page)
    tree.close()
    assert len(tree.stack) == 1, f"<{tree.stack[-1].tag}> is not closed"
    return tree.stack[0]
