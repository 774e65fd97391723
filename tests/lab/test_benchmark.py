"""The benchmark: its workloads, arithmetic, registry and output. No timing is asserted."""

import json
import re
from collections.abc import Callable
from io import StringIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from adamas.lab.benchmark import Bar, bench
from adamas.lab.benchmark import run as run_module
from adamas.lab.benchmark import scaling as scaling_module
from adamas.lab.benchmark.bars import bars
from adamas.lab.benchmark.measure import (
    LIMIT,
    MemoryLimit,
    Result,
    Timing,
    Turn,
    interleave,
    measure,
    summarize,
)
from adamas.lab.benchmark.page import page
from adamas.lab.benchmark.peers import CONTENDERS, Contender, Optimizer, Problem, probe
from adamas.lab.benchmark.report import Report, number
from adamas.lab.benchmark.scaling import Line, Scaling, measure_scaling
from adamas.lab.benchmark.scaling import summarize as summarize_series
from adamas.lab.benchmark.shapes import WORKLOADS, Workload, decades, gpt2, mlp, split

SMALL = Workload("small", "small", ((5, 3), (4,), ()))
TINY_MEMORY = 1024

Run = tuple[Report, str, str, str]


def nothing(problem: Problem) -> Optimizer:
    """A peer that never steps."""
    return Optimizer(lambda: None)


def broken(problem: Problem) -> Optimizer:
    """A peer that cannot be built."""
    raise RuntimeError("no kernel for this machine\nand a long trace")


def contender(key: str, build: Callable[[Problem], Optimizer], module: str = "numpy") -> Contender:
    """A peer of that name."""
    return Contender(key, key, module, build)


# Workloads


@pytest.mark.parametrize(
    ("key", "tensors", "parameters"),
    [
        ("100x100", 100, 10_000),
        ("1000x3500", 1000, 3_500_000),
        ("1.8m", 6, 1_796_010),
        ("30m", 76, 30_339_456),
        # The published size of GPT-2 small.
        ("124m", 148, 124_439_808),
    ],
)
def test_workloads_have_the_published_sizes(key: str, tensors: int, parameters: int) -> None:
    """Each workload has the tensors and parameters that it is named for."""
    workload = WORKLOADS[key]
    assert len(workload.shapes) == tensors
    assert workload.parameters == parameters


def test_shapes() -> None:
    """The builders of shapes, by hand."""
    assert mlp(3, 5, 2) == ((5, 3), (5,), (2, 5), (2,))
    assert split(10, 4) == ((4,), (4,), (2,))
    assert split(8, 4) == ((4,), (4,))
    assert sum(prod(shape) for shape in gpt2(2, 8, vocabulary=11, context=5)) == 2 * 872 + 144


def test_decades_include_both_ends() -> None:
    """Ten sizes a decade, from end to end."""
    sizes = decades(3, 8, 10)
    assert len(sizes) == 51
    assert (sizes[0], sizes[10], sizes[-1]) == (10**3, 10**4, 10**8)
    assert sizes == sorted(set(sizes))


# Arithmetic


def test_summary_takes_ratios_within_rounds() -> None:
    """A round on a slow machine changes no ratio."""
    # The third round ran on a machine half as fast; the ratios of a round do not see it.
    samples = {
        LIMIT: [1e-3, 1e-3, 2e-3, 1e-3, 1e-3],
        "adamas": [2e-3, 3e-3, 4e-3, 2e-3, 2e-3],
        "torch-fused": [4e-3, 4e-3, 8e-3, 4e-3, 4e-3],
    }
    workload = Workload("w", "w", ((1000,),))
    asked = [CONTENDERS["adamas"], CONTENDERS["torch-fused"], CONTENDERS["numpy"]]
    # 28 bytes a parameter at 28 MB/s: one millisecond.
    result = summarize(workload, asked, samples, {"numpy": "why"}, 28_000, 4)
    mine, fused, failed = result.timings
    assert result.bandwidth == pytest.approx(28e6)
    assert result.limit_milliseconds == pytest.approx(1)
    assert mine.milliseconds == pytest.approx(2)
    assert mine.quartiles == pytest.approx((2, 3))
    assert mine.ratio_fused == pytest.approx(0.5)
    assert mine.ratio_limit == pytest.approx(0.5)
    assert fused.ratio_fused == pytest.approx(1)
    assert (failed.failure, failed.milliseconds, failed.ratio_limit) == ("why", None, None)


