"""Compact moments and master weights in the PyTorch front end."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adamas import formats
from adamas.torch import Adam, AdamW
from adamas.torch.recode import decoded, trained

MOMENTS = [m for m in formats.FORMATS if m != "float32"]
each_format = pytest.mark.parametrize("moments", formats.FORMATS)
compact = pytest.mark.parametrize("moments", MOMENTS)


def made(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    shapes = [(), (3,), (70, 5), (0,), (64,), (33, 64)]
    return [nn.Parameter(torch.randn(shape, dtype=torch.float32).to(dtype)) for shape in shapes]


def run(optimizer: Adam, steps: range) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in steps:
        for i, p in enumerate(params):
            torch.manual_seed(1000 * t + i)
            p.grad = torch.randn(p.shape).to(p.dtype)
        optimizer.step()


def bits(optimizer: Adam) -> list[bytes]:
    """Of all parameters and states."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    found = [p.detach() for p in params]
    for p in params:
        found += [v for k, v in sorted(optimizer.state[p].items()) if k != "step"]
    return [x.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for x in found]


def through_file(saved: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


@each_format
@pytest.mark.parametrize(
    ("dtype", "master"),
    [(torch.float32, None), (torch.bfloat16, 24), (torch.bfloat16, 16), (torch.float16, None)],
)
def test_a_resumed_run_has_the_same_bits(
    moments: str, dtype: torch.dtype, master: int | None
) -> None:
    """REGRESSIONS 32 and 36: the dithers follow from the step, and master weights are saved."""
    straight = AdamW(made(dtype), lr=0.01, moments=moments, master_bits=master)
    run(straight, range(8))
    stopped = AdamW(made(dtype), lr=0.01, moments=moments, master_bits=master)
    run(stopped, range(4))
    params = copy.deepcopy([p for g in stopped.param_groups for p in g["params"]])
    resumed = AdamW(params, lr=0.01, moments=moments, master_bits=master)
    resumed.load_state_dict(through_file(stopped.state_dict()))
    run(resumed, range(4, 8))
    assert bits(resumed) == bits(straight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_format
def test_masters_of_32_bits_train_float32_weights(dtype: torch.dtype, moments: str) -> None:
    """REGRESSIONS 31: bit-identical to float32 weights whose rounding the model sees."""
    wide = [nn.Parameter(p.detach().float()) for p in made(dtype)]
    ours, beside = AdamW(made(dtype), moments=moments), AdamW(wide, moments=moments)
    for t in range(20):
        run(ours, range(t, t + 1))
        for p, q in zip(ours.param_groups[0]["params"], wide, strict=True):
            q.grad = p.grad.float()
        beside.step()
    for p, q in zip(ours.param_groups[0]["params"], wide, strict=True):
        assert torch.equal(trained(p, ours.state[p]), q.detach())
        half_up = (q.detach().view(torch.int32) + 0x8000 >> 16).to(torch.int16)
        bfloat = dtype == torch.bfloat16
        rounded = half_up.view(dtype) if bfloat else q.detach().to(dtype)
        assert torch.equal(p.detach(), rounded)


def test_a_parameter_that_is_set_anew_is_its_own_master() -> None:
    (p,) = [nn.Parameter(torch.full((70,), 1.0 + 2**-10).half())]
    optimizer = AdamW([p], lr=1e-5)
    p.grad = torch.ones(70).half()
    optimizer.step()
    with torch.no_grad():
        p.fill_(3.0)
    optimizer.step()
    assert trained(p, optimizer.state[p]).tolist() == pytest.approx([3.0 - 1e-5] * 70, abs=1e-6)


@compact
@pytest.mark.parametrize("through", [lambda s: s, through_file], ids=["memory", "file"])
def test_between_formats(moments: str, through: Callable[[Any], Any]) -> None:
    """A checkpoint in float32 or of torch's loads into a compact optimizer, and the other way."""
    plain, theirs = Adam(made()), torch.optim.Adam(made())
    run(plain, range(5))
    theirs.load_state_dict(copy.deepcopy(plain.state_dict()))
    saved = [through(copy.deepcopy(source.state_dict())) for source in (plain, theirs)]
    run(plain, range(5, 6))
    expected = [plain.state[p]["exp_avg"] for p in plain.param_groups[0]["params"]]
    for state_dict in saved:
        lean, back = Adam(made(), moments=moments), Adam(made())
        lean.load_state_dict(state_dict)
        run(lean, range(5, 6))
        back.load_state_dict(through(lean.state_dict()))
        pairs = zip(*(o.param_groups[0]["params"] for o in (lean, back)), expected, strict=True)
        for p, q, exact in pairs:
            for a, b in zip(decoded(p, lean.state[p]), decoded(q, back.state[q]), strict=True):
                assert torch.equal(a.float(), b)
            apart = (back.state[q]["exp_avg"] - exact).norm()
            assert apart <= {"bfloat16": 0.01, "int8": 0.02, "int4": 0.3}[moments] * exact.norm()
    assert "moments" not in back.param_groups[0]
    assert lean.param_groups[0]["moments"] == moments


@compact
def test_what_the_core_cannot_step_in_place(moments: str) -> None:
    """Views with gaps and other memory orders: the bits of the same numbers in C order."""
    torch.manual_seed(0)
    base = torch.randn(4, 6, 5, 7)
    layouts = [
        base.clone(memory_format=torch.channels_last),
        base.permute(1, 0, 3, 2),
        torch.randn(33, 20)[:, ::2],
    ]
    for dtype in (torch.float32, torch.bfloat16):
        odd = [nn.Parameter(x.to(dtype)) for x in layouts]
        even = [nn.Parameter(x.detach().to(dtype).contiguous()) for x in layouts]
        one, other = Adam(odd, moments=moments), Adam(even, moments=moments)
        run(one, range(4))
        run(other, range(4))
        for p, q in zip(odd, even, strict=True):
            assert torch.equal(p, q)
        assert bits(one)[len(odd) :] == bits(other)[len(even) :]


@compact
def test_complex_parameters_are_pairs(moments: str) -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(50, dtype=torch.complex64))
    q = nn.Parameter(torch.view_as_real(p.detach()).clone())
    one, other = Adam([p], moments=moments), Adam([q], moments=moments)
    for t in range(4):
        torch.manual_seed(t)
        p.grad = torch.randn(50, dtype=torch.complex64)
        q.grad = torch.view_as_real(p.grad)
        one.step()
        other.step()
    assert torch.equal(torch.view_as_real(p.detach()), q.detach())


@each_format
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_of_another_type(dtype: torch.dtype, kind: torch.dtype, moments: str) -> None:
    """They are read as they are, then those of the parameter's own type again."""
    p, q = (nn.Parameter(torch.linspace(-1, 1, 130).to(dtype)) for _ in range(2))
    master = 32 if dtype != torch.float32 else None
    one, other = (Adam([x], moments=moments, master_bits=master) for x in (p, q))
    for t in range(6):
        grad = torch.randn(130, generator=torch.Generator().manual_seed(t)).to(kind)
        one.zero_grad()
        given = grad if t % 3 else grad.to(dtype)
        _set_grad(p, given)
        _set_grad(q, given.float().to(dtype) if kind == dtype or not t % 3 else given)
        one.step()
        other.step()
    assert torch.equal(p, q)


def _set_grad(param: nn.Parameter, grad: Tensor) -> None:
    """Whatever its type; torch checks what is assigned, not what a tensor becomes."""
    param.grad = torch.zeros_like(param)
    param.grad.data = grad
