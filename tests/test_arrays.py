"""The NumPy front end."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import as_dtype, numbers, visible
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from adamas import Adam, AdamW, reference


def read_only() -> np.ndarray:
    array = np.ones(3)
    array.flags.writeable = False
    return array


BLOCK = np.ones((4, 6))
BAD_PARAMS: list[tuple[Any, type[Exception], str]] = [
    ([], ValueError, "params is empty"),
    ({}, ValueError, "params is empty"),
    (
        np.ones(3, int),
        TypeError,
        "array '0' must be a NumPy array of float16.* got ndarray of int64",
    ),
    (np.ones(3, complex), TypeError, "got ndarray of complex128"),
    ([np.ones(3), [1.0, 2.0]], TypeError, "array '1' must be .* got list"),
    ({"w": None}, TypeError, "array 'w' must be .* got NoneType"),
    ([np.float64(3.0)], TypeError, "must be a NumPy array"),
    (read_only(), ValueError, "array '0' is read-only"),
    ({"a": BLOCK, "b": BLOCK[1]}, ValueError, "arrays 'a' and 'b' share memory"),
    ([BLOCK, BLOCK], ValueError, "arrays '0' and '1' share memory"),
    ([BLOCK[:, 2:5], BLOCK[:, :3]], ValueError, "share memory"),
    ([BLOCK[:2], BLOCK[::-1]], ValueError, "share memory"),
    ({1: np.ones(1), "1": np.ones(1)}, ValueError, "keys must differ"),
    (as_strided(np.ones(1), (3,), (0,)), ValueError, "elements of array '0' share memory"),
    (as_strided(np.ones(4), (2, 3), (8, 8)), ValueError, "elements of array '0' share memory"),
    (np.ma.masked_array(np.ones(3), [0, 1, 0]), TypeError, "must be a NumPy array"),
    (np.ones(3, "u2"), TypeError, "ml_dtypes' bfloat16, got ndarray of uint16"),
]


@pytest.mark.parametrize(("params", "error", "message"), BAD_PARAMS)
def test_bad_params(params: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Adam(params)


BAD_GRADS: list[tuple[Any, type[Exception], str]] = [
    (
        {"w": np.ones(4)},
        ValueError,
        r"gradient of 'w' must have its array's shape \(3,\), got \(4,\)",
    ),
    ({"w": np.ones((3, 1))}, ValueError, r"got \(3, 1\)"),
    ({"w": np.ones(3, "f4")}, TypeError, "of 'w' must be an array of float64 beside.*of float32"),
    ({"w": np.ones(3, int)}, TypeError, "ndarray of int64"),
    ({"h": np.ones(3)}, TypeError, "'h' must be an array of float32, bfloat16 or float16 beside"),
    ({"h": np.ones(3, "u2")}, TypeError, "beside its array of float16, got ndarray of uint16"),
    ({"w": [1.0, 2.0, 3.0]}, TypeError, "got list"),
    ({"v": np.ones(3)}, ValueError, "got gradients for 'b', 'v', but the arrays are 'b', 'h', 'w'"),
    ([np.ones(3)], ValueError, "got gradients for '0'"),
    (np.ones(3), ValueError, "got gradients for '0'"),
]


@pytest.mark.parametrize(("grads", "error", "message"), BAD_GRADS)
def test_bad_grads_touch_nothing(grads: Any, error: type[Exception], message: str) -> None:
    params = {"b": np.ones(2), "w": np.ones(3), "h": np.ones(3, "f2")}
    optimizer = Adam(params)
    if isinstance(grads, dict):
        grads = {"b": np.ones(2)} | grads  # the good one comes first
    before = optimizer.state_dict()
    with pytest.raises(error, match=message):
        optimizer.step(grads)
    assert all((param == 1).all() for param in params.values())
    assert all(np.array_equal(before[k], v) for k, v in optimizer.state_dict().items())


def test_a_list_needs_a_gradient_or_none_for_each() -> None:
    params = [np.ones(2), np.ones(2)]
    optimizer = Adam(params, lr=0.1)
    with pytest.raises(ValueError, match="got gradients for '0', but"):
        optimizer.step([np.ones(2)])
    optimizer.step([None, np.ones(2)])
    assert params[0].tolist() == [1, 1]
    assert params[1] == pytest.approx([0.9, 0.9])


def test_row_8_each_array_has_its_own_step() -> None:
    params = {"always": np.ones(3), "sometimes": np.ones(3)}
    alone = np.ones(3)
    optimizer, lonely = Adam(params), Adam(alone)
    for t in range(10):
        grads = {"always": np.full(3, 0.1 * t)}
        if t % 3 == 0:
            grads["sometimes"] = np.full(3, 0.5 + t)
            lonely.step(grads["sometimes"])
        optimizer.step(grads)
    assert params["sometimes"].tobytes() == alone.tobytes()
    assert optimizer.state_dict()["state/always/step"] == 10
    assert optimizer.state_dict()["state/sometimes/step"] == 4


def test_row_1_an_empty_array_stops_nobody() -> None:
    params = [np.ones(n) for n in (1, 1, 0, 1, 0)]
    Adam(params, lr=0.5).step([np.ones_like(p) for p in params])
    assert [p.tolist() for p in params] == [pytest.approx([0.5] * len(p)) for p in params]


def views(dtype: str) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Arrays of all memory orders, each with a gradient of another."""
    base, grad = as_dtype(1, 240, dtype, -2, 2), as_dtype(2, 240, dtype, -2, 2)
    swapped = base.astype(base.dtype.newbyteorder())
    unaligned = np.frombuffer(bytearray(b"x" + base.tobytes()), np.uint8)[1:].view(base.dtype)
    return [
        ("c", base.reshape(8, 30).copy(), grad.reshape(30, 8).T),
        ("fortran", np.asfortranarray(base.reshape(8, 30)), grad.reshape(8, 30)),
        ("gaps", base.reshape(8, 30)[::2, 1::3], grad.reshape(8, 30)[::2, 1::3]),
        ("backwards", base.copy()[::-1], grad.copy()),
        ("zero dimensions", np.array(base[0]), np.array(grad[0])),
        ("other byte order", swapped, grad.astype(swapped.dtype)),
        ("unaligned", unaligned, grad),
        ("permuted", base.copy().reshape(4, 6, 10).transpose(2, 0, 1), grad.reshape(10, 4, 6)),
        ("expanded gradient", base.copy(), np.broadcast_to(grad[:1], 240)),
    ]


