"""The documentation as it was built: public names are in it, and nothing of it is elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("mkdocstrings") is None:
    pytest.skip("needs mkdocstrings: pip install '.[docs]'", allow_module_level=True)

import griffe
from mkdocstrings import Inventory

pytestmark = pytest.mark.site

ROOT = Path(__file__).parent.parent
SITE = ROOT / "build" / "site"
PUBLIC = ["adamas", "adamas.torch"]
PUBLIC += [
    f"adamas.{name}"
    for name in ("equations", "hyper", "bias", "reference", "formats", "rounding", "norm")
]
# What a browser fetches by itself: not links, which readers follow.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}
FETCHING_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "modulepreload"}


def members(thing: griffe.Object | griffe.Alias) -> Iterator[griffe.Object | griffe.Alias]:
    """Public names of a module or class, and of the classes among them."""
    for member in thing.members.values():
        if member.is_public and not member.is_module and not member.name.startswith("_"):
            yield member
            if member.is_class:
                yield from members(member)


def named(section: griffe.DocstringSection) -> set[str]:
    kinds = (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.attributes)
    return {item.name for item in section.value} if section.kind in kinds else set()


def in_the_class(thing: griffe.Object | griffe.Alias) -> bool:
    """Whether a class's own docstring tells of an attribute."""
    owner = thing.parent
    if not thing.is_attribute or owner is None or owner.docstring is None:
        return False
    return any(thing.name in named(section) for section in owner.docstring.parse("google"))


PACKAGE = griffe.load("adamas", search_paths=[ROOT / "src"], resolve_aliases=True)
NAMES = [
    thing
    for module in PUBLIC
    for thing in members(PACKAGE[module.partition(".")[2]] if "." in module else PACKAGE)
]


@pytest.mark.parametrize("thing", NAMES, ids=lambda thing: thing.path)
def test_public_names_are_documented(thing: griffe.Object | griffe.Alias) -> None:
    assert thing.has_docstring or in_the_class(thing), f"{thing.path} needs a docstring"


def test_public_names_are_in_the_reference() -> None:
    with (SITE / "objects.inv").open("rb") as file:
        there = set(Inventory.parse_sphinx(file))
    wanted = {thing.path for thing in NAMES if not in_the_class(thing)}
    assert not wanted - there
    assert len(wanted) > 50


class Fetches(HTMLParser):
    """Finds the addresses that a page fetches."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in FETCHED and given.get(FETCHED[tag]):
            self.addresses.append(given[FETCHED[tag]] or "")
        elif tag == "link" and FETCHING_LINKS & set((given.get("rel") or "").split()):
            self.addresses.append(given.get("href") or "")


def fetches(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        return re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s]+)", text)
    parser = Fetches()
    parser.feed(text)
    return parser.addresses


def test_nothing_is_fetched_from_elsewhere() -> None:
    files = [*SITE.rglob("*.html"), *SITE.rglob("*.css"), *SITE.rglob("*.svg")]
    found = {str(path): address for path in files for address in fetches(path)}
    assert not {k: a for k, a in found.items() if re.match(r"(?:\w+:)?//", a)}
    assert len(found) > 10
