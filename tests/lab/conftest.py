"""What tests of the command line share."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from searches import SCRIPT

from adamas import cli

Adamas = Callable[..., tuple[int, str, str]]


@pytest.fixture
def adamas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Adamas:
    """Runs a command in an empty folder: its status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["adamas", *arguments])
        capsys.readouterr()
        status = cli.main()
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A file of functions to search, in the folder of the test."""
    path = tmp_path / "my_train.py"
    path.write_text(SCRIPT)
    (tmp_path / "pause").write_text("0")
    return path
