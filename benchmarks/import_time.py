"""Measures what a fresh process pays: `import adamas`, and its first step.

The imports and the kinds of first step take turns, each in a new process; medians are printed.
``--check`` exits with 1 unless `import adamas` takes less than 100 ms beyond NumPy.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys

from rich.console import Console
from rich.table import Table

BAR = 100.0
"""Milliseconds."""

IMPORTS = {"numpy": "import numpy", "adamas": "import adamas"}

_FIRST_STEP = """
import time
{imports}
def seconds(step):
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e3
{build}
first = seconds(step)
later = sorted(seconds(step) for _ in range(20))[10]
print(first, later)
"""

_NUMPY = """
params = [numpy.ones(s, numpy.float32) for s in ((1000, 784), (1000, 1000), (10, 1000))]
grads = [numpy.full_like(p, 0.01) for p in params]
optimizer = adamas.AdamW(params)
step = lambda: optimizer.step(grads)
"""

_TORCH = """
params = [torch.nn.Parameter(torch.ones(s)) for s in ((1000, 784), (1000, 1000), (10, 1000))]
for p in params:
    p.grad = torch.full_like(p, 0.01)
step = {optimizer}.step
"""

FIRST_STEPS = {
    "adamas (NumPy)": ("import numpy, adamas", _NUMPY),
    "adamas (PyTorch)": (
        "import torch, adamas.torch",
        _TORCH.format(optimizer="adamas.torch.AdamW(params)"),
    ),
    "torch fused": (
        "import torch",
        _TORCH.format(optimizer="torch.optim.AdamW(params, fused=True)"),
    ),
}

_WALL = """
import time
start = time.perf_counter()
{statement}
print((time.perf_counter() - start) * 1e3)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a fresh interpreter."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True)


def import_milliseconds(statement: str) -> float:
    """The time of an import statement in a fresh process."""
    return float(run("-c", _WALL.format(statement=statement)).stdout)


def importtime_milliseconds() -> float:
    """What ``-X importtime`` charges to adamas and to what it imports beside NumPy."""
    report = run("-X", "importtime", "-c", "import numpy; import adamas").stderr
    cumulative = re.search(r"\|\s*(\d+) \| adamas$", report, re.MULTILINE)
    if cumulative is None:
        raise RuntimeError("-X importtime does not list adamas")
    return int(cumulative[1]) / 1e3


def first_step_milliseconds(imports: str, build: str) -> tuple[float, float]:
    """The time of the first step of a fresh process, and the median of those after it."""
    first, later = run("-c", _FIRST_STEP.format(imports=imports, build=build)).stdout.split()
    return float(first), float(later)


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help=f"exit with 1 above {BAR:g} ms")
    parser.add_argument("--rounds", type=int, default=15, help="fresh processes of each kind")
    options = parser.parse_args()

    imports: dict[str, list[float]] = {name: [] for name in IMPORTS}
    listed: list[float] = []
    steps: dict[str, list[tuple[float, float]]] = {name: [] for name in FIRST_STEPS}
    import_milliseconds(IMPORTS["adamas"])  # Writes the bytecode, which is not to be timed.
    for _ in range(options.rounds):
        for name, statement in IMPORTS.items():
            imports[name].append(import_milliseconds(statement))
        listed.append(importtime_milliseconds())
    for _ in range(max(options.rounds // 3, 1)):
        for name, (statement, build) in FIRST_STEPS.items():
            steps[name].append(first_step_milliseconds(statement, build))

    pairs = zip(imports["adamas"], imports["numpy"], strict=True)
    beyond = statistics.median(whole - numpy for whole, numpy in pairs)
    table = Table("", "ms", title=f"Fresh processes, medians of {options.rounds}")
    table.add_row("import numpy", f"{statistics.median(imports['numpy']):.1f}")
    table.add_row("import adamas", f"{statistics.median(imports['adamas']):.1f}")
    table.add_row(f"import adamas beyond NumPy (bar: {BAR:g})", f"{beyond:.1f}")
    table.add_row("the same, by -X importtime", f"{statistics.median(listed):.1f}")
    for name, times in steps.items():
        first, later = (statistics.median(column) for column in zip(*times, strict=True))
        table.add_row(f"first step, MLP 1.8M, {name}", f"{first:.2f}")
        table.add_row(f"later steps, MLP 1.8M, {name}", f"{later:.2f}")
    Console().print(table)
    return 1 if options.check and beyond >= BAR else 0


if __name__ == "__main__":
    sys.exit(main())
