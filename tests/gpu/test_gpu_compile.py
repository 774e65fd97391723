"""What steps a table is compiled before anything is launched: a step is made, or is not begun."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from devices import bits, give, weights
from torch import Tensor

from adamas import Hyper, native
from adamas.torch import Adam, plan
from adamas.torch.gpu import kernels
from adamas.torch.gpu.jit import Launcher
from adamas.torch.gpu.launches import Launches

pytestmark = pytest.mark.gpu


class Compiled:
    """As Triton's: taking a grid loads it on the device, the call launches it."""

    def __init__(self, kernel: Kernel, name: tuple[int, ...]) -> None:
        self.kernel, self.name = kernel, name

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        if self.kernel.too_large == self.name[0]:
            raise MemoryError("registers")
        return lambda *_: self.kernel.events.append(("launch", self.name))


class Kernel:
    """One that compiles for all parameters' dtypes but one, and counts what becomes of it."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.wrong = self.too_large = -1

    def warmup(self, *arguments: Any, grid: Any, **options: Any) -> Compiled:
        assert options["enable_fp_fusion"] is False
        constants = arguments[3:]
        if constants[0] == self.wrong:
            raise RuntimeError("does not compile")
        self.events.append(("compile", constants))
        return Compiled(self, constants)

    def __getitem__(self, grid: Any) -> Any:
        raise AssertionError("launched without having been compiled")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(kernels, "step_chunk", kernel)
    return kernel


def launched(kernel: Kernel) -> list[str]:
    found = [what for what, _ in kernel.events]
    kernel.events.clear()
    return found


@pytest.mark.parametrize("failure", ["wrong", "too_large"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_nothing_is_launched_where_one_of_a_table_does_not_compile(
    failure: str, dtype: str, kernel: Kernel, device: torch.device
) -> None:
    table = native.table(3)
    memory = torch.zeros(4, 64, dtype=torch.float64, device=device)
    for row, name in zip(table, ("float32", "float64", "float16"), strict=True):
        row[native.TYPES], row[native.SIZE] = native.types(name), 8
        row[: native.EXP_AVG_SQ + 1] = [line.data_ptr() for line in memory]
    launches = Launches(table, device)
    coefficients = np.array([Hyper().coefficients(1)])
    setattr(kernel, failure, native.DTYPES[dtype])
    for _ in range(2):
        with pytest.raises((RuntimeError, MemoryError)):
            launches.step(coefficients)
        assert "launch" not in launched(kernel)
    setattr(kernel, failure, -1)
    launches.step(coefficients)
    assert launched(kernel)[-3:] == ["launch"] * 3
    launches.step(coefficients)
    assert launched(kernel) == ["launch"] * 3
    launches.step(np.array([Hyper(maximize=True).coefficients(1)]))  # compiled by itself
    assert launched(kernel) == ["compile"] * 3 + ["launch"] * 3


@pytest.mark.parametrize("capturable", [False, True])
def test_a_step_that_does_not_compile_is_not_counted(
    capturable: bool, kernel: Kernel, device: torch.device
) -> None:
    params = weights([(5,), (3,)], device, [torch.float32, torch.float64])
    give(params, 0)
    optimizer = Adam(params, capturable=capturable)
    before = [bits(p) for p in params]
    kernel.wrong = native.DTYPES["float64"]
    with pytest.raises(RuntimeError, match="does not compile"):
        optimizer.step()
    assert "launch" not in launched(kernel)
    assert [int(optimizer.state[p]["step"]) for p in params] == [0, 0]
    assert all(map(np.array_equal, before, map(bits, params)))
    kernel.wrong = -1
    optimizer.step()
    assert launched(kernel)[-2:] == ["launch"] * 2
    assert [int(optimizer.state[p]["step"]) for p in params] == [1, 1]


def test_no_table_steps_where_that_of_another_device_does_not_compile(
    kernel: Kernel, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = weights([(5,), (3,)], device, [torch.float32, torch.float64])
    give(params, 0)
    places = {torch.float32: (device, False), torch.float64: (torch.device(device.type, 0), False)}
    monkeypatch.setattr(plan, "_taken_on", lambda param, kind: places[param.dtype])
    optimizer = Adam(params)
    kernel.wrong = native.DTYPES["float64"]
    with pytest.raises(RuntimeError, match="does not compile"):
        optimizer.step()
    assert "launch" not in launched(kernel)
    assert [int(optimizer.state[p]["step"]) for p in params] == [0, 0]
    kernel.wrong = -1
    optimizer.step()
    assert launched(kernel)[-2:] == ["launch"] * 2
    assert [int(optimizer.state[p]["step"]) for p in params] == [1, 1]


def test_each_set_of_constants_is_compiled_once() -> None:
    kernel = Kernel()
    launch = Launcher(kernel)
    for constants in ((0, 1), (2, 3), (0, 1)):
        launch(7, (torch.zeros(1), None, None), constants, num_warps=4)
    assert [what for what, _ in kernel.events] == [
        "compile",
        "launch",
        "compile",
        "launch",
        "launch",
    ]


@pytest.mark.parametrize(
    "options", [{}, {"moments": "int8"}, {"max_grad_norm": 0.1}, {"capturable": True}]
)
def test_a_compiled_loop_has_the_same_bits(options: dict[str, Any], device: torch.device) -> None:
    """Whose graph ends before a step, and begins again behind it."""
    found = []
    for compiled in (False, True):
        (param,) = weights([(300,)], device)
        optimizer = Adam([param], lr=0.1, **options)

        def iteration(param: Tensor, optimizer: Adam) -> None:
            (param * param * 2).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

        run = torch.compile(iteration, backend="eager") if compiled else iteration
        for _ in range(4):
            run(param, optimizer)
        assert optimizer._plan is not None
        assert optimizer._plan._on_gpu
        found.append((bits(param), optimizer.state[param]["step"]))
        assert int(found[-1][1]) == 4
    assert np.array_equal(found[0][0], found[1][0])