@pytest.mark.parametrize(
    ("dtype", "moments", "master_bits"),
    [
        *product(["float16", "float32", "float64", "bfloat16"], ["float32"], [32]),
        *product(["float16", "float32", "bfloat16"], ["bfloat16", "int8", "int4"], [32]),
        *product(["bfloat16"], ["float32", "int4"], [24, 16]),
        ("float16", "int8", 16),
    ],
)
def test_memory_orders(dtype: str, moments: str, master_bits: int) -> None:
    """REGRESSIONS 6: whatever the strides, the elements that belong together meet."""
    for name, param, grad in views(dtype):
        kept = {"moments": moments, "master_bits": master_bits}
        optimizer = AdamW({"w": visible(param)}, lr=0.01, amsgrad=True, **kept)
        # in C order, in native byte order
        expected = param.astype(param.dtype.newbyteorder("=")).copy("C")
        state = reference.initial_state(expected, optimizer.hyper, **kept)
        for shift in (0, 3, 5):
            moved = np.roll(grad, shift)
            optimizer.step({"w": visible(moved)})
            expected, state = reference.step(expected, moved, state, optimizer.hyper)
        assert np.array_equal(param, expected), name
        saved = optimizer.state_dict()
        for key, value in state.items():
            assert np.array_equal(saved[f"state/w/{key}"], value), (name, key)