def test_summary_of_float64_counts_56_bytes() -> None:
    """The bytes of a step follow the dtype; without torch fused there is no ratio to it."""
    samples = {LIMIT: [1e-3], "adamas": [1e-3]}
    result = summarize(WORKLOADS["100x100"], [CONTENDERS["adamas"]], samples, {}, 10**6, 8)
    assert result.timings[0].ratio_limit == pytest.approx(56 * 10_000 / 10**6)
    assert result.timings[0].ratio_fused is None


def test_series_finds_the_exponent_and_the_fixed_cost() -> None:
    """Both are recovered from times that are made from them."""
    seconds = {n: [5e-6 + 2e-9 * n] * 3 for n in decades(3, 8, 10)}
    series = summarize_series(Line("adamas", "one tensor"), seconds)
    assert series.exponent == pytest.approx(1, abs=1e-3)
    assert series.fixed_microseconds == pytest.approx(5)
    assert series.parameters[0] == 1000
    assert series.milliseconds[-1] == pytest.approx(200.005)


def test_series_claims_nothing_from_too_few_sizes() -> None:
    """Two sizes make no line."""
    series = summarize_series(Line("adamas", "one tensor"), {10**6: [1.0], 10**8: [2.0]})
    assert (series.exponent, series.fixed_microseconds) == (None, None)


@pytest.mark.parametrize(
    ("value", "low", "high", "holds"),
    [
        (0.85, None, 0.85, True),
        (0.86, None, 0.85, False),
        (8.0, 8, None, True),
        (7.9, 8, None, False),
        (1.06, 0.95, 1.05, False),
        (float("nan"), None, 0.85, False),
        (None, None, 0.85, None),
    ],
)
def test_bar(
    value: float | None, low: float | None, high: float | None, holds: bool | None
) -> None:
    """Bounds are inclusive, and what is not a number is missed."""
    assert Bar("text", value, low, high).holds is holds


def test_bars_take_the_figures_of_their_workloads() -> None:
    """Each promise looks at its own workload and contender."""

    def result(key: str, **timings: Timing) -> Result:
        return Result(key, key, 1, 1, 1, 1.0, (1.0, 1.0), 1.0, tuple(timings.values()))

    def timing(key: str, milliseconds: float, fused: float | None = None) -> Timing:
        return Timing(key, key, "", milliseconds=milliseconds, ratio_fused=fused, ratio_limit=0.9)

    results = [
        result(
            "124m",
            a=timing("adamas", 1, 0.7),
            b=timing("adamas-int8", 2, 0.6),
            c=timing("adamas-int4", 1, 0.5),
            d=timing("adamas-lean", 1, 0.4),
            e=timing("bitsandbytes", 60),
        ),
        result("1000x3500", a=timing("adamas", 1, 0.15)),
        result("100x100", a=timing("adamas", 1, 0.05)),
        result(
            "1.8m",
            a=timing("adamas-numpy", 0.5),
            b=timing("numpy", 8),
            c=timing("numpy-out", 6),
        ),
    ]
    series = tuple(
        summarize_series(Line("adamas", layout), {n: [1e-9 * n] for n in decades(7, 8, 10)})
        for layout in ("one tensor", "tensors of 3500")
    )
    found = bars(results, Scaling(series, 1.0, 28))
    assert [bar.value for bar in found] == pytest.approx(
        [0.7, 0.9, 0.15, 0.05, 16, 0.6, 0.5, 0.4, 30, 1, 1]
    )
    assert all(bar.holds for bar in found)
    assert all(bar.holds is None for bar in bars([], None))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (0.0001234, "0.000123"), (1.234, "1.23"), (12345.6, "12,346")],
)
def test_number(value: float | None, text: str) -> None:
    """Three digits, without an exponent."""
    assert number(value) == text


