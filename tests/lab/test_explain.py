"""``adamas explain``: its numbers are the specification's."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from adamas import cli, reference
from adamas.hyper import Hyper, bias_correction
from adamas.lab.explain import number
from adamas.lab.problems import PROBLEMS, Problem, by_hand
from adamas.lab.trace import trace

Adamas = Callable[..., tuple[int, str, str]]
GIVEN = by_hand((1.0, 0.0, -2.0, 3e-9))
HYPERS = [
    Hyper(0.1),
    Hyper(0.03, (0.0, 0.99), weight_decay=0.1, amsgrad=True, decoupled_weight_decay=True),
    Hyper(0.5, (0.97, 0.9), eps=0.1, weight_decay=0.3),
    Hyper(2.0, (0.9995, 0.99999), eps=0.0, weight_decay=3.0, decoupled_weight_decay=True),
]


@pytest.fixture
def adamas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Adamas:
    """Runs ``adamas explain`` in an empty folder: its status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["adamas", "explain", *arguments])
        capsys.readouterr()
        status = cli.main()
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("hyper", HYPERS, ids=str)
@pytest.mark.parametrize("problem", [*PROBLEMS.values(), GIVEN], ids=lambda p: p.name)
def test_numbers_are_the_specifications(problem: Problem, hyper: Hyper) -> None:
    param = np.array(problem.start)
    state = reference.initial_state(param, hyper)
    for step in trace(problem, hyper, 40, problem.start):
        assert np.array_equal(step.p, param)
        old = param
        param, state = reference.step(param, problem.gradient(param, step.t), state, hyper)
        assert np.array_equal(step.new, param)
        assert np.array_equal(step.m, state["exp_avg"])
        assert np.array_equal(step.v, state["exp_avg_sq"])
        assert np.array_equal(step.v_max, state.get("max_exp_avg_sq", state["exp_avg_sq"]))
        assert np.array_equal(step.p - step.update, step.new)
        corrections = [bias_correction(beta, step.t) for beta in hyper.betas]
        assert np.array_equal(step.m_hat, step.m / corrections[0])
        assert np.array_equal(step.v_hat, step.v_max / corrections[1])
        # What is shown makes the update: in the paper's order, so but for roundings.
        beside = step.decay if hyper.decoupled_weight_decay else 0.0
        factor = hyper.lr if hyper.decoupled_weight_decay else 1.0
        assert np.allclose(step.decay, factor * hyper.weight_decay * old, rtol=1e-15, atol=0)
        with np.errstate(invalid="ignore"):  # 0 * inf, where eps is 0 and there was no gradient
            update = np.where(step.m_hat == 0, 0.0, step.step * step.m_hat) + beside
        assert np.allclose(step.update, update, rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_are_the_losses(name: str) -> None:
    problem = PROBLEMS[name]
    p = np.array([0.7, -0.3][: len(problem.start)])
    for index, slope in enumerate(problem.slope(p)):
        ends = [p.copy(), p.copy()]
        ends[0][index] -= 1e-4
        ends[1][index] += 1e-4
        low, high = (problem.loss(end) for end in ends)
        assert low is not None
        assert high is not None
        assert (high - low) / 2e-4 == pytest.approx(slope, rel=1e-9)


def test_sparse_and_given_gradients_repeat() -> None:
    second = [PROBLEMS["sparse"].gradient(np.ones(2), t)[1] for t in range(1, 12)]
    assert second == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert [GIVEN.gradient(np.ones(1), t)[0] for t in range(1, 7)] == [1, 0, -2, 3e-9, 1, 0]
    assert GIVEN.loss(np.ones(1)) is None


def rows(out: str) -> Iterator[list[str]]:
    """The cells of the tables that were printed."""
    for line in out.splitlines():
        if re.match(r" *\d+ +\S+ +\S+ +\S+ ", line) and "of" not in line:
            yield line.split()


@pytest.mark.parametrize(
    ("arguments", "hyper", "keys"),
    [
        ([], Hyper(0.1), "p g m v m_hat v_hat step update new"),
        (
            ["--problem=ravine", "--weight-decay=0.1", "--amsgrad", "--lr=1e-6", "--steps=12"],
            Hyper(1e-6, weight_decay=0.1, amsgrad=True, decoupled_weight_decay=True),
            "p g decay m v v_max m_hat v_hat step update new",
        ),
        (
            ["--gradients=1,0,-2,3e-9", "--beta1=0.5", "--beta2=0.7", "--eps=1", "--coupled"],
            Hyper(0.1, (0.5, 0.7), 1.0),
            "p g m v m_hat v_hat step update new",
        ),
    ],
)
def test_table(adamas: Adamas, arguments: list[str], hyper: Hyper, keys: str) -> None:
    status, out, err = adamas(*arguments)
    assert (status, err) == (0, "")
    hand = "--gradients=1,0,-2,3e-9" in arguments
    problem = GIVEN if hand else PROBLEMS["ravine" if arguments else "quadratic"]
    steps = trace(problem, hyper, 4 if hand else 12 if arguments else 10, problem.start)
    expected = [
        [str(step.t), *(number(float(getattr(step, key)[i])) for key in keys.split())]
        for i in range(len(problem.start))
        for step in steps
    ]
    assert list(rows(out)) == expected
    for text in ("moving average", "(1 - beta1) g", "RMSProp", "AdamW", "at t = 1, m is"):
        assert text in out


def test_default_fits_a_terminal(adamas: Adamas) -> None:
    _, out, _ = adamas()
    assert max(map(len, out.splitlines())) <= 80
    assert "after 10 steps, p is 0.07625; the loss went from 0.5 to 0.002907" in out


def test_start_may_be_negative(adamas: Adamas) -> None:
    _, out, _ = adamas("--problem", "tilted", "--start", "-2,1", "--steps", "1")
    assert [row[1] for row in rows(out)] == ["-2", "1"]


def test_what_overflows_is_said(adamas: Adamas) -> None:
    status, out, _ = adamas("--lr=1e300", "--start=1e100", "--steps=3")
    assert status == 0
    assert "the numbers grew beyond float64: lower --lr" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--problem=ravin"], "one of quadratic, ravine, tilted, noisy, sparse, got 'ravin'; did "),
        (["--problem=x"], "--problem must be one of quadratic, ravine, tilted, noisy, sparse, got"),
        (["--problem=noisy", "--gradients=1"], "--problem and --gradients exclude each other"),
        (["--steps=0"], "--steps must be from 1 to 1000, got 0"),
        (["--steps=1001"], "--steps must be from 1 to 1000, got 1001"),
        (["--steps=many"], "Invalid value for '--steps'"),
        (["--lr=-1"], "lr must be finite and at least 0, got -1.0"),
        (["--lr=nan"], "lr must be finite and at least 0, got nan"),
        (["--lr=1e308", "--beta1=0.99"], "step_size = inf exceeds float64: lower it"),
        (["--beta1=1"], "beta1 must be in [0, 1), got 1.0"),
        (["--beta2=-0.1"], "beta2 must be in [0, 1), got -0.1"),
        (["--eps=inf"], "eps must be finite and at least 0, got inf"),
        (["--weight-decay=-1"], "weight_decay must be finite and at least 0, got -1.0"),
        (["--gradients=1;2"], "--gradients must be numbers with commas between them, such as 1,0"),
        (["--gradients="], "--gradients must be finite numbers, at least one"),
        (["--gradients=1,nan"], "--gradients must be finite numbers, at least one"),
        ([f"--gradients={'1,' * 1000}1"], "--gradients must be at most 1000 numbers, got 1001"),
        (["--start=a"], "--start must be numbers with commas between them, such as 1, got 'a'"),
        (["--start=1e101"], "none beyond 1e+100"),
        (["--start=1,2"], "--start must be 1 number for the problem 'quadratic', got 2"),
        (["--problem=ravine", "--start=1"], "--start must be 2 numbers for the problem 'ravine'"),
        (["--html=no/page.html"], "--html no/page.html cannot be written (No such file"),
        (["--html=."], "--html . cannot be written (Is a directory): choose another"),
    ],
)
def test_one_line_of_error(
    adamas: Adamas, tmp_path: Path, arguments: list[str], message: str
) -> None:
    status, out, err = adamas(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("adamas: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    code = "import sys; from adamas.cli import main; main(); print(*sys.modules)"
    command = [sys.executable, "-c", code, "explain", f"--html={tmp_path / 'page.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "sklearn", "plotly"} & set(done.stdout.split())


def test_page_is_one_small_file(adamas: Adamas, tmp_path: Path) -> None:
    status, out, err = adamas("--html=page.html")
    assert (status, err) == (0, "")
    assert out.endswith("page: page.html\n")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(html.encode()) < 100_000
    assert "default-src 'none'" in html
    assert not re.search(r"https?:(?!//www.w3.org/2000/svg)|@import|<link|<img|\bsrc=", html)
    for name in ("lr", "beta1", "beta2", "eps", "weight_decay", "steps"):
        assert f'<label for="{name}">' in html
        assert f'<input type="range" id="{name}"' in html
