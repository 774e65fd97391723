"""The core's settings, threads and surroundings; its bits are held in test_bits.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import warnings
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import numbers

from adamas import Adam, Hyper, RMSpropHyper, SGDHyper, native, reference
from adamas.hyper import Coefficients, Rule
from adamas.reference import State

HYPER = Hyper(lr=0.01)
RULES: dict[str, Rule] = {
    "adam": HYPER,
    "amsgrad": Hyper(lr=0.01, amsgrad=True),
    "sgd": SGDHyper(lr=0.01, weight_decay=0.1),
    "momentum": SGDHyper(lr=0.01, momentum=0.9),
    "rmsprop": RMSpropHyper(lr=0.01, weight_decay=0.1),
    "rmsprop-momentum": RMSpropHyper(lr=0.01, momentum=0.9),
    "centered": RMSpropHyper(lr=0.01, centered=True),
    "centered-momentum": RMSpropHyper(lr=0.01, centered=True, momentum=0.9),
}


def rows_of(param: np.ndarray, grad: np.ndarray, state: State, hyper: Rule = HYPER) -> np.ndarray:
    row = native.table(1)
    row[0, native.PARAM], row[0, native.GRAD] = param.ctypes.data, grad.ctypes.data
    for key in state.keys() - {"step"}:
        row[0, native.column(key, hyper.keys)] = state[key].ctypes.data
    row[0, native.SIZE] = param.size
    row[0, native.TYPES] = native.types(str(param.dtype), rule=hyper.rule)
    return row


def stepped(
    size: int, dtype: str, hyper: Rule = HYPER, **settings: object
) -> tuple[list[bytes], list[bytes]]:
    """What the core and the reference make of the same two steps."""
    param = numbers(3, size, dtype, -3, 3)
    own = reference.initial_state(param, hyper)
    expected, state = param.copy(), reference.initial_state(param, hyper)
    for t in (1, 2):
        grad = numbers(10 * t, size, dtype, -30, 10, sparse=True)
        expected, state = reference.step(expected, grad, state, hyper)
        native.step(
            rows_of(param, grad, own, hyper),
            np.array([hyper.coefficients(t, dtype)]),
            **settings,  # type: ignore[arg-type]
        )
    averages = [key for key in hyper.keys if key]
    return (
        [param.tobytes(), *(own[key].tobytes() for key in averages)],
        [expected.tobytes(), *(state[key].tobytes() for key in averages)],
    )


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hyper", RULES.values(), ids=RULES)
def test_row_3_every_tail(hyper: Rule, dtype: str, isa: str) -> None:
    for size in [*range(70), 127, 128, 129, 1023, 1024, 1025]:
        found, expected = stepped(size, dtype, hyper, isa=isa)
        assert found == expected, size


@pytest.mark.parametrize("isa", native.isas())
def test_threads_and_grains(isa: str) -> None:
    for threads, grain in product((1, 2, 3, 8), (0, 1, 7, 1000, 4096, 1 << 40)):
        found, expected = stepped(5000, "float32", isa=isa, threads=threads, grain=grain)
        assert found == expected, (threads, grain)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_pieces_that_shrink_cover_each_element_of_each_row_once(threads: int) -> None:
    cuts = [0, 1, 65, 40_000, 40_000, 100_001, 433_333, 700_003]
    param = numbers(3, cuts[-1], "float32", -3, 3)
    grad = numbers(10, cuts[-1], "float32", -30, 10, sparse=True)
    own = reference.initial_state(param, HYPER)
    expected, state = reference.step(param, grad, own, HYPER)
    rows = [
        rows_of(param[i:j], grad[i:j], {k: v[i:j] for k, v in own.items() if k != "step"})
        for i, j in pairwise(cuts)
    ]
    native.step(np.concatenate(rows), np.array([HYPER.coefficients(1, "float32")]), threads)
    assert param.tobytes() == expected.tobytes()
    assert all(own[key].tobytes() == state[key].tobytes() for key in ("exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hyper", RULES.values(), ids=RULES)
def test_a_measured_step_has_the_same_bits(hyper: Rule, dtype: str, isa: str) -> None:
    first, second, third = hyper.keys
    moved_by = third if hyper.rule == "rmsprop" else first
    for size, threads, grain in product((1, 1023, 1025, 5000), (1, 2), (1000, 4096)):
        param = numbers(3, size, dtype, -3, 3)
        grad = numbers(10, size, dtype, -30, 10, sparse=True)
        own = reference.initial_state(param, hyper)
        expected, state = reference.step(param, grad, own, hyper, 0.5)
        before = param.copy()
        measures = np.zeros((1, native.MEASURES))
        native.step(
            rows_of(param, grad, own, hyper),
            np.array([hyper.coefficients(1, dtype, 0.5)]),
            threads,
            measures=measures,
            grain=grain,
            isa=isa,
        )
        (found,) = measures
        assert param.tobytes() == expected.tobytes()
        update = before.astype(float) - param
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(before == 0, 0, np.abs(update / before))
        averages = [state[key] if key else np.zeros(1) for key in (first, second)]
        vectors = (grad * 0.5, *averages, update, param)
        assert found[:5] == pytest.approx([np.sum(x.astype(float) ** 2) for x in vectors], 1e-12)
        mover = own[moved_by] if moved_by else grad
        assert found[5:].tolist() == [relative.max(), np.sum((param == before) & (mover != 0))]


@pytest.mark.parametrize(
    "change",
    [
        {native.SIZE: -1},
        {native.COEFFICIENTS: 1},
        {native.COEFFICIENTS: -1},
        {native.TYPES: 9},
        {native.TYPES: 3 << 32},
        {native.RUN: 0},
    ],
)
def test_a_bad_row_is_refused(change: dict[int, int]) -> None:
    param = np.ones(3, "float32")
    rows = rows_of(param, param, reference.initial_state(param, HYPER))
    for column, value in change.items():
        rows[0, column] = value
    with pytest.raises(ValueError, match="a row has"):
        native.step(rows, np.array([HYPER.coefficients(1)]))


@pytest.mark.parametrize("settings", [{"threads": -1}, {"grain": -1}, {"isa": "avx9000"}])
def test_bad_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        stepped(3, "float32", **settings)


@pytest.mark.parametrize("ends", [[0, 2], [4], []])
def test_a_gate_of_other_rows_is_refused(ends: list[int]) -> None:
    with pytest.raises(ValueError, match="a gate must have the rows' elements"):
        stepped(3, "float32", gate=native.Gate(ends))


def test_a_gate_knows_its_parts() -> None:
    for ends in ([2, 1], [-1]):
        with pytest.raises(ValueError, match="one behind the other"):
            native.Gate(ends)
    gate = native.Gate([1, 3])
    for ask in (gate.open, gate.wait):
        with pytest.raises(IndexError, match="no such part"):
            ask(2)
    gate.close()
    assert not gate.wait(1)


def test_a_step_waits_at_a_gate_without_the_interpreter() -> None:
    ends = [1024, 1024, 40_000]
    gate = native.Gate(ends)
    param = numbers(3, ends[-1], "float32", -3, 3)
    grad = numbers(4, ends[-1], "float32", -3, 3)
    expected, _ = reference.step(param, grad, reference.initial_state(param, HYPER), HYPER)
    state, before = reference.initial_state(param, HYPER), param.copy()

    def step() -> None:
        coefficients = np.array([HYPER.coefficients(1)])
        native.step(rows_of(param, grad, state), coefficients, 2, grain=777, gate=gate)

    caller = threading.Thread(target=step)
    caller.start()
    for part, (begin, end) in enumerate(pairwise([0, *ends])):
        assert np.array_equal(param[begin:], before[begin:])
        gate.open(part)
        assert gate.wait(part)
        assert np.array_equal(param[:end], expected[:end])
    caller.join()
    assert np.array_equal(param, expected)


def test_no_rows() -> None:
    native.step(native.table(0), np.zeros((0, len(Coefficients._fields))))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


STEP = "import numpy as np, adamas; p = np.ones(9); adamas.Adam(p).step(p + 1); print(p[0])"


@pytest.mark.parametrize("isa", native.isas())
def test_row_47_the_environment_chooses_the_instruction_set(isa: str) -> None:
    result = run_python(STEP, ADAMAS_ISA=isa)
    assert result.stdout.startswith("0.999"), result.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ADAMAS_ISA": "mmx"}, "ADAMAS_ISA must be one of .*baseline.*, got 'mmx'"),
        ({"ADAMAS_NUM_THREADS": "many"}, "ADAMAS_NUM_THREADS must be a whole number"),
        ({"ADAMAS_NUM_THREADS": "0"}, "ADAMAS_NUM_THREADS must be a whole number"),
    ],
)
def test_a_bad_environment(environment: dict[str, str], message: str) -> None:
    result = run_python(STEP, **environment)
    assert result.returncode == 1
    assert "ValueError" in result.stderr
    assert re.search(message, result.stderr)


def test_default_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    monkeypatch.delenv("ADAMAS_NUM_THREADS", raising=False)
    assert native.default_threads() == 3
    monkeypatch.setenv("ADAMAS_NUM_THREADS", "5")
    assert native.default_threads() == 5
    monkeypatch.delenv("ADAMAS_NUM_THREADS")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert native.default_threads() >= 1


def test_row_47_a_missing_core_says_what_to_do() -> None:
    code = (
        "import sys; sys.modules['adamas._core'] = None\n"
        "try:\n    import adamas\n"
        "except ImportError as error:\n    print(error)"
    )
    result = run_python(code)
    assert "compiled core is missing or does not load" in result.stdout
    assert "pip install" in result.stdout


def test_a_thread_that_steps_does_not_hinder_the_end_of_the_program() -> None:
    """Python ends threads that come back to it then."""
    code = (
        "import threading, adamas, numpy as np\n"
        "p, g = np.ones((2, 1 << 22), 'float32')\n"
        "optimizer, stepped = adamas.Adam(p), threading.Event()\n"
        "def work():\n"
        "    while True:\n"
        "        optimizer.step(g)\n"
        "        stepped.set()\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "stepped.wait()"
    )
    for _ in range(3):
        result = run_python(code)
        assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("stride", [1, 2], ids=["core", "reference"])
def test_denormals_survive_a_caller_that_flushes_them(stride: int) -> None:
    """As torch.set_flush_denormal and libraries built with -ffast-math do."""
    tiny, param = np.full(40, 1e-42, "float32"), np.ones(40 * stride, "float32")[::stride]
    expected, state = param.copy(), reference.initial_state(param, Hyper())
    for _ in range(3):
        expected, state = reference.step(expected, tiny, state, Hyper())
    optimizer = Adam(param)
    assert torch.set_flush_denormal(True)
    try:
        assert (tiny * np.float32(0.5) == 0).all()
        for _ in range(3):
            optimizer.step(tiny)
    finally:
        torch.set_flush_denormal(False)
    moment = optimizer.state_dict()["state/0/exp_avg"]
    assert (moment > 0).all()
    assert moment.tobytes() == state["exp_avg"].tobytes()
    assert param.tobytes() == expected.tobytes()


def test_a_step_after_fork() -> None:
    found, expected = stepped(200_000, "float32", threads=2)  # the threads run
    assert found == expected
    with warnings.catch_warnings():  # newer Pythons warn of fork beside threads, our point here
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            found, expected = stepped(200_000, "float32", threads=2)
            tasks = Path("/proc/self/task")  # of Linux
            alone = tasks.exists() and len(list(tasks.iterdir())) == 1
            os._exit(0 if found == expected and not alone else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_steps_from_several_threads() -> None:
    results: list[bool] = []

    def work() -> None:
        for _ in range(20):
            found, expected = stepped(40_000, "float32", threads=2, grain=1000)
            results.append(found == expected)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 80


@pytest.mark.parametrize(
    ("name", "value", "threads"),
    [
        ("OMP_NUM_THREADS", " 4", 4),
        ("OMP_NUM_THREADS", "3,2", 3),
        ("OMP_NUM_THREADS", "0", None),
        ("OMP_NUM_THREADS", "auto", None),
        ("OMP_NUM_THREADS", "4294967297", 1024),
        ("ADAMAS_NUM_THREADS", "2", 2),
    ],
)
def test_threads_of_the_environment(
    name: str, value: str, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    default = native.default_threads()
    monkeypatch.setenv(name, value)
    assert native.default_threads() == (threads or default)