# Contenders


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "key",
    ["adamas", "adamas-numpy", "torch", "torch-foreach", "torch-fused", "numpy", "numpy-out"],
)
def test_contender_computes_adamw(key: str, dtype: str) -> None:
    """Everything that a plain installation has takes part."""
    assert probe(CONTENDERS[key], dtype) is None


@pytest.mark.parametrize("key", ["bfloat16", "int8", "int4", "lean"])
def test_compact_contender_computes_adamw(key: str) -> None:
    """To its precision, in float32."""
    assert probe(CONTENDERS[f"adamas-{key}"], "float32") is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", ["sgd", "momentum", "rmsprop"])
def test_parent_computes_its_rule(rule: str, dtype: str) -> None:
    """Ours and torch's fastest, beside torch's plainest."""
    assert probe(CONTENDERS[f"adamas-{rule}"], dtype) is None
    assert probe(CONTENDERS[f"torch-{rule}"], dtype) is None


def test_probe_gives_the_first_line_of_the_reason() -> None:
    """A reason fits into a table."""
    assert probe(contender("x", broken), "float32") == "RuntimeError: no kernel for this machine"


def test_probe_rejects_a_contender_that_does_nothing() -> None:
    """Only what computes AdamW is timed."""
    why = probe(contender("x", nothing), "float32")
    assert why == "its update is 100% away from its rule's"


def test_contender_that_is_not_there_is_not_installed() -> None:
    """A missing package is told without importing it."""
    assert not contender("x", nothing, module="no_such_package_here").installed


def test_contenders_share_the_tensors() -> None:
    """Torch parameters, gradients and arrays are the same memory."""
    problem = Problem(SMALL.shapes, "float32")
    (first, *_), (view, *_) = problem.torch_parameters(), problem.arrays
    first.data.fill_(7)
    assert (view == 7).all()
    assert first.grad is problem.gradients[0]