def test_a_gradient_may_be_the_parameter_or_another() -> None:
    one, other = numbers(1, 5000, "float32", -2, 2), numbers(2, 5000, "float32", -2, 2)
    expected = [one.copy(), other.copy()]
    optimizer, plain = Adam([one, other]), Adam(expected)
    for _ in range(3):
        plain.step([expected[0].copy(), expected[0].copy()])
        optimizer.step([one, one])
    assert np.array_equal(one, expected[0])
    assert np.array_equal(other, expected[1])


def test_a_gradient_that_is_a_fortran_array() -> None:
    one = np.asfortranarray(numbers(1, 6, "float64", -2, 2).reshape(2, 3))
    other = one.copy("F")
    optimizer, plain = Adam(one, lr=0.1), Adam(other, lr=0.1)
    for _ in range(3):
        plain.step(other.copy("F"))
        optimizer.step(one)
    assert np.array_equal(one, other)


@pytest.mark.parametrize("rule", [Adam, AdamW])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_state_through_a_file(rule: type[Adam], amsgrad: bool, tmp_path: Path) -> None:
    def start() -> dict[str, np.ndarray]:
        return {
            "w": numbers(1, 12, "float32", -2, 2).reshape(3, 4),
            "b": numbers(2, 3, "float64", 0, 1),
        }

    def grads(t: int) -> dict[str, np.ndarray]:
        return {
            k: numbers(10 + t, p.size, str(p.dtype), -3, 3).reshape(p.shape)
            for k, p in start().items()
        }

    straight, halted = start(), start()
    one, two = rule(straight, lr=0.1, amsgrad=amsgrad), rule(halted, lr=0.1, amsgrad=amsgrad)
    for t in range(5):
        one.step(grads(t))
        two.step(grads(t))
    np.savez(tmp_path / "state.npz", **two.state_dict())
    three = rule(halted, lr=99)
    with np.load(tmp_path / "state.npz") as saved:
        three.load_state_dict(saved)
    assert three.hyper == one.hyper
    for t in range(5, 9):
        one.step(grads(t))
        three.step(grads(t))
    assert all(np.array_equal(straight[k], halted[k]) for k in straight)


def saved(optimizer: Adam, cut: int | None = None) -> Any:
    file = io.BytesIO()
    np.savez(file, **optimizer.state_dict())
    return np.load(io.BytesIO(file.getvalue()[:cut]))


def edited(**changes: Any) -> dict[str, Any]:
    state = Adam({"w": np.ones(3)}).state_dict()
    return {k: v for k, v in (state | changes).items() if v is not None}


BAD_STATES: list[tuple[Any, str]] = [
    ({}, "it has no 'hyper/lr'"),
    ([1, 2], "must be a mapping"),
    (
        Adam({"v": np.ones(3)}).state_dict(),
        "of other arrays than these: it lacks 'state/w/exp_avg'",
    ),
    (Adam({"w": np.ones(4)}).state_dict(), r"exp_avg of array 'w' must be float64 of shape \(3,\)"),
    (Adam({"w": np.ones(3, "f4")}).state_dict(), "must be float64, got float32"),
    (AdamW({"w": np.ones(3)}).state_dict(), "the state is AdamW's, not Adam's"),
    (edited(**{"hyper/lr": np.array(-1.0)}), "lr must be finite"),
    (edited(**{"hyper/lr": np.array([1.0])}), "the state is not one of adamas's"),
    (edited(rule=np.array("lion")), "rule must be one of adam, sgd, rmsprop, got 'lion'"),
    (edited(**{"hyper/maximize": np.array("False")}), "maximize must be True or False"),
    (edited(**{"state/w/step": np.array(1 << 62)}), "step of array .w. must be from 0 to"),
    (edited(**{"state/w/step": np.array(-1)}), "step of array .w. must be from 0 to"),
    (edited(**{"state/w/step": np.array([1, 2])}), "step of array 'w' must be int64 of shape"),
    (edited(**{"state/w/exp_avg": None}), "it lacks 'state/w/exp_avg'"),
    (edited(**{"state/w/exp_avg": np.array([None] * 3)}), "exp_avg of array 'w' must be float64"),
]


