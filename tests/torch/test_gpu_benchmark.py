"""benchmarks/gpu.py, tried out without a GPU: what it compares, refuses and writes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the benchmarks are not here")


@contextmanager
def benchmark(name: str) -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_exits_with_2() -> None:
    found = run("--check")
    assert (found.returncode, found.stdout.count("\n")) == (2, 1)
    assert "no GPU" in found.stdout


def test_a_quick_run_on_the_cpu_writes_all_of_it(tmp_path: Path) -> None:
    docs = tmp_path / "gpu.md"
    begin, end = "<!-- begin: measured -->", "<!-- end: measured -->"
    docs.write_text(f"# Before\n\n{begin}\n\nan old run\n\n{end}\n\n# After\n")
    given = ["--device", "cpu", "--quick", "--check", "--rounds", "2", "--output", str(tmp_path)]
    given += [
        "--shapes",
        "124m",
        "--formats",
        "float32-float32",
        "float32-int8",
        "--peers",
        "torch-fused",
    ]
    found = run(*given, "--docs", str(docs))
    assert found.returncode == 1, found.stderr  # what bars promise is not measured on a CPU
    report: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text())
    assert all(not v["failure"] and v["compared"] for v in report["bits"])
    assert not any(v["differing"] for v in report["bits"])
    (result,) = report["results"]
    rows = {row["key"]: row for row in result["rows"]}
    assert list(rows) == ["torch-fused", "float32-float32", "float32-int8"]
    assert all(row["milliseconds"] > 0 and row["host"] > 0 for row in rows.values())
    assert rows["torch-fused"]["of_fused"] == 1
    assert rows["float32-float32"]["megabytes"] == 28 * result["parameters"] / 1e6
    (first,) = report["first"]
    assert first["seconds"] > 0
    assert set(first["again"].values()) == {0}
    before, _, rest = docs.read_text().partition(begin)
    measured, _, after = rest.partition(end)
    assert (before, after) == ("# Before\n\n", "\n\n# After\n")
    assert "adamas int8" in measured
    assert "an old run" not in measured
    assert (tmp_path / "gpu.html").exists()


def test_bytes_that_differ_are_counted() -> None:
    with benchmark("gpu_bits") as bits:
        x = bits.numbers(1000, torch.bfloat16, 0, True)
        array = bits.as_array(x).copy()
        assert bits.differing(x, array) == 0
        array[[3, 7]] ^= 1
        assert bits.differing(x, array) == 2
        zeros = np.zeros(5, np.float32)
        assert bits.differing(torch.from_numpy(-zeros), zeros) == 5  # equal, but not its bits
        assert bits.differing(torch.zeros(5, 2), zeros) == 10


def test_a_peer_that_does_not_compute_adamw_is_refused() -> None:
    with benchmark("gpu_peers") as peers:
        fused = peers.PEERS["torch-fused"]
        assert peers.probe(fused, "cpu") is None

        def made(rule: Any, **options: Any) -> Any:
            return peers.Contender("x", "x", "torch", lambda params: rule(params, **options))

        assert "away from AdamW's" in peers.probe(made(torch.optim.SGD, lr=1e-3), "cpu")
        assert "ValueError" in peers.probe(made(torch.optim.AdamW, lr=-1), "cpu")


@pytest.mark.parametrize(
    ("key", "bytes_a_parameter"),
    [
        ("float32-float32", 28),
        ("float32-int8", 12 + 2 * (2 + 6 / 64)),
        ("bfloat16-24-int4", 6 + 2 * (1 + 6 / 64 + 1)),
        ("bfloat16-16-bfloat16", 14),
        ("bfloat16-32-float32", 6 + 2 * (8 + 2)),
    ],
)
def test_what_a_step_must_move(key: str, bytes_a_parameter: float) -> None:
    with benchmark("gpu_peers") as peers:
        assert peers.OURS[key].step_bytes([(64, 10)], None) == 640 * bytes_a_parameter


def test_who_fails_is_a_line_and_the_others_go_on() -> None:
    with benchmark("gpu_measure") as measure:
        peers = import_module("gpu_peers")

        def build(params: Any) -> Any:
            raise RuntimeError("no kernel")

        failures: dict[str, str] = {}
        threads = torch.get_num_threads()
        contenders = [peers.Contender("x", "x", "torch", build), peers.OURS["float32-int8"]]
        workload = measure.workloads("cpu")["3000x3500"]
        torch.set_num_threads(1)  # those that wait for a busy core take most of the time
        try:
            bandwidth, rows = measure.heat(workload, contenders, "cpu", 2, 1.0, failures)
        finally:
            torch.set_num_threads(threads)
        assert bandwidth > 0
        assert failures == {"x": "RuntimeError: no kernel"}
        assert [row.milliseconds is None for row in rows] == [False, True, False]


def test_a_table_is_readable_without_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.box", None)
    with benchmark("gpu_report") as report:
        table = report.Table("Title", ("", "ms"), [("adamas", "1.25"), ("a | b", "10.0")])
        table.show()
        assert capsys.readouterr().out.splitlines()[1:] == [
            "Title",
            "          ms",
            "adamas  1.25",
            "a | b   10.0",
        ]
        assert table.markdown.splitlines()[-1] == r"| a \| b | 10.0 |"
