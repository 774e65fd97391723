"""Runs the benchmark: checks what is asked for, measures, prints and writes the results."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from .measure import MemoryLimit, measure
from .page import page
from .peers import CONTENDERS, probe
from .report import Report, environment, result_table, scaling_table
from .scaling import measure_scaling
from .shapes import WORKLOADS

DTYPES = ("float32", "float64")

_Row = TypeVar("_Row")


def bench(
    shapes: Sequence[str] | None = None,
    peers: Sequence[str] | None = None,
    rounds: int = 15,
    dtype: str = "float32",
    output: Path | None = None,
    scaling: bool = True,
    console: Console | None = None,
) -> Report:
    """Measures the step of adamas and its peers, and prints tables.

    Args:
        shapes: keys of ``WORKLOADS``; all of them by default.
        peers: keys of ``CONTENDERS``; by default all that are installed. adamas always takes part.
        rounds: how many turns each contender has, at least 1.
        dtype: "float32" or "float64".
        output: a folder for ``step.json`` and ``step.html``; nothing is written without one.
        scaling: also time steps from 10^3 to 10^8 parameters.
        console: where to print.

    Returns:
        All figures.

    Raises:
        ValueError: a name is unknown or a number out of range.
        OSError: the folder cannot be written to; found before anything is measured.
    """
    workloads = _pick("shapes", shapes, WORKLOADS)
    asked = _pick(
        "peers", None if peers is None else ["adamas", "adamas-numpy", *peers], CONTENDERS
    )
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    if output:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    console = console or Console()

    found = environment()
    installed = [c for c in asked if c.installed]
    memory = MemoryLimit()
    with console.status("") as status:
        failures: dict[str, str] = {}
        for contender in installed:
            status.update(f"trying {contender.title}")
            why = probe(contender, dtype)
            if why:
                failures[contender.key] = why
        # Printed as they come: the whole run takes minutes.
        results = []
        for w in workloads:
            result = measure(w, installed, dtype, rounds, memory, failures, status.update)
            console.print(result_table(result))
            results.append(result)
        curves = None
        if scaling:
            keys = [c.key for c in installed if c.key not in failures and c.plain is None]
            curves = measure_scaling(keys, dtype, memory=memory, progress=status.update)
            console.print(scaling_table(curves))
            if curves.note:
                console.print(curves.note, highlight=False, markup=False)
    missing = tuple(c.title for c in asked if not c.installed)
    report = Report(found, dtype, tuple(results), curves, missing)
    report.print_notes(console)
    if output:
        for name, text in (("step.json", report.to_json()), ("step.html", page(report))):
            write(output / name, text)
            console.print(f"wrote {output / name}", highlight=False, markup=False)
    return report


def write(path: Path, text: str) -> None:
    """Writes a file under a temporary name, then renames it, so that it is whole or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _pick(option: str, names: Sequence[str] | None, known: Mapping[str, _Row]) -> list[_Row]:
    if names is None:
        return list(known.values())
    for name in names:
        if name not in known:
            raise ValueError(f"{option} must be among {', '.join(known)}, got {name}")
    return [row for name, row in known.items() if name in names]