@pytest.mark.parametrize(("state", "message"), BAD_STATES)
def test_a_bad_state_changes_nothing(state: Any, message: str) -> None:
    param = np.ones(3)
    optimizer = Adam({"w": param}, lr=0.5)
    optimizer.step({"w": np.ones(3)})
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert optimizer.lr == 0.5
    assert all(np.array_equal(before[k], v) for k, v in optimizer.state_dict().items())


def test_a_damaged_file() -> None:
    optimizer = Adam({"w": np.ones(3000)})
    file = io.BytesIO()
    np.savez(file, **optimizer.state_dict())
    damaged = bytearray(file.getvalue())
    at = damaged.index(b"state/w/exp_avg") + 2000
    damaged[at : at + 8] = b"damaged!"
    with (
        np.load(io.BytesIO(bytes(damaged))) as archive,
        pytest.raises(ValueError, match="the state is truncated or not one of adamas's"),
    ):
        optimizer.load_state_dict(archive)


def test_hyper_between_steps() -> None:
    param = np.ones(1)
    optimizer = Adam(param, lr=0.5)
    optimizer.step(np.ones(1))
    optimizer.lr = 0.25
    optimizer.step(np.ones(1))
    assert param[0] == pytest.approx(0.25)
    optimizer.hyper = replace(optimizer.hyper, lr=0.0)
    optimizer.step(np.ones(1))
    assert param[0] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="lr must be finite and at least 0, got -1"):
        optimizer.lr = -1
    with pytest.raises(ValueError, match="amsgrad cannot change"):
        optimizer.hyper = replace(optimizer.hyper, amsgrad=True)
    assert optimizer.lr == 0


def test_row_17_lr_zero_changes_nothing() -> None:
    for rule in (Adam, AdamW):
        param = np.array([1.0, -0.0, 1e-300])
        before = param.tobytes()
        rule(param, lr=0.0).step(np.array([0.0, 1.0, 1e300]))
        assert param.tobytes() == before


def test_nan_and_infinite_gradients_are_not_errors() -> None:
    param = np.ones(4, "float32")
    optimizer = Adam(param, amsgrad=True)
    expected, state = param.copy(), reference.initial_state(param, optimizer.hyper)
    for grad in ([np.nan, np.inf, -np.inf, 1e30], [1, 1, 1, 1]):
        optimizer.step(np.array(grad, "float32"))
        expected, state = reference.step(
            expected, np.array(grad, "float32"), state, optimizer.hyper
        )
    np.testing.assert_array_equal(param, expected)
    assert param[3] == 1  # its second moment is infinite


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 200), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(["float32", "float64"]),
    present=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_equals_the_reference(sizes: list[int], seed: int, dtype: str, present: list[bool]) -> None:
    """However the arrays are listed: together, apart, in any order, with gradients missing."""
    params = [numbers(seed + i, n, dtype, -20, 20) for i, n in enumerate(sizes)]
    grads = [
        numbers(seed + 50 + i, n, dtype, -20, 20) if here else None
        for i, (n, here) in enumerate(zip(sizes, present, strict=False))
    ]
    expected = params
    hyper = AdamW(np.ones(1)).hyper
    expected = [
        p.copy() if g is None else reference.step(p, g, reference.initial_state(p, hyper), hyper)[0]
        for p, g in zip(params, grads, strict=True)
    ]
    order = np.random.default_rng(seed).permutation(len(sizes))
    AdamW([params[i] for i in order]).step([grads[i] for i in order])
    assert [p.tobytes() for p in params] == [e.tobytes() for e in expected]