def test_every_workload_is_filled_alike() -> None:
    """The same values in every run."""
    first, second = (Problem(SMALL.shapes, "float64").arrays for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


# Measure


def test_each_contender_has_its_turn_in_each_round() -> None:
    """Turns interleave, untimed steps included."""
    turns: list[str] = []
    built = {key: Turn(lambda key=key: turns.append(key), 1, 2) for key in "abc"}
    samples = interleave(built, 4, {})
    assert {key: len(times) for key, times in samples.items()} == {"a": 4, "b": 4, "c": 4}
    # One untimed and two timed steps a turn, all three contenders in each round.
    rounds = [turns[i : i + 9] for i in range(0, 36, 9)]
    assert all(sorted(steps) == sorted("abc" * 3) for steps in rounds)


def test_contender_that_fails_in_the_middle_drops_out() -> None:
    """The others keep their rounds."""
    steps = 0

    def fail_later() -> None:
        nonlocal steps
        steps += 1
        if steps > 4:
            raise RuntimeError("late")

    failures: dict[str, str] = {}
    turns = {"bad": Turn(fail_later, 1, 1), "good": Turn(lambda: None, 1, 1)}
    samples = interleave(turns, 5, failures)
    assert failures == {"bad": "RuntimeError: late"}
    assert list(samples) == ["good"]
    assert len(samples["good"]) == 5


def test_measure_reports_failures_and_goes_on() -> None:
    """A failing peer is neither hidden nor fatal."""
    asked = [CONTENDERS["numpy"], contender("broken", broken), contender("known", nothing)]
    result = measure(
        SMALL, asked, rounds=2, memory=MemoryLimit(TINY_MEMORY), unfit={"known": "told before"}
    )
    good, bad, known = result.timings
    assert good.failure is None
    assert good.milliseconds > 0
    assert bad.failure == "RuntimeError: no kernel for this machine"
    assert known.failure == "told before"


def test_contender_that_does_not_fit_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory is checked before it is taken."""
    monkeypatch.setattr("adamas.lab.benchmark.measure.available_bytes", lambda: 1_500_000_000)
    greedy = Contender("greedy", "greedy", "numpy", nothing, state=1e9)
    result = measure(SMALL, [greedy], rounds=1, memory=MemoryLimit(TINY_MEMORY))
    assert result.timings[0].failure == "MemoryError: needs 80.0 GB, 1.5 GB are free"


def test_scaling_measures_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each contender in each layout, at each size."""
    monkeypatch.setattr(scaling_module, "_PASSES", 1)
    scaling = measure_scaling(
        ["adamas", "torch-fused"], low=2, high=3, per_decade=2, memory=MemoryLimit(TINY_MEMORY)
    )
    assert [s.key for s in scaling.series] == ["adamas"] * 2 + ["torch-fused"] * 2
    assert all(s.parameters == (100, 316, 1000) for s in scaling.series)
    assert scaling.note == ""
    expected = 28_000 / scaling.bandwidth * 1e3
    assert scaling.limit_milliseconds(1000) == pytest.approx(expected)


# The whole


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a moment, with one peer that fails and one that is missing."""
    folder = tmp_path_factory.mktemp("bench") / "new"
    contenders = {
        **{key: CONTENDERS[key] for key in ("adamas", "adamas-numpy", "torch-fused", "numpy")},
        "broken": Contender("broken", "Broken </script>", "numpy", broken),
        "missing": contender("missing", nothing, module="no_such_package_here"),
    }
    console = Console(record=True, width=140, file=StringIO())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "CONTENDERS", contenders)
        patch.setattr(run_module, "WORKLOADS", {"small": SMALL})
        patch.setattr(run_module, "MemoryLimit", lambda: MemoryLimit(TINY_MEMORY))
        patch.setattr(
            run_module,
            "measure_scaling",
            lambda *args, **kwargs: measure_scaling(*args, **kwargs, low=2, high=3, per_decade=1),
        )
        found = bench(rounds=2, output=folder, console=console)
    html = (folder / "step.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in folder.iterdir()) == ["step.html", "step.json"]
    return found, console.export_text(), (folder / "step.json").read_text("utf-8"), html


def test_run_prints_every_contender(report: Run) -> None:
    """Failed and missing ones too, and the definitions."""
    _, text, _, _ = report
    assert "adamas (PyTorch)" in text
    assert "torch fused" in text
    assert "failed: RuntimeError: no kernel for this machine" in text
    assert "Not installed: missing" in text
    assert "28 bytes" in text
    assert "not measured" in text


def test_run_writes_json(report: Run) -> None:
    """The figures as data."""
    found, _, text, _ = report
    content = json.loads(text)
    assert content["results"][0]["parameters"] == 20
    assert [t["key"] for t in content["results"][0]["timings"]][-1] == "broken"
    assert content["not_installed"] == ["missing"]
    assert len(content["bars"]) == 11
    assert not found.holds


def test_page_needs_no_network(report: Run) -> None:
    """Nothing but the page itself is ever asked for."""
    *_, html = report
    scripts = re.findall(r"<script.*?>", html)
    assert scripts == ['<script type="application/json" id="figures">', "<script>", "<script>"]
    # The library, the largest script, names addresses that it fetches for maps alone.
    own = re.sub(r"<script>.*?</script>", "", html, count=1, flags=re.DOTALL)
    assert len(own) < 100_000
    assert not re.search(r"https?:|//\w|@import|url\(|<link|<img|\bsrc=", own)
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html


def test_page_escapes_names(report: Run) -> None:
    """No name ends the script or becomes markup."""
    *_, html = report
    assert "Broken </script>" not in html
    assert "Broken &lt;/script&gt;" in html


def test_page_of_an_empty_run() -> None:
    """A run of nothing is a page, too."""
    assert "How it was measured" in page(Report({}, "float64", (), None, ()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": ["7b"]}, "shapes must be among 100x100, 1000x3500, 1.8m, 30m, 124m, got 7b"),
        ({"peers": ["lion"]}, "peers must be among adamas, .*, got lion"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"dtype": "int8"}, "dtype must be one of float32, float64, got int8"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    """The message names the value and the choices."""
    with pytest.raises(ValueError, match=message):
        bench(**options)


def test_unusable_output_is_found_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long run is not lost at its end."""
    monkeypatch.setattr(run_module, "measure", broken)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        bench(output=tmp_path / "file" / "folder")
