"""Steps on a GPU: their bits, their time beside peers' and a copy's, and what compiling costs.

Run it as ``python benchmarks/gpu.py``; ``--check`` exits with 1 unless every bar holds. Bars and
what they need come first, and what is found is printed and written as it comes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import gpu_bits
import gpu_first
import torch
from gpu_measure import Result, heat, kernel_milliseconds, release, workloads
from gpu_peers import CONTENDERS, FUSED, OURS, PEERS, Contender, probe_apart
from gpu_report import Report, bits_table, environment, first_table, result_table, write_docs

from adamas.lab.benchmark.peers import reason

SECONDS, QUICK_SECONDS = 420, 85
ROUNDS, QUICK_ROUNDS = 15, 7
QUICK_PEERS = tuple(FUSED.values())
FIRSTS = ("float32-float32", "bfloat16-24-int4", "float32-int8")
# Seconds that the rounds of a heat may take: peers' steps are up to a hundred times as long.
OURS_SECONDS, PEERS_SECONDS = 12, 20
RESERVE = 15  # seconds kept for the page, the document and whatever takes longer


@dataclass
class Run:
    """A run of the benchmark: what is asked for, and what has been found."""

    options: argparse.Namespace
    report: Report
    begin: float = field(default_factory=time.monotonic)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds."""
        spent = time.monotonic() - self.begin
        seconds: float = self.options.seconds - RESERVE - spent
        return seconds

    def say(self, text: str) -> None:
        """Prints a line, with the seconds since the beginning."""
        print(f"[{time.monotonic() - self.begin:5.0f} s] {text}", flush=True)

    def save(self) -> None:
        """Writes what there is as JSON, so that whoever stops the run keeps it."""
        (self.options.output / "gpu.json").write_text(self.report.to_json())

    def bits(self) -> None:
        """Compares with the specification."""
        for verdict in gpu_bits.check(self.options.device, self.options.quick):
            self.report.verdicts.append(verdict)
            if self.left < 0:
                break
        bits_table(self.report.verdicts).show()
        self.save()

    def first(self) -> None:
        """Steps in fresh processes."""
        asked = [key for key in FIRSTS if key in self.options.formats]
        for key in asked[:1] if self.options.quick else asked:
            if self.left > 0:
                found = gpu_first.measure(key, self.options.device, min(self.left, 90))
                self.report.firsts.append(found)
        first_table(self.report.firsts).show()
        self.save()

    def probe(self, contenders: Sequence[Contender]) -> None:
        """Finds out who is installed and computes AdamW."""
        absent = [c for c in contenders if not c.installed]
        self.failures |= {c.key: "not installed" for c in absent}
        self.report.notes += [f"{c.title}: not installed" for c in absent]
        keys = [c.key for c in contenders if c.installed]
        self.say(f"trying {', '.join(keys) or 'nobody'}")
        found = probe_apart(keys, self.options.device, self.left / 2)
        self.failures |= found
        for key, why in found.items():
            self.report.notes.append(f"{CONTENDERS[key].title}: {why}")
            self.say(self.report.notes[-1])

    def heat(self, key: str, contenders: Sequence[Contender], seconds: float) -> None:
        """Times some contenders on one workload."""
        result = self.report.results[key]
        taking: list[Contender] = []
        late: list[Contender] = []
        for contender in contenders:
            if contender.key not in self.failures:
                enough = self.left > contender.patience + sum(c.patience for c in taking)
                (taking if enough else late).append(contender)
        if late:
            names = ", ".join(c.title for c in late)
            self.report.notes.append(f"{result.workload.title}: no time left for {names}")
            self.say(self.report.notes[-1])
        if not taking:
            return
        self.say(f"{result.workload.title}: {', '.join(c.title for c in taking)}")
        options, failures = self.options, dict(self.failures)
        limit = min(seconds, max(self.left, 1))
        try:
            found = heat(result.workload, taking, options.device, options.rounds, limit, failures)
        except Exception as error:  # no room even for the weights, or a device that has stopped
            self.report.notes.append(f"{result.workload.title}: {reason(error)}")
            self.say(self.report.notes[-1])
            release(options.device)
            return
        release(options.device)
        result.bandwidth = result.bandwidth or found[0]
        for row in found[1]:
            # What the others are compared with is in every heat, and is shown from its first.
            if row.key in options.peers or row.key in options.formats:
                result.rows.setdefault(row.key, row)
            if row.failure:
                self.say(f"{row.title}: {row.failure}")
        result_table(result, [row.key for row in found[1]]).show()
        self.save()

    def kernels(self, key: str) -> None:
        """Asks the profiler, at the very end, since it makes later launches slower."""
        result = self.report.results.get(key)
        if result is None or self.options.device != "cuda":
            return
        for row in list(result.rows.values()):
            contender = CONTENDERS[row.key]
            if row.milliseconds is None or self.left < contender.patience:
                continue
            with suppress(Exception):
                busy = kernel_milliseconds(contender, result.workload, "cuda")
                result.rows[row.key] = replace(row, kernels=busy)
            release("cuda")
        self.save()

    def all(self) -> None:
        """Everything, what bars need first."""
        options = self.options
        ours = [OURS[key] for key in options.formats]
        peers = [PEERS[key] for key in options.peers]
        references = [PEERS[key] for key in FUSED.values()]
        self.bits()
        self.probe([*references, *ours])
        for key in self.report.results:
            for weights in FUSED:
                self.heat(key, [c for c in ours if c.weights == weights], OURS_SECONDS)
        self.first()
        others = [c for c in peers if c not in references or not ours]
        if others and self.left > 0:
            self.probe(others)
        for key in self.report.results:
            for some in _few(others):
                self.heat(key, some, PEERS_SECONDS)
        self.kernels("124m")


