"""Gradients and moments of classes that wrap other tensors, which have no memory of their own."""

from __future__ import annotations

import faulthandler
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from adamas.torch import SGD, Adam, AdamW, RMSprop, watch


class Wrapper(Tensor):
    """What torch asks of it, Python answers."""

    held: Tensor

    def __new__(cls, held: Tensor) -> Wrapper:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            dtype=held.dtype,
            dispatch_sizes_strides_policy="sizes",
            dispatch_layout=True,
            dispatch_device=True,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*[a.held if isinstance(a, cls) else a for a in args], **(kwargs or {}))


@pytest.fixture(autouse=True)
def at_most_a_minute() -> Iterator[None]:
    """A thread that waits for itself waits forever."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("count", [1, 2000])
def test_gradients(count: int, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so many, several threads look at them."""
    if not compiled:
        monkeypatch.setattr(watch, "_exports", lambda: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    wrapped, plain = ([nn.Parameter(torch.ones(3)) for _ in range(count)] for _ in range(2))
    optimizers = [Adam(params, lr=0.1) for params in (wrapped, plain)]
    for step in range(3):
        for one, other in zip(wrapped, plain, strict=True):
            other.grad = torch.tensor([1.0, -2.0, step])
            one.grad = Wrapper(other.grad) if step else other.grad
        for optimizer in optimizers:
            optimizer.step()
    torch.set_num_threads(threads)
    assert torch.equal(torch.stack(wrapped), torch.stack(plain))


def test_moments() -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [Adam([p], lr=0.1) for p in params]
    for step in range(2):
        for p, optimizer in zip(params, optimizers, strict=True):
            p.grad = torch.ones(3)
            optimizer.step()
        state = optimizers[0].state[params[0]]
        if step == 0:
            state["exp_avg"] = Wrapper(state["exp_avg"])
    assert torch.equal(*params)


LAZY: dict[str, Callable[[], Tensor]] = {
    "zeros without memory": lambda: torch._efficientzerotensor((3,)),
    "negated": lambda: torch.imag(torch.full((3,), 1 + 2j).conj()),
    "wrapped": lambda: Wrapper(torch.ones(3)),
}


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.5}, {"moments": "int8"}])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("lazy", LAZY.values(), ids=LAZY)
def test_gradients_that_are_not_what_their_memory_holds(
    lazy: Callable[[], Tensor],
    gaps: bool,
    options: dict[str, Any],
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also beside parameters that the core does not take as they lie."""
    if not compiled:
        monkeypatch.setattr(watch, "_exports", lambda: None)
    step = 2 if gaps else 1
    params = [nn.Parameter(torch.ones(3 * step)[::step]) for _ in range(2)]
    optimizers = [Adam([p], lr=0.1, **options) for p in params]
    plain = torch.empty(3).copy_(lazy())
    for grads in ((torch.ones(3), torch.ones(3)), (lazy(), plain)):
        for p, optimizer, grad in zip(params, optimizers, grads, strict=True):
            p.grad = grad
            optimizer.step()
    assert torch.equal(*params)


def test_a_parameter_that_becomes_its_conjugate() -> None:
    p, twin = (nn.Parameter(torch.full((2,), 1 + 2j)) for _ in range(2))
    for one in (p, twin):
        one.grad = torch.full((2,), 1j)
    ours, other = Adam([p], lr=0.1), Adam([twin], lr=0.1)
    for optimizer in (ours, other):
        optimizer.step()
    p.data, twin.data = p.data.conj(), twin.data.conj().resolve_conj()
    for optimizer in (ours, other):
        optimizer.step()
    assert torch.equal(p.detach().resolve_conj(), twin.detach())


RULES: list[tuple[type[Any], dict[str, Any]]] = [
    (Adam, {}),
    (AdamW, {"amsgrad": True}),
    (SGD, {}),
    (SGD, {"momentum": 0.9}),
    (RMSprop, {"momentum": 0.9, "centered": True}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rule", "options"), RULES)
def test_parameters(rule: type[Any], options: dict[str, Any], dtype: torch.dtype) -> None:
    """Wrappers all through: what operations on them give, and so their states, are wrappers too."""
    ones = torch.ones(3, dtype=dtype)
    wrapped, plain = nn.Parameter(TwoTensor(ones.clone(), ones.clone())), nn.Parameter(ones.clone())
    optimizers = [rule([p], lr=0.1, **options) for p in (wrapped, plain)]
    for step in range(3):
        plain.grad = torch.tensor([1.0, -2.0, step], dtype=dtype)
        wrapped.grad = TwoTensor(plain.grad.clone(), plain.grad.clone())
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(wrapped.data.a, plain.data)
    assert torch.equal(wrapped.data.b, plain.data)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        *RULES,
        (AdamW, {"moments": "bfloat16"}),
        (AdamW, {"moments": "int8", "max_grad_norm": 1.0}),
        (AdamW, {"moments": "int4", "skip_nonfinite": True}),
    ],
)
def test_fake_parameters(rule: type[Any], options: dict[str, Any], dtype: torch.dtype) -> None:
    """With which memory is planned: they get the states of real ones."""
    if dtype == torch.float64 and "moments" in options:
        pytest.skip("float64 parameters have moments in float64")
    states = []
    for mode in (FakeTensorMode(), nullcontext()):
        with mode:
            param = nn.Parameter(torch.ones(70, dtype=dtype))
            optimizer = rule([param], **options)
            for _ in range(2):
                param.grad = torch.ones(70, dtype=dtype)
                optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
        states.append({k: getattr(v, "shape", v) for k, v in optimizer.state[param].items()})
    assert states[0] == states[1]


@pytest.mark.parametrize("moments", ["float32", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_without_data(dtype: torch.dtype, moments: str) -> None:
    param = nn.Parameter(torch.ones(70, dtype=dtype, device="meta"))
    optimizer = AdamW([param], moments=moments, max_grad_norm=1.0, skip_nonfinite=True)
    for _ in range(2):
        param.grad = torch.ones_like(param)
        optimizer.step()
    state = optimizer.state[param]
    assert state["step"] == 2
    assert all(value.is_meta for key, value in state.items() if key != "step")
