"""How a table is cut into chunks, and the order in which they go round."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adamas import native
from adamas.torch import AdamW, gpu
from adamas.torch.gpu import chunks, offload, ring
from adamas.torch.gpu.chunks import cuts, place
from adamas.torch.gpu.ring import Ring


def index_in_whole(row: Any, k: Any) -> Any:
    offset, run, stride = row[[native.OFFSET, native.RUN, native.STRIDE]].tolist()
    return offset + (k // run) * stride + k % run


@pytest.mark.parametrize("most", [128, 192, 320, 1024])
@pytest.mark.parametrize("offset", [0, 77])
def test_pieces_say_where_they_lie_in_the_whole(most: int, offset: int) -> None:
    """Runs of all lengths about those of groups and pieces, ends of rows everywhere."""
    row = np.zeros(native.COLUMNS, np.int64)
    for run in [*range(1, 400), 1000, 1023, 1025, native.LONGEST]:
        for size in (1, 63, 64, 65, 5 * most - 1, 5 * most, 5 * most + 1, 7001):
            row[[native.OFFSET, native.RUN, native.STRIDE]] = offset, run, min(run, 10**6) + 13
            end = 0
            for begin, stop in cuts(size, run, most):
                assert begin == end
                assert begin % 64 == 0
                end = stop
                assert stop - begin <= max(most + 127, 64 * 192)
                k = np.arange(stop - begin)
                piece = row.copy()
                piece[[native.OFFSET, native.RUN, native.STRIDE]] = place(row, begin)
                assert piece[native.RUN] > 0
                whole = index_in_whole(row, begin + k)
                assert np.array_equal(index_in_whole(piece, k), whole), (run, size, begin)
            assert end == size


def test_long_runs_make_few_pieces() -> None:
    assert len(list(cuts(10**8, 10**7 + 1, 4 << 20))) < 40
    assert len(list(cuts(10**8, native.LONGEST, 4 << 20))) == 24


class Late:
    """Stands for ``torch.cuda``: a copy is done when somebody waits for it, and not before."""

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.waiting: list[Callable[[], object]] = []
            self.done = 0

        def wait_event(self, event: Late.Event) -> None:
            self.waiting.append(event.reach())

        def wait_stream(self, stream: Late.Stream) -> None:
            self.waiting.append(stream.reach(len(stream.waiting)))

        def reach(self, end: int) -> Callable[[], None]:
            def run() -> None:
                while self.done < end:
                    self.done += 1
                    self.waiting[self.done - 1]()

            return run

    class Event:
        stream: Late.Stream | None = None
        end = 0

        def record(self, stream: Late.Stream) -> None:
            self.stream, self.end = stream, len(stream.waiting)

        def reach(self) -> Callable[[], None]:
            return self.stream.reach(self.end) if self.stream else lambda: None

        def synchronize(self) -> None:
            self.reach()()

    @staticmethod
    def current_stream(device: torch.device) -> Late.Stream:
        """Of what is not copied by the ring, which is as late."""
        return CURRENT

    class stream(TorchDispatchMode):
        def __init__(self, stream: Late.Stream) -> None:
            super().__init__()
            self.target = stream

        def __torch_dispatch__(
            self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            if "copy_" not in str(function):
                return function(*args, **kwargs or {})
            self.target.waiting.append(lambda: function(*args, **kwargs or {}))
            return None if "foreach" in str(function) else args[0]


CURRENT = Late.Stream(torch.device("cpu"))


@pytest.mark.parametrize("moments", ["float32", "int8"])
def test_copies_as_late_as_can_be(moments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read before it has come, or written over before it has gone."""
    monkeypatch.setattr(gpu, "DEVICES", {"cpu"})
    monkeypatch.setattr(gpu, "_has_triton", lambda: False)
    monkeypatch.setattr(offload, "CHUNK", 4096)
    monkeypatch.setattr(chunks, "SMALL", 600)
    monkeypatch.setattr(ring, "_Host", Late)
    monkeypatch.setattr(ring, "_RINGS", {})
    torch.manual_seed(0)
    shapes = [(n,) for n in (3000, 5, 70, 0, 400, 1, 999, 64, 5000, *range(50))]
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    away, plain = AdamW(params, moments=moments, offload="cpu"), AdamW(twins, moments=moments)
    for t in range(4):
        for i, (p, q) in enumerate(zip(params, twins, strict=True)):
            torch.manual_seed(100 * t + i)
            q.grad = torch.randn(p.shape)
            p.grad = torch.full(p.shape, torch.nan)
            CURRENT.waiting.append(partial(p.grad.copy_, q.grad))
        away.step()
        for p in params:
            assert isinstance(p.grad, Tensor)
            p.grad.fill_(float("nan"))
        CURRENT.reach(len(CURRENT.waiting))()
        plain.step()
        assert all(map(torch.equal, params, twins))
    assert away._plan is not None
    (executor,) = away._plan._away.values()
    assert len(executor._chunks) > 10
    for one in (executor._ring._down, executor._ring._up):
        assert one.done == len(one.waiting) > 100


@pytest.fixture
def optimizer(monkeypatch: pytest.MonkeyPatch) -> AdamW:
    """One that has stepped several chunks."""
    monkeypatch.setattr(gpu, "DEVICES", {"cpu"})
    monkeypatch.setattr(gpu, "_has_triton", lambda: False)
    monkeypatch.setattr(offload, "CHUNK", 4096)
    monkeypatch.setattr(ring, "_RINGS", {})
    param = nn.Parameter(torch.ones(5000))
    made = AdamW([param], offload="cpu")
    param.grad = torch.ones_like(param)
    made.step()
    return made


