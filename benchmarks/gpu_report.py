"""What gpu.py found: tables, JSON, a page and a document."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from gpu_bits import Verdict
from gpu_first import First
from gpu_measure import Result, Row
from gpu_peers import OURS

from adamas.lab.benchmark.bars import Bar

DEFINITIONS = (
    "ms: the median over the rounds of one step's time on the host's clock, of many steps with one "
    "wait at their end. Contenders take turns, in random order, in one process, with untimed steps "
    "first; gradients are fixed, and those of one type share weights and gradients.",
    "GPU: the same steps on the device's clock, between two events. Kernels: what the profiler "
    "says that the device computes, without the gaps. Host: microseconds until step() returns on "
    "an idle device.",
    "Of the copy: the time in which a copy on the device moves the bytes that a step must, divided "
    "by the step's. These are what it reads (weights, gradients, all state) and writes (weights, "
    "all state); the copy takes its turns among the contenders. A state that is not adamas's or "
    "torch's is measured as the memory it takes.",
    "Of fused: the time divided by torch fused's with float32 weights; of fused bf16: with "
    "weights, gradients and moments in bfloat16. Ratios are taken within each round.",
)


@dataclass(frozen=True)
class Table:
    """A title, and cells under headers."""

    title: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def show(self) -> None:
        """Prints it, by rich where that is installed."""
        try:
            from rich.box import SIMPLE_HEAD
            from rich.console import Console
            from rich.table import Table as Rich
        except ImportError:
            lines = [self.headers, *self.rows]
            widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
            print(f"\n{self.title}")
            for line in lines:
                first, *rest = (
                    cell.rjust(width) if i else cell.ljust(width)
                    for i, (cell, width) in enumerate(zip(line, widths, strict=True))
                )
                print(first, *rest, sep="  ", flush=True)
            return
        table = Rich(title=escaped(self.title), title_justify="left", box=SIMPLE_HEAD)
        for i, header in enumerate(self.headers):
            table.add_column(header, justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*map(escaped, row))
        # Wide enough where the output goes to a file, too.
        console = Console()
        (console if console.is_terminal else Console(width=165)).print(table, highlight=False)

    @property
    def markdown(self) -> str:
        """In Markdown."""
        rows = [tuple(cell.replace("|", "\\|") for cell in row) for row in self.rows]
        lines = [self.headers, ("---",) * len(self.headers), *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escaped(text: str) -> str:
    """For rich, which would take an error's brackets for markup."""
    return text.replace("[", "\\[")


def number(value: float | None, digits: int = 3) -> str:
    """A figure with that many significant digits, never in exponent notation."""
    if value is None:
        return "-"
    if not value:
        return "0"
    decimals = max(digits - 1 - int(f"{value:.{digits - 1}e}".partition("e")[2]), 0)
    return f"{value:,.{decimals}f}"


HEADERS = (
    *("", "ms", "quartiles", "GPU ms", "kernels ms", "host us", "MB"),
    *("of the copy", "of fused", "of fused bf16"),
)


def cells(row: Row) -> tuple[str, ...]:
    """The row of a contender, under ``HEADERS``."""
    title = f"{row.title} {row.version}".strip() if row.key not in OURS else row.title
    ratios = (row.of_limit, row.of_fused, row.of_fused_bfloat16)
    return (
        title,
        number(row.milliseconds),
        " to ".join(map(number, row.quartiles or ())) or "-",
        number(row.between_events),
        number(row.kernels),
        number(row.host),
        number(row.megabytes, 4),
        *("-" if ratio is None else f"{ratio:.3f}" for ratio in ratios),
    )


def result_table(result: Result, keys: Iterable[str] | None = None) -> Table:
    """The rows of a workload, or some of them; those that failed are not among them."""
    workload = result.workload
    shown = [row for k, row in result.rows.items() if keys is None or k in set(keys)]
    title = (
        f"{workload.title}: {workload.parameters:,} parameters in {len(workload.shapes)} tensors; "
        f"copies move {result.bandwidth / 1e9:,.0f} GB/s"
    )
    return Table(title, HEADERS, [cells(row) for row in shown if row.milliseconds is not None])


def failed(result: Result) -> list[str]:
    """A line for each contender without figures."""
    return [
        f"{result.workload.title}, {row.title}: {row.failure or 'not measured'}"
        for row in result.rows.values()
        if row.milliseconds is None
    ]


