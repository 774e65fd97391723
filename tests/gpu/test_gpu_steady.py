"""What a step costs where nothing moves: one row sent, the launches, and nothing kept."""

from __future__ import annotations

import gc
import sys
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from devices import give, needs_gpu, weights

from adamas import native
from adamas.torch import AdamW, gpu, step_in_backward
from adamas.torch.gpu import kernels, prepare, sets, staging
from adamas.torch.gpu.jit import Launcher
from adamas.torch.gpu.launches import Launches
from adamas.torch.gpu.staging import Staging
from adamas.torch.plan import Plan

pytestmark = pytest.mark.gpu

SHAPES = [(70,), (0,), (5, 3), ()]
KERNELS = {
    id(kernels.step_chunk): "step",
    id(kernels.place_gradients): "place",
    id(prepare.prepare): "prepare",
}


@pytest.fixture
def done(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts launches, what is built, and the bytes that are sent; without a GPU, none is done."""
    if device.type == "cpu":
        monkeypatch.setattr(Launcher, "__call__", lambda *_, **__: None)
    found: Counter[str] = Counter()

    def count(owner: Any, name: str, key: Callable[..., str], more: Any = lambda *_: 1) -> None:
        original = getattr(owner, name)

        def counted(self: Any, *arguments: Any, **options: Any) -> Any:
            found[key(self)] += more(*arguments)
            return original(self, *arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    count(Launcher, "__call__", lambda self: KERNELS[id(self._kernel)])
    count(Launches, "_build", lambda _: "build")
    count(Plan, "__init__", lambda _: "plan")
    count(Staging, "send", lambda _: "bytes", lambda array, _: array.nbytes)
    return found


def test_a_look_asks_no_python(device: torch.device) -> None:
    """Which takes ten microseconds a parameter: this torch is as the compiled watch needs it."""
    params = weights(SHAPES, device)
    optimizer = AdamW(params)
    give(params, 0)
    optimizer.step()
    assert {type(table._watch) for table in optimizer._plan._tables} == {native.Watch}


COSTS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "plain": ({}, {"step": 1, "bytes": 13 * 8}),
    "clips": ({"max_grad_norm": 1.0}, {"step": 1, "prepare": 1, "bytes": 13 * 8}),
    "skips": ({"skip_nonfinite": True}, {"step": 1, "prepare": 1}),
    "captures": ({"capturable": True}, {"step": 1, "prepare": 1}),
}


def places(cost: dict[str, int]) -> int:
    """Launches that tell chunks where their gradients are: what else prepares a step does that."""
    return 1 - cost.get("prepare", 0)


@pytest.mark.parametrize("name", COSTS)
def test_a_step_while_nothing_moves(name: str, device: torch.device, done: Counter[str]) -> None:
    """Two groups of one dtype: the row of coefficients is of each."""
    options, cost = COSTS[name]
    params = weights(SHAPES, device)
    optimizer = AdamW(params, lr=0.1, **options)
    give(params, 0)
    for _ in range(2):
        optimizer.step()
    assert (done["plan"], done["build"], done["place"]) == (1, 1, places(cost))
    done.clear()
    plan = optimizer._plan
    assert plan
    assert plan.alone
    there = plan.alone._launches
    before = [t.data_ptr() for t in (there.chunks, there.coefficients, there.placed)]
    for _ in range(3):
        optimizer.step()
    assert not there.moved
    # A graph goes on writing and reading there.
    assert [t.data_ptr() for t in (there.chunks, there.coefficients, there.placed)] == before
    assert dict(done) == {key: 3 * value for key, value in cost.items()}
    if name in ("skips", "captures"):
        done.clear()
        optimizer.param_groups[0]["lr"] = 0.05
        optimizer.step()
        assert dict(done) == cost | {"bytes": 8 * sets.COLUMNS}


@pytest.mark.parametrize("name", COSTS)
def test_a_step_whose_gradients_have_moved(
    name: str, device: torch.device, done: Counter[str]
) -> None:
    """Their addresses are sent, and nothing is built anew. There are two launches at most."""
    options, cost = COSTS[name]
    params = weights(SHAPES, device)
    optimizer = AdamW(params, lr=0.1, **options)
    kept = []
    for t in range(3):
        done.clear()
        give(params, t)
        kept += [p.grad for p in params]
        optimizer.step()
    sent = cost.get("bytes", 0) + 2 * 8 * len(SHAPES)
    assert done == Counter(cost | {"place": places(cost), "bytes": sent})
    assert done["step"] + done["prepare"] + done["place"] == 2


@pytest.mark.parametrize("options", [{}, {"capturable": True}], ids=["plain", "captures"])
def test_steps_in_backward_build_nothing(
    options: dict[str, Any], device: torch.device, done: Counter[str]
) -> None:
    """Each parameter's plan and that of all leave one another's counts where they are."""
    params = weights(SHAPES, device)
    optimizer = AdamW(params, lr=0.1, **options)
    step_in_backward(optimizer)
    for t in range(5):
        if t == 2:
            done.clear()
        sum((p * p).sum() for p in params).backward()  # type: ignore[union-attr]
        optimizer.step()
    assert (done["plan"], done["build"]) == (0, 0)


def test_gradients_that_come_and_go_build_nothing(device: torch.device, done: Counter[str]) -> None:
    params = weights(SHAPES, device)
    optimizer = AdamW(params, lr=0.1)
    for t in range(4):
        give(params, t, missing=(t,) if t else ())
        optimizer.step()
    assert (done["plan"], done["build"]) == (1, 1)


@pytest.mark.parametrize("name", COSTS)
def test_row_46_200_steps_leave_nothing_behind(
    name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REGRESSIONS 46: with gradients that move, and a scale; without what interprets kernels."""
    if device.type == "cpu":
        monkeypatch.setattr(Launcher, "__call__", lambda *_, **__: None)
    params = weights(SHAPES, device, torch.bfloat16)
    optimizer = AdamW(params, lr=0.1, moments="int8", **COSTS[name][0])
    two = [[torch.ones_like(p) for p in params] for _ in range(2)]

    def steps(count: int) -> None:
        for t in range(count):
            for p, grad in zip(params, two[t % 2], strict=True):
                p.grad = grad
            optimizer.found_inf = optimizer.grad_scale = torch.zeros(1, device=device)  # type: ignore[attr-defined]
            optimizer.step()

    steps(20)
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    held = []
    for _ in range(3):  # after the first lists of free objects are full
        steps(100)
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    gc.collect()
    # Not an object in four steps. Other threads of the process may leave something, once.
    assert min(later - earlier for earlier, later in pairwise(held)) < 400
    assert len(gc.get_objects()) - objects < 10


def test_pinned_memory_is_used_in_turn(device: torch.device) -> None:
    """However many steps are sent; on a GPU alone is any pinned."""
    staging, target = Staging(), torch.zeros(64, dtype=torch.int64, device=device)
    for i in range(100):
        array = np.full(64, i)
        staging.send(array, target)
        array[:] = -1  # the copy has its own
        if device.type == "cuda" and i % 10 == 9:
            torch.cuda.synchronize()
    assert target.tolist() == [99] * 64
    assert len(staging._slots) <= 20


def test_a_copy_that_fails_leaves_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the last one of those that share a buffer."""
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *a, pin_memory=False, **options: empty(*a, **options)
    )
    event = SimpleNamespace(record=lambda: None, query=lambda: True)
    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace(Event=lambda: event))
    sender, array = Staging(), np.zeros(13)
    target = torch.zeros(13, dtype=torch.float64, device="meta")
    for _ in range(40):
        sender.send(array, target)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "copy_", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                sender.send(array, target)
    assert len(sender._slots) <= 2


@pytest.mark.parametrize(("rows", "room"), [(1, 256), (16, 4096), (148, 4096)])
def test_small_tables_take_little_pinned_memory(rows: int, room: int) -> None:
    """As each parameter's where backward steps them one by one."""
    launches = Launches(native.table(rows), torch.device("cpu"))
    assert launches._staging._small == room


@needs_gpu
def test_small_copies_share_an_event(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a large one, too, whose buffer is none for them."""
    recorded = []
    monkeypatch.setattr(torch.cuda.Event, "record", lambda self: recorded.append(self))
    staging, small = Staging(), torch.zeros(13, dtype=torch.float64, device=device)
    for i in range(64):
        if i % 32 == 0:
            large = torch.zeros(1000, dtype=torch.float64, device=device)
            staging.send(np.zeros(1000), large)
        staging.send(np.full(13, float(i)), small)
    assert small.tolist() == [63.0] * 13
    assert len(recorded) == 2 + 64 // 16


@pytest.mark.parametrize(
    ("version", "takes"), [("3.6.0", True), ("4.0", True), ("3.5.1", False), (None, False)]
)
def test_triton_is_missing_or_old(
    version: str | None, takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = None if version is None else SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, "triton", module)  # None: as if it were not installed
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert gpu._has_triton.__wrapped__() == takes
    assert [f"Triton {version}" in str(w.message) or version is None for w in told] == (
        [] if takes else [True]
    )


@pytest.mark.parametrize(
    ("size", "sets", "steps"), [(10, 14, 40), (1000, 14, 8), (1000, 700, 8), (600, 2000, 8)]
)
def test_what_captured_steps_send(
    size: int, sets: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table's addresses and a few numbers each, which keep their places in pinned memory."""
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *a, pin_memory=False, **options: empty(*a, **options)
    )
    events = SimpleNamespace(Event=lambda: None)
    monkeypatch.setattr(torch, "get_device_module", lambda _: events)
    monkeypatch.setattr(staging, "is_capturing", lambda _: True)
    sender, device = Staging(), torch.device("meta")
    sender.reserve([8 * size, 8 * sets], device)
    kept = []

    def send(*numbers: int) -> None:
        for n in numbers:
            array = np.full(n, float(len(kept)))
            sender.send(array, torch.zeros(n, dtype=torch.float64, device=device))
            slot = sender._captured[-1]
            begin = (slot.filled - 1) * slot._room
            kept.append((array, slot._array[begin : begin + array.nbytes]))

    for _ in range(steps):
        send(1, size, sets)
    for array, there in kept:
        assert there.tobytes() == array.tobytes()
    with pytest.raises(RuntimeError, match="hold all memory that was pinned for them"):
        send(*[size] * steps)
    with pytest.raises(RuntimeError, match="make three steps"):
        Staging().send(np.zeros(1), torch.zeros(1, dtype=torch.float64, device=device))
