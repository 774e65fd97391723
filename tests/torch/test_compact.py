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
from adamas.torch import Adam, AdamW, convert_state_dict
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_row_27_moments_keep_their_own_type(dtype: torch.dtype) -> None:
    """REGRESSIONS 27: neither a step nor a load cuts them to the parameter's 16 bits."""
    params = [nn.Parameter(torch.ones(70).to(dtype))]
    optimizer = Adam(params)
    for t in range(3):
        params[0].grad = torch.full((70,), 1 + 2**-7 * t).to(dtype)
        optimizer.step()
    saved = through_file(optimizer.state_dict())
    other = Adam([nn.Parameter(params[0].detach().clone())])
    other.load_state_dict(saved)
    for state in (optimizer.state[params[0]], other.state[other.param_groups[0]["params"][0]]):
        for key in ("exp_avg", "exp_avg_sq"):
            assert state[key].dtype == torch.float32
            assert not torch.equal(state[key].to(dtype).float(), state[key])
            assert torch.equal(state[key], optimizer.state[params[0]][key])


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
            for a, b in zip(
                decoded(p, lean.state[p], formats.ADAM),
                decoded(q, back.state[q], formats.ADAM),
                strict=True,
            ):
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


@compact
def test_conversion_to_float32(moments: str) -> None:
    """For torch.optim and for whoever reads plain moments."""
    lean = AdamW(made(), moments=moments)
    run(lean, range(3))
    converted, report = convert_state_dict(lean.state_dict())
    theirs = torch.optim.AdamW(made())
    theirs.load_state_dict(converted)
    assert report.source == "adamas with compact moments"
    pairs = zip(*(o.param_groups[0]["params"] for o in (lean, theirs)), strict=True)
    for p, q in pairs:
        for key, moment in zip(
            ("exp_avg", "exp_avg_sq"), decoded(p, lean.state[p], formats.ADAM), strict=True
        ):
            assert torch.equal(theirs.state[q][key], moment.float())
    assert not theirs.param_groups[0].keys() & {"moments", "master_bits", "format"}


def test_formats_by_group() -> None:
    """REGRESSIONS 30: each group keeps its own, also one that is added."""
    params = made()
    optimizer = Adam([{"params": params[:2], "moments": "int4"}, {"params": params[2:4]}])
    optimizer.add_param_group({"params": params[4:], "moments": "bfloat16"})
    run(optimizer, range(2))
    keys = [set(optimizer.state[p]) for p in params]
    coded, full = {"step", "words", "scales"}, {"step", "exp_avg", "exp_avg_sq"}
    assert keys == [coded, coded, full, full, full, full]
    types = [optimizer.state[p]["exp_avg"].dtype for p in params[2:]]
    assert types == [torch.float32] * 2 + [torch.bfloat16] * 2


def test_a_group_that_changes_its_format_is_turned_into_it() -> None:
    changed, straight = Adam(made()), Adam(made(), moments="int8")
    run(changed, range(3))
    changed.param_groups[0]["moments"] = "int8"
    run(changed, range(3, 6))
    run(straight, range(6))
    for p, q in zip(*(o.param_groups[0]["params"] for o in (changed, straight)), strict=True):
        assert set(changed.state[p]) == {"step", "words", "scales"}
        assert torch.allclose(p, q, atol=3e-4)


@pytest.mark.parametrize("moments", ["int8", "int4"])
def test_row_28_an_inactive_weight_stays(moments: str) -> None:
    """REGRESSIONS 28: where v is zero so is m, and a gradient that stops lets m decay."""
    p = nn.Parameter(torch.ones(192))
    optimizer = Adam([p], lr=0.01, betas=(0.9, 0.99), moments=moments)
    exact = nn.Parameter(torch.ones(192))
    beside = Adam([exact], lr=0.01, betas=(0.9, 0.99))
    for t in range(300):
        grad = torch.randn(192, generator=torch.Generator().manual_seed(t))
        grad[:64] = 0  # never touched
        grad[64:128:2] = grad[64:128:2] if t < 100 else 0.0  # among others that go on
        grad[128:] = grad[128:] if t < 100 else 0.0  # a group that stops
        p.grad = exact.grad = grad
        optimizer.step()
        beside.step()
        if t == 120:
            before, expected = p.detach().clone(), exact.detach().clone()
    m, v = decoded(p, optimizer.state[p], formats.ADAM)
    assert p[:64].tolist() == [1.0] * 64
    assert not m[:64].any()
    assert not v[:64].any()
    for part in (slice(64, 128, 2), slice(128, 192)):
        drift = (p.detach() - before - (exact.detach() - expected))[part].abs()
        assert drift.max() < 0.01 * {"int8": 0.5, "int4": 8}[moments]


@pytest.mark.parametrize(("moments", "near"), [("bfloat16", 0.1), ("int8", 0.15), ("int4", 0.5)])
def test_row_33_the_second_moment_is_not_frozen(moments: str, near: float) -> None:
    """REGRESSIONS 33: v at 1, then gradients 100 times smaller; one of each group stays large."""
    p = nn.Parameter(torch.zeros(640))
    optimizer = Adam([p], lr=0.0, betas=(0.9, 0.999), moments=moments)
    grad = torch.ones(640)
    for t in range(3500):
        grad.fill_(1.0 if t < 500 else 0.01)[::64] = 1.0
        p.grad = grad
        optimizer.step()
    _, v = decoded(p, optimizer.state[p], formats.ADAM)
    small = torch.ones(640, dtype=torch.bool)
    small[::64] = False
    exact = (0.999**3000 * (1 - 0.999**500) + 1e-4 * (1 - 0.999**3000)) ** 0.5
    assert abs(v[small].float().sqrt().mean() / exact - 1) < near


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_format
def test_row_10_steps_are_counted_beyond_16_bits(moments: str, dtype: torch.dtype) -> None:
    """REGRESSIONS 10: whatever the type of weights and moments."""
    p = nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = Adam([p], moments=moments)
    p.grad = torch.ones(3, dtype=dtype)
    optimizer.step()
    optimizer.state[p]["step"] = 70_000
    optimizer.step()
    assert optimizer.state[p]["step"] == 70_001
    assert optimizer.state_dict()["state"][0]["step"] == 70_001


