"""What a benchmark run found: kept as JSON, shown as tables."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .bars import Bar, bars
from .measure import DEFINITIONS, Result, Timing
from .peers import MINE
from .scaling import FIXED, MEMORY_BOUND, Scaling


@dataclass(frozen=True)
class Report:
    """A whole run."""

    environment: dict[str, str]
    dtype: str
    results: tuple[Result, ...]
    scaling: Scaling | None
    missing: tuple[str, ...]
    """Titles of the contenders that are not installed."""

    @property
    def bars(self) -> list[Bar]:
        """The promises, which are made for float32."""
        return bars(self.results, self.scaling) if self.dtype == "float32" else []

    @property
    def holds(self) -> bool:
        """Whether every promise was measured and is kept."""
        return bool(self.bars) and all(bar.holds for bar in self.bars)

    def to_json(self) -> str:
        """The run as a JSON object."""
        content = {
            "environment": self.environment,
            "dtype": self.dtype,
            "definitions": DEFINITIONS,
            "bars": [{**asdict(bar), "holds": bar.holds} for bar in self.bars],
            "results": [asdict(result) for result in self.results],
            "scaling": asdict(self.scaling) if self.scaling else None,
            "not_installed": self.missing,
        }
        return json.dumps(content, indent=1) + "\n"

    def print_notes(self, console: Console) -> None:
        """Prints what the tables mean, and the bars."""
        if self.missing:
            console.print("Not installed: " + ", ".join(self.missing), highlight=False)
        for text in DEFINITIONS:
            console.print(text, style="dim", highlight=False)
        console.print("; ".join(f"{k} {v}" for k, v in self.environment.items()), highlight=False)
        if self.bars:
            console.print(_bars_table(self.bars))


def environment() -> dict[str, str]:
    """The machine and the software of a run."""
    import torch

    found = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": str(_cores()),
        "torch threads": str(torch.get_num_threads()),
        "system": platform.platform(terse=True),
        "Python": platform.python_version(),
    }
    if hasattr(os, "getloadavg"):
        found["load before"] = f"{os.getloadavg()[0]:.1f}"
    for package in ("adamas", "numpy", "torch"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def number(value: float | None, digits: int = 3) -> str:
    """A figure with that many significant digits, never in exponent notation."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    decimals = max(digits - 1 - int(f"{value:.{digits - 1}e}".partition("e")[2]), 0)
    return f"{value:,.{decimals}f}"


def fraction(value: float | None) -> str:
    """A fraction of the memory limit."""
    return "-" if value is None else f"{value:.3f}"


HEADERS = ("contender", "ms a step", "spread", "of torch fused", "of the limit", "")


def cells(timing: Timing) -> tuple[str, ...]:
    """The row of a contender, under ``HEADERS``."""
    spread = " to ".join(number(quartile) for quartile in timing.quartiles or ())
    return (
        f"{timing.title} {timing.version}".strip(),
        number(timing.milliseconds),
        spread or "-",
        number(timing.ratio_fused),
        fraction(timing.ratio_limit),
        f"failed: {timing.failure}" if timing.failure else timing.note,
    )


def ranked(result: Result) -> list[Timing]:
    """The contenders, fastest first, those that failed last."""
    return sorted(result.timings, key=lambda timing: timing.milliseconds or float("inf"))


def bandwidth_text(result: Result) -> str:
    """The memory limit of a workload in words."""
    low, high = (b / 1e9 for b in result.bandwidth_quartiles)
    return (
        f"memory {result.bandwidth / 1e9:.1f} GB/s ({low:.1f} to {high:.1f}): "
        f"{number(result.limit_milliseconds)} ms a step at its limit"
    )


def result_table(result: Result) -> Table:
    """The contenders of one workload."""
    tensors = f"{result.parameters:,} parameters in {result.tensors} tensors"
    table = Table(
        title=f"[bold]{result.title}[/]: {tensors}, {result.rounds} rounds",
        caption=bandwidth_text(result),
        title_justify="left",
        caption_justify="left",
    )
    for header in HEADERS:
        table.add_column(header, justify="right" if header in HEADERS[1:5] else "left")
    for timing in ranked(result):
        table.add_row(*cells(timing), style="bold cyan" if timing.key in MINE else None)
    return table


def scaling_table(scaling: Scaling) -> Table:
    """The exponents and fixed costs."""
    first = scaling.series[0].parameters if scaling.series else ()
    reach = f"{min(first):,} to {max(first):,}" if first else "no"
    table = Table(
        title=f"[bold]Scaling[/]: {reach} parameters",
        caption=f"exponent: slope of log time over log parameters from {MEMORY_BOUND:,} on, 1 is "
        f"linear; fixed cost: intercept of the line up to {FIXED:,}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("contender")
    for header in ("exponent", "fixed cost, µs", "ns a parameter, largest size"):
        table.add_column(header, justify="right")
    for s in scaling.series:
        largest = s.milliseconds[-1] * 1e6 / s.parameters[-1] if s.parameters else None
        table.add_row(s.title, number(s.exponent), number(s.fixed_microseconds), number(largest))
    return table


def _bars_table(rows: Sequence[Bar]) -> Table:
    table = Table(title="[bold]Bars[/]", title_justify="left")
    for header in ("bar", "bound", "measured", ""):
        table.add_column(header, justify="right" if header == "measured" else "left")
    for bar in rows:
        verdict = {True: "[green]held[/]", False: "[red]missed[/]", None: "not measured"}
        table.add_row(bar.text, bar.bound, number(bar.value), verdict[bar.holds])
    return table
