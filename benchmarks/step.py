"""Measures a step of adamas and of its peers, at every size, and writes a table and a page.

Run it as ``python benchmarks/step.py``; ``--check`` exits with 1 unless every bar holds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from adamas.lab.benchmark import bench


def main() -> int:
    """Runs the benchmark as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 unless every bar holds")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contender")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder")
    options = parser.parse_args()
    # Wide enough for the table where the output goes to a file.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    report = bench(
        rounds=options.rounds, dtype=options.dtype, output=options.output, console=console
    )
    return 1 if options.check and not report.holds else 0


if __name__ == "__main__":
    sys.exit(main())