def steps(optimizer: Adam, count: int) -> None:
    for _ in range(count):
        optimizer.step([np.ones(5), np.ones(5)])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_have_arrays_of_their_own(copied: Callable[[Adam], Adam]) -> None:
    params = [np.zeros(5), np.zeros((5, 2))[:, 0]]
    optimizer = Adam(params, lr=0.5)
    steps(optimizer, 1)
    other = copied(optimizer)
    before = [p.copy() for p in params]
    steps(other, 2)
    assert all((p == q).all() for p, q in zip(params, before, strict=True))
    assert optimizer.state_dict()["state/0/step"] == 1
    steps(optimizer, 2)
    for key, value in optimizer.state_dict().items():
        assert np.array_equal(value, other.state_dict()[key]), key
    assert all(np.array_equal(p, q) for p, q in zip(params, other._params.values(), strict=True))


def test_an_array_that_is_changed_under_the_optimizer() -> None:
    def resize(array: np.ndarray) -> None:
        array.resize(100_000, refcheck=False)

    def retype(array: np.ndarray) -> None:
        array.dtype = np.dtype("f4")

    def lock(array: np.ndarray) -> None:
        array.flags.writeable = False

    cases = ((resize, "was resized"), (retype, "another dtype"), (lock, "is read-only"))
    for change, message in cases:
        first, second = np.ones(5), np.ones(5)
        optimizer = Adam([first, second])
        change(second)
        with pytest.raises(ValueError, match=f"array '1' {message}|{message}"):
            steps(optimizer, 1)
        assert (first == 1).all()


def test_one_array_is_no_gradient_of_two() -> None:
    with pytest.raises(ValueError, match="pass them in the form of params"):
        Adam([np.ones(3), np.ones(3)]).step(np.ones(3))


def test_loading_while_another_thread_steps() -> None:
    optimizer = Adam(np.ones(300_000))
    state = optimizer.state_dict()
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            optimizer.load_state_dict(state)

    thread = threading.Thread(target=load)
    thread.start()
    for _ in range(50):
        optimizer.step(np.ones(300_000))
    done.set()
    thread.join()


def test_steps_outside_the_main_thread() -> None:
    strided = np.ones((3, 2))[:, 0]
    optimizer = Adam(strided, lr=0.5)
    thread = threading.Thread(target=optimizer.step, args=[np.ones(3)])
    thread.start()
    thread.join()
    assert strided == pytest.approx([0.5] * 3)


def step_until(seconds: float, optimizer: Adam, grads: list[np.ndarray]) -> None:
    """Steps until the alarm, but not so often that nobody knows the result."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    for _ in range(400):
        optimizer.step(grads)
    time.sleep(1)


def test_interrupts_do_not_part_a_step_from_its_count() -> None:
    """An interrupt at any moment leaves a number of whole steps, and that number."""
    size = 200_000
    twin, whole = np.zeros(size), []
    follower = Adam(twin, lr=0.5)
    for _ in range(400):
        follower.step(np.ones(size))
        whole.append(twin[[0, -1]].tolist())
    param, strided = np.zeros(size), np.zeros((50, 2))[:, 0]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    gc.disable()  # what is raised in a callback of the collection's, as Hypothesis has one, is lost
    previous = signal.signal(signal.SIGINT, interrupt)
    alarm = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        for number in range(40):
            for params in ([param], [param, strided]):
                param[:], strided[:] = 0, 0
                optimizer = Adam(params, lr=0.5)
                grads = [np.ones(p.shape) for p in params]
                with pytest.raises(KeyboardInterrupt):
                    step_until(0.0005 + 0.00011 * number, optimizer, grads)
                state = optimizer.state_dict()
                counted = int(state["state/0/step"])
                assert param[[0, -1]].tolist() == ([0, 0] if not counted else whole[counted - 1])
                if len(params) == 2:
                    assert state["state/1/step"] == counted
                    assert strided[0] == param[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        gc.enable()
        signal.signal(signal.SIGINT, previous)
