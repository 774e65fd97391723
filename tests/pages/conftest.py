"""Pages in a real browser: Chromium without a window, and what it says of each page."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pages import PAGES, Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

# Set where a browser must be there, so that nothing passes by not being tested.
REQUIRED = "ADAMAS_BROWSER"


def lacking(what: str) -> None:
    """Skips, or fails where a browser is required."""
    (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(what)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, started once: the system's, since nothing is downloaded here."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if program is None:
        lacking("there is no Chromium: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacking("there is no Playwright: pip install playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def visit(browser: Browser) -> Visit:
    """Opens a file: the page, and a list of what it complains of or asks for beside it."""

    @contextmanager
    def visit(file: Path) -> Iterator[tuple[Page, list[str]]]:
        said: list[str] = []

        def refuse(route: Route) -> None:
            said.append(f"asked for {route.request.url}")
            route.abort()

        with browser.new_context() as context:
            context.route(lambda url: not url.startswith(("file:", "data:", "blob:")), refuse)
            page = context.new_page()
            page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: said.append(f"error: {error}"))
            page.goto(file.as_uri())
            yield page, said

    return visit


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where a page is, which one of the processes that test writes for all of them."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def write(name: str) -> Path:
        folder = shared / f"page of {name}"
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
            place = folder / "place"
            if not place.exists():
                (folder / "files").mkdir()
                place.write_text(str(PAGES[name].write(folder / "files")), encoding="utf-8")
            return Path(place.read_text(encoding="utf-8"))

    return write


@pytest.fixture(scope="session", params=PAGES)
def visited(
    request: pytest.FixtureRequest, visit: Visit, written: Callable[[str], Path]
) -> Iterator[tuple[str, Page, list[str]]]:
    """Each page, opened for all of its tests."""
    name = request.param
    with visit(written(name)) as (page, said):
        yield name, page, said


@pytest.fixture
def page(visited: tuple[str, Page, list[str]]) -> Iterator[Page]:
    """Each page; what it says on its console, or asks for, fails the test."""
    _, page, said = visited
    yield page
    assert said == []
