"""Scripts of benchmarks/ that print a few lines: they run, and refuse what they cannot measure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the benchmarks are not here")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("script", "arguments", "lines"),
    [
        ("offload.py", "--bus 50 --workload 1.8m --rounds 1", 6),
        ("compiled.py", "--device cpu --backend eager --layers 2 --rounds 1", 6),
    ],
)
def test_prints_a_table(script: str, arguments: str, lines: int) -> None:
    found = run(script, *arguments.split())
    assert found.returncode == 0, found.stderr
    table = [line.split() for line in found.stdout.splitlines()]
    assert len(table) == lines
    assert all(float(cell) < 1e6 for row in table[2:] for cell in row[-4:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--bus -3", "--bus must be a rate above 0 GB/s, got -3"),
        ("--device cpu", "no GPU: torch finds none by cpu; --bus 54"),
    ],
)
def test_refuses(arguments: str, message: str) -> None:
    found = run("offload.py", *arguments.split())
    assert found.returncode == 2
    assert message in found.stderr
