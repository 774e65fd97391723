"""The code of the README and of the documentation is run as it is written, page by page.

Python blocks of a page share a namespace, and all of a page an empty folder. What a ``console``
block prints after a command must be what the command prints, ``...`` standing for anything. A block
after ``<!-- not run: REASON -->`` is compiled, its commands' options are checked.
"""

from __future__ import annotations

import doctest
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from adamas import cli

ROOT = Path(__file__).parent.parent
README, TRANSLATED = ROOT / "README.md", ROOT / "README.zh-CN.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: (.+) -->\s*")
TARGETS = set(re.findall(r"^([a-z]\w*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))


class Block(NamedTuple):
    """A block of code, where it begins and whether it is run."""

    line: int
    language: str
    code: str
    run: bool


class Page(NamedTuple):
    """A page's path, and what its blocks may use."""

    path: Path
    namespace: dict[str, Any]
    command: Callable[[list[str]], tuple[int, str]]


def tokens(path: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8"))


def blocks(path: Path) -> Iterator[Block]:
    run = True
    for token in tokens(path):
        if token.type == "html_block" and NOT_RUN.fullmatch(token.content):
            run = False
        elif token.type == "fence":
            yield Block((token.map or [0])[0] + 1, token.info.strip(), token.content, run)
            run = True


def run_python(page: Page, block: Block) -> None:
    # Lines before it, so that an error names the page's own line.
    code = compile("\n" * block.line + block.code, str(page.path), "exec")
    if block.run:
        exec(code, page.namespace)


def run_console(page: Page, block: Block) -> None:
    for command, wanted in commands(block.code):
        program, *arguments = shlex.split(command, comments=True)
        name = Path(program).name
        if name == "adamas":
            if not block.run:
                check_options(arguments)
                continue
            status, printed = page.command(arguments)
            assert status == 0, f"line {block.line}: {command}\n{printed}"
            check_output(command, wanted, printed)
        elif name == "make":
            assert arguments[0] in TARGETS, command
        elif name in ("python", "bash"):
            script = next((a for a in arguments if a.endswith(".py") or "/" in a), "README.md")
            assert (ROOT / script).exists(), command
        elif name == "pip":
            assert set(re.findall(r"\[(\w+)\]", command)) <= EXTRAS, command
        else:
            assert name in ("git", "cd"), f"how shall {name} be tested? {command}"


def commands(code: str) -> Iterator[tuple[str, str]]:
    """Each command of a console, and what it prints if that is there."""
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def check_options(arguments: list[str]) -> None:
    """Lets the command line parse a command, without running it."""
    import typer

    from adamas.lab.app import app

    group: Any = typer.main.get_command(app)
    with group.make_context("adamas", [], resilient_parsing=True) as context:
        name, command, rest = group.resolve_command(context, arguments)
        command.make_context(name, rest, parent=context)


def check_output(command: str, wanted: str, printed: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if wanted and not doctest.OutputChecker().check_output(wanted, printed, flags):
        pytest.fail(f"$ {command}\nprints\n{printed}\nand not, as is said,\n{wanted}")


RUN = {"python": run_python, "console": run_console, "text": lambda page, block: None}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_page(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def command(arguments: list[str]) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["adamas", *arguments])
        capfd.readouterr()
        status = cli.main()
        printed = capfd.readouterr()
        return status, printed.out + printed.err

    page = Page(path, {"__name__": "page"}, command)
    for block in blocks(path):
        RUN[block.language](page, block)


@pytest.mark.parametrize("path", [*PAGES, TRANSLATED], ids=lambda path: path.stem)
def test_every_block_is_seen(path: Path) -> None:
    """One inside a list, a quote or a tab is code too."""
    fences = sum(token.type == "fence" for token in tokens(path))
    assert 2 * fences == path.read_text(encoding="utf-8").count("```")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_make_target_exists(path: Path) -> None:
    for code in re.findall(r"`make ([\w./]+)", path.read_text(encoding="utf-8")):
        assert code in TARGETS


class Outline(NamedTuple):
    """What a translation leaves as it is."""

    code: list[tuple[str, str]]
    headings: list[str]
    cells: list[list[str]]
    numbers: list[str]
    links: list[str]


def outline(path: Path) -> Outline:
    code, headings, cells, numbers, links = [], [], [], [], []
    inside = ""
    for token in tokens(path):
        if token.type == "fence":
            code.append((token.info, re.sub(r"\s+# .*", "", token.content)))
        elif token.type == "heading_open":
            headings.append(token.tag)
        elif token.type in ("td_open", "th_open"):
            inside = token.type
        elif token.type in ("td_close", "th_close"):
            inside = ""
        elif token.type == "inline":
            found = re.findall(r"\d+(?:[.,]\d+)*", token.content)
            numbers += found
            if inside:
                cells.append(found)
            links += [
                str(child.attrs["href"]) for child in token.children or () if "href" in child.attrs
            ]
    return Outline(code, headings, cells, sorted(numbers), sorted(links))


@pytest.mark.parametrize("part", Outline._fields)
def test_the_translation_is_of_this_readme(part: str) -> None:
    own, other = (getattr(outline(path), part) for path in (README, TRANSLATED))
    if part == "links":  # each names the other
        own.remove(TRANSLATED.name)
        other.remove(README.name)
    assert own == other
