"""The core's calls run on torch's threads, where it has any by OpenMP."""

from __future__ import annotations

import ctypes
import math
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from adamas import native
from adamas.torch import threads

linux = pytest.mark.skipif(sys.platform != "linux", reason="threads are found where Linux has them")

_BEGUN = """
import os, torch

torch.set_num_threads(2)
{first}
torch.ones(1 << 22).mul_(2)  # torch's threads have begun

def step():  # by two threads, of tensors for which torch itself needs but one
    from adamas.torch import AdamW

    denormals = [torch.full((1 << 14,), 1 << 16, dtype=torch.int32) for _ in range(64)]
    params = [torch.nn.Parameter(bits.view(torch.float32)) for bits in denormals[::2]]
    for p, bits in zip(params, denormals[1::2]):
        p.grad = bits.view(torch.float32)
    AdamW(params, weight_decay=0).step()
    return b"".join(bytes(p.detach().numpy()) for p in params)

def steps_in_a_child():
    child = os.fork()
    if not child:
        step()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
# A child that stepped by torch's threads, which it has none of, would wait for them forever.
_WHOSE = """
steps_in_a_child()  # which brings the core itself
import adamas.torch
steps_in_a_child()  # where its parent has not stepped
before = set(os.listdir("/proc/self/task"))
step()
assert set(os.listdir("/proc/self/task")) == before, "threads beside torch's"
steps_in_a_child()  # where it has
"""
_DENORMALS = """
here = step()
torch.set_num_threads(1)
torch.set_flush_denormal(False)
assert here == step()
"""


def run(body: str, first: str = "") -> None:
    command = [sys.executable, "-W", "ignore", "-c", _BEGUN.format(first=first) + body]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


@linux
def test_whose_threads_step() -> None:
    run(_WHOSE)


@linux
@pytest.mark.parametrize(
    ("environment", "bytes_"),
    [
        ({}, math.inf),
        ({"OMP_STACKSIZE": "64"}, 64 << 10),
        ({"OMP_STACKSIZE": " 300 B "}, 300),
        ({"OMP_STACKSIZE": "4M", "GOMP_STACKSIZE": "1g"}, 4 << 20),
        ({"GOMP_STACKSIZE": "32k"}, 32 << 10),
        ({"OMP_STACKSIZE": "plenty"}, math.inf),
    ],
)
def test_small_stacks_are_not_stepped_on(
    environment: dict[str, str],
    bytes_: float,
    monkeypatch: pytest.MonkeyPatch,
    adopted: list[tuple[int, ...]],
) -> None:
    for name in ("OMP_STACKSIZE", "GOMP_STACKSIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert threads._stack() == bytes_
    threads.threads()
    assert bool(adopted) == (bytes_ >= 1 << 18)


@linux
def test_threads_of_torchs_that_flush_denormals_do_not_while_they_step() -> None:
    run(_DENORMALS, "torch.set_flush_denormal(True)")


@pytest.fixture
def adopted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """What is adopted of what ``threads`` finds, which it looks for anew."""
    calls: list[tuple[int, ...]] = []
    monkeypatch.setattr(native, "adopt", lambda *addresses: calls.append(addresses))
    threads._adopt.cache_clear()
    yield calls
    threads._adopt.cache_clear()


@linux
def test_torchs_threads_are_found(adopted: list[tuple[int, ...]]) -> None:
    assert threads.threads() == torch.get_num_threads()
    assert threads.threads() == torch.get_num_threads()
    (functions,) = adopted
    assert all(functions)


class _Other:
    """Another OpenMP, which knows nothing of torch's number of threads."""

    omp_get_max_threads = staticmethod(lambda: 1 << 20)
    GOMP_parallel = None


@pytest.mark.parametrize(
    ("of", "name", "value"),
    [
        (torch.__config__, "parallel_info", lambda: "ATen parallel backend: native thread pool"),
        (ctypes, "CDLL", lambda *_: _Other),
        (ctypes, "CDLL", lambda *_: object()),
    ],
    ids=["torch without OpenMP", "another OpenMP", "none that is known"],
)
def test_else_the_core_keeps_its_own(
    of: object,
    name: str,
    value: object,
    monkeypatch: pytest.MonkeyPatch,
    adopted: list[tuple[int, ...]],
) -> None:
    monkeypatch.setattr(of, name, value)
    assert threads.threads() == torch.get_num_threads()
    assert not adopted