@dataclass
class Report:
    """A whole run, which grows while it goes on."""

    device: str
    environment: dict[str, str]
    verdicts: list[Verdict] = field(default_factory=list)
    firsts: list[First] = field(default_factory=list)
    results: dict[str, Result] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What was not installed, or left out."""

    def bars(self) -> list[Bar]:
        """What is promised on an H100, with what was measured; on a CPU, nothing was."""

        def figure(workload: str, key: str, name: str) -> float | None:
            result = self.results.get(workload) if self.device == "cuda" else None
            row = result.rows.get(key) if result else None
            value: float | None = getattr(row, name) if row else None
            return value

        large = [
            ("float32-float32", "of_fused", "float32: time, of torch fused's", None, 0.90),
            ("float32-float32", "of_limit", "float32: of the copy's limit", 0.95, None),
            ("float32-int8", "of_fused", "int8: time, of torch fused's", None, 0.64),
            ("float32-int4", "of_fused", "int4: time, of torch fused's", None, 0.54),
            ("bfloat16-24-int8", "of_fused", "bfloat16, 24 bits, int8: the same", None, 0.60),
            ("bfloat16-24-int4", "of_fused", "bfloat16, 24 bits, int4: the same", None, 0.50),
            (
                *("bfloat16-16-bfloat16", "of_fused_bfloat16"),
                *("all bfloat16: time, of torch fused's in bfloat16", None, 0.90),
            ),
        ]
        found = [
            Bar(f"GPT-2 124M, {text}", figure("124m", key, name), low, high)
            for key, name, text, low, high in large
        ]
        small = figure("3000x3500", "float32-float32", "of_fused")
        hosts = [figure("124m", key, "host") for key in OURS]
        times = [first.seconds for first in self.firsts]
        again = [sum(first.again.values()) for first in self.firsts if not first.failure]
        on_gpu = self.device == "cuda"
        return [
            *found,
            Bar("3000 tensors of 3500, float32: time, of torch fused's", small, high=0.09),
            Bar("148 tensors: us of the host, slowest format", _largest(hosts), high=150),
            Bar(
                "Seconds of a first step, slowest format",
                _largest(times) if on_gpu else None,
                high=3,
            ),
            Bar("Kernels compiled again", _largest(again) if on_gpu else None, high=0),
            Bar("Elements that differ from the specification", self.differing, high=0),
        ]

    @property
    def differing(self) -> float | None:
        """Elements; None where nothing was compared or a comparison failed."""
        if not self.verdicts or any(verdict.failure for verdict in self.verdicts):
            return None
        return sum(verdict.differing for verdict in self.verdicts)

    def tables(self) -> list[Table]:
        """All there is: bits, first steps, a table of times for each workload, and the bars."""
        found = [bits_table(self.verdicts)] if self.verdicts else []
        found += [first_table(self.firsts)] if self.firsts else []
        found += [result_table(result) for result in self.results.values()]
        return [*found, bars_table(self.bars())]

    def lines(self) -> list[str]:
        """What is not in the tables: failures, notes, and what was run on."""
        found = [line for result in self.results.values() for line in failed(result)]
        found += self.notes
        return [*found, "; ".join(f"{k} {v}" for k, v in self.environment.items())]

    def to_json(self) -> str:
        """The run as a JSON object."""
        results = [
            {
                "key": key,
                "title": result.workload.title,
                "parameters": result.workload.parameters,
                "tensors": len(result.workload.shapes),
                "bandwidth": result.bandwidth,
                "rows": [asdict(row) for row in result.rows.values()],
            }
            for key, result in self.results.items()
        ]
        content: dict[str, Any] = {
            "environment": self.environment,
            "definitions": DEFINITIONS,
            "bars": [{**asdict(bar), "holds": bar.holds} for bar in self.bars()],
            "bits": [asdict(verdict) for verdict in self.verdicts],
            "first": [asdict(first) for first in self.firsts],
            "results": results,
            "notes": self.notes,
        }
        return json.dumps(content, indent=1) + "\n"


def _largest(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def bits_table(verdicts: Sequence[Verdict]) -> Table:
    """The comparison with the specification."""
    rows = [
        (
            verdict.title,
            "ok" if verdict.holds else "differs" if verdict.failure is None else "failed",
            f"{verdict.differing:,}",
            f"{verdict.compared:,}",
            verdict.failure or verdict.where,
        )
        for verdict in verdicts
    ]
    return Table(
        "Weights and states after 8 steps, beside the specification's",
        ("", "bits", "differing", "of elements", "first"),
        rows,
    )


def first_table(firsts: Sequence[First]) -> Table:
    """First steps, and what was compiled later."""
    rows = [
        (
            first.title,
            number(first.seconds),
            str(first.kernels),
            first.failure or ", ".join(f"{what} {n}" for what, n in first.again.items()),
        )
        for first in firsts
    ]
    headers = ("", "seconds", "kernels", "compiled again, by what changed")
    return Table(
        "The first step of 148 tensors in a fresh process, nothing compiled", headers, rows
    )


def bars_table(bars: Sequence[Bar]) -> Table:
    """What is promised, beside what was measured."""
    verdict = {True: "held", False: "missed", None: "not measured"}
    rows = [(bar.text, bar.bound, number(bar.value), verdict[bar.holds]) for bar in bars]
    return Table("Bars, on an H100", ("", "bound", "measured", "verdict"), rows)


def environment(device: str) -> dict[str, str]:
    """The machine and the software of a run."""
    found = {"date": time.strftime("%Y-%m-%d"), "device": platform.machine()}
    if device == "cuda":
        found["device"] = torch.cuda.get_device_name()
        found["driver"] = _driver()
        found["CUDA"] = str(torch.version.cuda)
    found["Python"] = platform.python_version()
    for package in ("adamas", "torch", "triton", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return run.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def write_docs(report: Report, path: Path) -> None:
    """The tables in a document, in place of those of the run before; what is around them stays."""
    where = ", ".join(f"{k} {v}" for k, v in report.environment.items() if k != "date")
    *others, bars = report.tables()
    times = len(report.results)
    ordered = [bars, *others[-times:], *others[:-times]]
    sections = "\n\n".join(f"## {table.title}\n\n{table.markdown}" for table in ordered)
    more = "\n".join(f"- {line}" for line in report.lines()[:-1])
    measured = TEXT.format(
        path=path,
        where=where,
        date=report.environment["date"],
        sections=sections,
        definitions="\n".join(f"- {text}" for text in DEFINITIONS),
        more=f"\n\n## Left out\n\n{more}" if more else "",
    )
    before, _, rest = (path.read_text() if path.exists() else "").partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before or TITLE}{BEGIN}\n\n{measured}\n{END}{after}")


BEGIN, END = "<!-- begin: measured -->", "<!-- end: measured -->"
TITLE = "# Steps on a GPU\n\n"
TEXT = """The tables were written by `python benchmarks/gpu.py --docs {path}` on {date} ({where}).
[The benchmarks' guide](benchmarks.md) says what it needs.

{sections}

## What is measured

{definitions}{more}"""