def _few(contenders: Sequence[Contender], most: int = 3) -> Iterator[Sequence[Contender]]:
    """A few at a time: their states must fit into memory, and figures come early."""
    for i in range(0, len(contenders), most):
        yield contenders[i : i + most]


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 unless every bar holds")
    parser.add_argument("--quick", action="store_true", help="in 90 seconds what bars need")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny, a try"
    )
    parser.add_argument("--shapes", nargs="+", choices=tuple(workloads("cpu")))
    parser.add_argument("--formats", nargs="*", choices=tuple(OURS))
    parser.add_argument("--peers", nargs="*", choices=tuple(PEERS))
    parser.add_argument("--rounds", type=int, help="turns of each contender, at most")
    parser.add_argument("--seconds", type=float, help="that all of it may take, about")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder")
    parser.add_argument("--docs", type=Path, help="also write this document")
    options = parser.parse_args()
    quick = options.quick
    options.seconds = options.seconds or (QUICK_SECONDS if quick else SECONDS)
    options.rounds = options.rounds or (QUICK_ROUNDS if quick else ROUNDS)
    every = list(workloads("cpu"))
    options.shapes = options.shapes or (every[:2] if quick else every)
    options.formats = list(OURS) if options.formats is None else options.formats
    if options.peers is None:
        options.peers = list(QUICK_PEERS if quick else PEERS)
    return options


def finish(run: Run) -> None:
    """Prints the whole once more, and writes the page and the document."""
    report, output = run.report, run.options.output
    for table in report.tables()[-1 - len(report.results) :]:  # the others stand above
        table.show()
    for line in report.lines():
        print(line)
    run.save()
    print(f"wrote {output / 'gpu.json'}")
    if run.options.docs:
        write_docs(report, run.options.docs)
        print(f"wrote {run.options.docs}")
    try:  # it needs what draws it
        from gpu_page import page

        (output / "gpu.html").write_text(page(report))
    except ImportError as error:
        print(f"no page: {reason(error)}")
    else:
        print(f"wrote {output / 'gpu.html'}")


def main() -> int:
    """Runs the benchmark as the command line says."""
    options = arguments()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU: torch.cuda.is_available() is false (--device cpu tries the script out)")
        return 2
    if options.device == "cpu":
        torch.set_num_threads(1)  # threads that wait for a busy core would take most of the time
    options.output.mkdir(parents=True, exist_ok=True)
    chosen = {k: Result(w) for k, w in workloads(options.device).items() if k in options.shapes}
    report = Report(options.device, environment(options.device), results=chosen)
    run = Run(options, report)
    run.all()
    finish(run)
    return 1 if options.check and not all(bar.holds for bar in report.bars()) else 0


if __name__ == "__main__":
    sys.exit(main())