def failing(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("out of order")


@pytest.mark.parametrize("copy", ["bring", "wait", "send"])
def test_a_copy_that_fails_ends_the_step(
    copy: str, optimizer: AdamW, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the threads that wait for it."""
    before = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(Ring, copy, failing)
        with pytest.raises(RuntimeError, match="out of order"):
            optimizer.step()
    assert threading.active_count() == before
    optimizer.step()


def test_a_call_of_the_core_that_fails_ends_the_step(
    optimizer: AdamW, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(native, "step", failing)
        with pytest.raises(RuntimeError, match="out of order"):
            optimizer.step()
    optimizer.step()


def tasks() -> set[str]:
    """The system's threads of this process, Python's and others."""
    return set(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_steps_begin_no_threads_of_their_own(optimizer: AdamW) -> None:
    """Which would begin OpenMP's anew with each; they go with the optimizer."""
    optimizer.step()
    before = tasks()
    (thread,) = (one for one in threading.enumerate() if one.name == "adamas")
    for _ in range(5):
        optimizer.step()
    assert tasks() == before
    optimizer._plan = None
    ring._RINGS.clear()  # which is weak, but for tests
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_a_thread_that_cannot_begin_leaves_all_as_it_was(
    optimizer: AdamW, monkeypatch: pytest.MonkeyPatch
) -> None:
    (param,) = optimizer.param_groups[0]["params"]
    ring._RINGS.clear()
    optimizer._plan = None
    before = param.detach().clone()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", failing)
        with pytest.raises(RuntimeError, match="out of order"):
            optimizer.step()
    assert torch.equal(param, before)
    assert int(optimizer.state[param]["step"]) == 1
    optimizer.step()
    assert int(optimizer.state[param]["step"]) == 2


def test_what_the_core_still_does_is_waited_for(
    optimizer: AdamW, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a copy has failed: it would write buffers that are another step's by then."""
    done = []
    step = native.step

    def slow(*args: Any, **kwargs: Any) -> None:
        step(*args, **kwargs)
        time.sleep(0.1)
        done.append(True)

    monkeypatch.setattr(native, "step", slow)
    monkeypatch.setattr(Ring, "bring", failing)
    with pytest.raises(RuntimeError, match="out of order"):
        optimizer.step()
    assert done == [True]


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no alarms here")
@pytest.mark.parametrize("stop", [1, 5, 10])
def test_no_signal_cuts_a_step_in_two(
    stop: int, optimizer: AdamW, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its handler raises, at whichever chunk."""
    (param,) = optimizer.param_groups[0]["params"]
    before, send, sent = param.detach().clone(), Ring.send, []

    def alarm(*args: Any) -> None:
        send(*args)
        sent.append(True)
        if len(sent) == stop:
            signal.raise_signal(signal.SIGALRM)

    def stopped(*args: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(Ring, "send", alarm)
    previous = signal.signal(signal.SIGALRM, stopped)
    try:
        with pytest.raises(TimeoutError):
            optimizer.step()
        assert signal.getsignal(signal.SIGALRM) is stopped
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert len(sent) >= 10
    assert int(optimizer.state[param]["step"]) == 2
    assert (param != before).all()


def test_chunks_of_more_elements_than_32_bits_count() -> None:
    row = native.table(1)
    size, width = 2**32 + 1, 2  # bytes of an element
    places = [native.PARAM, native.GRAD, native.EXP_AVG, native.EXP_AVG_SQ]
    row[0, places] = [k << 40 for k in range(1, 5)]
    row[0, native.SIZE] = size
    row[0, native.TYPES] = native.types("bfloat16", "bfloat16", "int8")
    found = chunks.chunks_of(row, np.array([True]), 32 << 20)
    end = 0
    for chunk in found:
        (piece,) = chunk.rows
        (grad,) = [*chunk.small_grads, *chunk.large_grads]
        assert (grad.start, piece[native.OFFSET]) == (end * width, end)
        assert grad.stop - grad.start == piece[native.SIZE] * width
        assert piece[native.EXP_AVG] - (3 << 40) >= end
        end += int(piece[native.SIZE])
    assert end == size


def test_training_goes_on_when_the_main_thread_has_ended() -> None:
    code = """
import threading, torch
from torch import nn
from adamas.torch import AdamW, gpu
from adamas.torch.gpu import offload
gpu.DEVICES.add("cpu")
gpu._has_triton, offload.CHUNK = lambda: False, 4096
param = nn.Parameter(torch.ones(5000))
param.grad = torch.ones_like(param)
optimizer = AdamW([param], offload="cpu")
def train():
    threading.main_thread().join()
    for _ in range(3):
        optimizer.step()
    print(optimizer.state[param]["step"])
threading.Thread(target=train).start()
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (found.stdout, found.returncode) == ("3\n", 0), found.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_steps_with_a_thread_of_its_own(optimizer: AdamW) -> None:
    child = os.fork()
    if not child:
        with suppress(BaseException):
            optimizer.step()
            os._exit(17)
        os._exit(1)
    optimizer.step()
    ended = 0, 0
    for _ in range(1000):
        ended = os.waitpid(child, os.WNOHANG)
        if ended[0]:
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended[1]) == 17