@pytest.mark.parametrize("moments", ["int8", "int4"])
def test_a_group_with_nan_is_told(moments: str) -> None:
    """It goes on as NaN, as exact Adam does, and no other group does."""
    p = nn.Parameter(torch.ones(200))
    optimizer = Adam([p], moments=moments)
    for t in range(3):
        p.grad = torch.ones(200)
        p.grad[70] = torch.nan if t == 0 else 1.0
        optimizer.step()
    assert p.isnan().nonzero().flatten().tolist() == list(range(64, 128))


BAD: list[tuple[dict[str, Any], torch.dtype, str]] = [
    ({"moments": "int3"}, torch.float32, "moments must be one of float32, bfloat16, int8, int4"),
    ({"moments": None}, torch.float32, "moments must be one of"),
    ({"moments": "int8"}, torch.float64, "moments must be 'float32' for parameters of float64"),
    ({"moments": "int8", "differentiable": True}, torch.float32, "rounding has no derivative"),
    ({"master_bits": 12}, torch.bfloat16, "master_bits must be one of 32, 24, 16"),
    ({"master_bits": 24}, torch.float16, "master_bits=24 needs bfloat16 parameters"),
]


@pytest.mark.parametrize(("options", "dtype", "message"), BAD)
def test_formats_that_cannot_be(options: dict[str, Any], dtype: torch.dtype, message: str) -> None:
    p = nn.Parameter(torch.ones(3, dtype=dtype))
    with pytest.raises(ValueError, match=message):
        Adam([p], **options)
    optimizer = Adam([nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [p], **options})
    assert len(optimizer.param_groups) == 1


DAMAGE: list[tuple[str, Callable[[Any], Any], str]] = [
    ("low above high", lambda s: _with(s, "scales", 0, 9.0), "for group 1: the bytes are damaged"),
    (
        "an infinite v",
        lambda s: _with(s, "scales", 1, float("inf")),
        "must be a smallest v",
    ),
    (
        "an infinite scale",
        lambda s: _with(s, "scales", 2, float("inf")),
        "must be a smallest v",
    ),
    ("a negative scale", lambda s: _with(s, "scales", 2, -1.0), "must be a smallest v"),
    ("cut scales", lambda s: s | {"scales": s["scales"].view(-1)[:-1]}, "must have 3 scales for"),
    ("other sizes", lambda s: s | {"scales": s["scales"][:1]}, "scales of shape"),
    ("words of another size", lambda s: s | {"words": s["words"][:5]}, "words of shape"),
    ("words of another type", lambda s: s | {"words": s["words"].int()}, "words of torch.uint8"),
    ("no scales", lambda s: {k: v for k, v in s.items() if k != "scales"}, "lacks scales"),
]


def _with(state: dict[str, Any], key: str, column: int, value: float) -> dict[str, Any]:
    scales = state[key].clone()
    scales[1, column] = value
    return state | {key: scales}


@pytest.mark.parametrize(("damage", "message"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
@pytest.mark.parametrize("moments", ["int8", "int4"])
def test_a_damaged_checkpoint_changes_nothing(
    damage: Callable[[Any], Any], message: str, moments: str
) -> None:
    params = [nn.Parameter(torch.ones(100)), nn.Parameter(torch.ones(130))]
    optimizer = Adam(params, moments=moments)
    run(optimizer, range(2))
    saved, before = copy.deepcopy(optimizer.state_dict()), bits(optimizer)
    saved["state"][1] = damage(saved["state"][1])
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert bits(optimizer) == before


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
@pytest.mark.parametrize("key", ["exp_avg_sq", "max_exp_avg_sq"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_squares_below_zero_are_damaged(dtype: torch.dtype, key: str, moments: str) -> None:
    optimizer = Adam([nn.Parameter(torch.ones(7, dtype=dtype))], moments=moments, amsgrad=True)
    run(optimizer, range(2))
    saved, before = copy.deepcopy(optimizer.state_dict()), bits(optimizer)
    saved["state"][0][key].view(-1)[3] = -2
    with pytest.raises(ValueError, match=f"parameter 0 must have {key} of at least 0, got -2.0"):
        optimizer.load_state_dict(saved)
    assert bits(optimizer) == before


def test_a_newer_checkpoint_is_refused() -> None:
    optimizer = Adam(made(), moments="int8")
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["format"] == formats.VERSION
    saved["param_groups"][0]["format"] += 1
    with pytest.raises(ValueError, match="of format version 2, and this adamas reads version 1"):
        optimizer.load_state_dict(saved)


@compact
def test_a_checkpoint_is_as_small_as_the_state(moments: str) -> None:
    sizes = []
    for each in ("float32", moments):
        p = nn.Parameter(torch.ones(64_000))
        optimizer = Adam([p], moments=each)
        p.grad = torch.ones(64_000)
        optimizer.step()
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        sizes.append(buffer.tell())
    assert sizes[1] < {"bfloat16": 0.51, "int8": 0.27, "int4": 0.15}[moments] * sizes[0]
