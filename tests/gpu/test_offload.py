"""State in the host's memory: the bits of the same optimizer without ``offload``."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adamas.torch import Adam, AdamW, gpu, step_in_backward
from adamas.torch.gpu import chunks, offload

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
CHUNK = 4096  # bytes: 320 elements of float32 with their gradients, and some
MOST = 320
SHAPES = [(), (3,), (70, 5), (0,), (64,), (33, 64), (2500,), (7, 300)]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=ON_GPU)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A GPU, or the CPU in its place: then the core steps what is not offloaded."""
    if request.param == "cpu":
        monkeypatch.setattr(gpu, "DEVICES", {"cpu"})
        monkeypatch.setattr(gpu, "_has_triton", lambda: False)
    monkeypatch.setattr(offload, "CHUNK", CHUNK)
    monkeypatch.setattr(chunks, "SMALL", 600)
    return str(request.param)


Shapes = list[tuple[int, ...]]


def made(
    device: str, dtype: torch.dtype = torch.float32, shapes: Shapes = SHAPES
) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(device, dtype)) for shape in shapes]


def params_of(optimizer: Adam) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def run(optimizer: Adam, steps: range, grad_of: Callable[[Tensor], Tensor] = lambda g: g) -> None:
    """Each parameter lacks a gradient now and then."""
    for t in steps:
        for i, p in enumerate(params_of(optimizer)):
            torch.manual_seed(1000 * t + i)
            grad = torch.randn(p.shape).to(p.device, p.dtype)
            p.grad = None if (t + i) % 5 == 4 else grad_of(grad)
        optimizer.step()


def bits(optimizer: Adam) -> list[Any]:
    """Of all parameters and states."""
    found: list[Any] = []
    for p in params_of(optimizer):
        found.append(as_bytes(p))
        for key, value in sorted(optimizer.state[p].items()):
            found.append((key, int(value) if key == "step" else as_bytes(value)))
    return found


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def chunks_in(optimizer: Adam) -> int:
    assert optimizer._plan
    return sum(len(away._chunks) for away in optimizer._plan._away.values())


def pair(device: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Adam, Adam]:
    """Two optimizers over the same parameters, the second offloaded."""
    options = {"lr": 0.01, "weight_decay": 0.1} | options
    plain, away = (AdamW(made(device, dtype), **options) for _ in range(2))
    for group in away.param_groups:
        group["offload"] = "cpu"
    return plain, away


def formats() -> Iterator[Any]:
    for dtype, moments, amsgrad in product(
        (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64),
        ("float32", "bfloat16", "int8", "int4"),
        (False, True),
    ):
        masters = {torch.bfloat16: (None, 24, 16), torch.float16: (None, 16)}.get(dtype, (None,))
        for master in masters:
            if moments == "float32" or dtype != torch.float64:
                name = f"{dtype}-{moments}-{master}-{amsgrad}"
                yield pytest.param(dtype, moments, master, amsgrad, id=name)


@pytest.mark.parametrize(("dtype", "moments", "master", "amsgrad"), list(formats()))
def test_formats(
    device: str, dtype: torch.dtype, moments: str, master: int | None, amsgrad: bool
) -> None:
    options: dict[str, Any] = {"moments": moments, "master_bits": master, "amsgrad": amsgrad}
    plain, away = pair(device, dtype, **options)
    run(plain, range(6))
    run(away, range(6))
    assert bits(away) == bits(plain)
    assert chunks_in(away) > 6
    states = [v for p in params_of(away) for k, v in away.state[p].items() if k != "step"]
    assert all(s.device.type == "cpu" for s in states)
    assert device == "cpu" or all(s.is_pinned() for s in states if s.numel())


@pytest.mark.parametrize("moments", ["float32", "int8", "int4"])
@pytest.mark.parametrize("multiple", [1, 2, 5])
def test_sizes_around_a_chunk(device: str, moments: str, multiple: int) -> None:
    around = [0, 1, 63, 64, 65, 127, 128, 129]
    shapes: Shapes = [(MOST * multiple + d,) for d in around] + [(MOST * multiple - 1,)]
    plain, away = (
        AdamW(made(device, shapes=shapes), moments=moments, offload=where)
        for where in (None, "cpu")
    )
    run(plain, range(3))
    run(away, range(3))
    assert bits(away) == bits(plain)


def test_small_tensors_are_gathered(device: str) -> None:
    shapes: Shapes = [(1 + i % 7,) for i in range(900)] + [(0,)] * 3
    plain, away = (AdamW(made(device, shapes=shapes), offload=where) for where in (None, "cpu"))
    run(plain, range(2))
    run(away, range(2))
    assert bits(away) == bits(plain)
    # Each parameter and each gradient begins at a multiple of 64 bytes.
    assert chunks_in(away) <= 900 * 128 // CHUNK + 1


@pytest.mark.parametrize("moments", ["float32", "int8"])
def test_views(device: str, moments: str) -> None:
    """Misaligned ones, transposed ones, and ones with gaps, which keep their state beside them."""

    def views() -> list[nn.Parameter]:
        torch.manual_seed(1)
        base = torch.randn(4, 3000).to(device)
        found = [base[0, 1:2002], base[1, 3:130], base[2, :2960].view(40, 74).t(), base[3, ::3]]
        return [nn.Parameter(view) for view in found]

    plain, away = (AdamW(views(), moments=moments, offload=where) for where in (None, "cpu"))
    for optimizer in (plain, away):
        # A slice of another tensor, and one that lies otherwise than its parameter.
        run(
            optimizer, range(6), lambda g: torch.cat([g.new_zeros(1), g.reshape(-1)])[1:].view_as(g)
        )
    assert bits(away) == bits(plain)
    gaps = params_of(away)[3]
    assert all(v.device == gaps.device for k, v in away.state[gaps].items() if k != "step")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_of_other_dtypes(
    device: str, dtype: torch.dtype, grad_dtype: torch.dtype
) -> None:
    plain, away = pair(device, dtype, moments="int8")
    for optimizer in (plain, away):
        for p in params_of(optimizer):
            p.grad_dtype = None  # type: ignore[attr-defined]
        run(optimizer, range(5), lambda g: g.to(grad_dtype))
    assert bits(away) == bits(plain)


def test_gradients_that_lie_in_the_parameters_or_alike_nowhere(device: str) -> None:
    plain, away = pair(device)
    for optimizer, _ in product((plain, away), range(2)):
        for p in params_of(optimizer):
            p.grad = p.detach() if p.dim() == 1 else torch.ones((), device=device).expand(p.shape)
        optimizer.step()
    assert bits(away) == bits(plain)


@pytest.mark.parametrize("grad_scale", [None, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_clipping_unscaling_and_skipping(
    device: str, dtype: torch.dtype, grad_scale: float | None
) -> None:
    plain, away = pair(device, dtype, max_grad_norm=0.7, skip_nonfinite=True)
    for optimizer, t in product((plain, away), range(6)):
        if grad_scale is not None:
            optimizer.grad_scale = torch.tensor(grad_scale, device=device)  # type: ignore[attr-defined]
            optimizer.found_inf = torch.tensor(float(t == 2), device=device)  # type: ignore[attr-defined]
        run(optimizer, range(t, t + 1), lambda g, t=t: g * math.nan if t == 4 else g)
    assert bits(away) == bits(plain)
    assert int(away.skipped_steps) == int(plain.skipped_steps) == 1 + (grad_scale is not None)
    assert float(away.last_grad_norm or 0) == float(plain.last_grad_norm or 0) > 0


def test_statistics(device: str) -> None:
    plain, away = pair(device, torch.bfloat16, master_bits=24, amsgrad=True)
    for optimizer in (plain, away):
        run(optimizer, range(2))
        optimizer.measure_next_step()
        run(optimizer, range(2, 3))
    within = away.statistics()
    for one, other in zip(within.parameters, plain.statistics().parameters, strict=True):
        assert one[:3] == other[:3]
        assert one[3:] == pytest.approx(other[3:], rel=1e-5)
    run(away, range(3, 4))
    run(plain, range(3, 4))
    for one, other in zip(away.statistics().groups, plain.statistics().groups, strict=True):
        assert one[3:] == pytest.approx(other[3:], rel=1e-5)


def test_groups_of_both_kinds(device: str) -> None:
    def groups(where: str | None) -> list[dict[str, Any]]:
        params = made(device)
        return [
            {"params": params[:3], "offload": where, "moments": "int8"},
            {"params": params[3:6], "lr": 0.02},
            {"params": params[6:], "offload": where, "betas": (0.8, 0.9)},
        ]

    plain, away = AdamW(groups(None)), AdamW(groups("cpu"))
    run(plain, range(4))
    run(away, range(4))
    assert bits(away) == bits(plain)
    held = away.memory()
    assert held.total == plain.memory().total
    outside = [held.groups[0], held.groups[2]]
    assert held.host.moments == sum(line.moments for line in outside) > 0
    assert held.host.weights == held.host.gradients == plain.memory().host.total == 0
    assert str(held).splitlines()[-1].startswith("on the host")


def test_switched_while_it_runs(device: str) -> None:
    plain, away = pair(device, torch.bfloat16, moments="int8", master_bits=24)
    for t, where in enumerate([None, "cpu", "cpu", None, "cpu"]):
        away.param_groups[0]["offload"] = where
        run(plain, range(t, t + 1))
        run(away, range(t, t + 1))
        assert bits(away) == bits(plain)
        words = away.state[params_of(away)[5]]["words"]
        assert words.device.type == ("cpu" if where else device)


@pytest.mark.parametrize("moments", ["float32", "int8"])
@pytest.mark.parametrize(("saves", "loads"), [(None, "cpu"), ("cpu", None), ("cpu", "cpu")])
def test_checkpoints(device: str, moments: str, saves: str | None, loads: str | None) -> None:
    options: dict[str, Any] = {"moments": moments, "amsgrad": True}
    straight = AdamW(made(device, torch.bfloat16), **options)
    saving = AdamW(made(device, torch.bfloat16), offload=saves, **options)
    run(straight, range(6))
    run(saving, range(3))
    buffer = io.BytesIO()
    torch.save(saving.state_dict(), buffer)
    buffer.seek(0)
    loading = AdamW(copy.deepcopy(params_of(saving)), offload=loads, **options)
    loading.load_state_dict(torch.load(buffer, weights_only=True))
    assert bits(loading) == bits(saving)
    assert loading.param_groups[0].get("offload") == loads
    state = loading.state[params_of(loading)[5]]
    where = "cpu" if loads else device
    assert all(v.device.type == where for key, v in state.items() if key != "step")
    run(loading, range(3, 6))
    assert bits(loading) == bits(straight)


def test_torch_optim_loads_it(device: str) -> None:
    away = AdamW(made(device), offload="cpu")
    run(away, range(3))
    theirs = torch.optim.AdamW(copy.deepcopy(params_of(away)))
    theirs.load_state_dict(away.state_dict())
    for p, q in zip(params_of(away), theirs.param_groups[0]["params"], strict=True):
        assert theirs.state[q]["exp_avg"].device == q.device
        assert torch.equal(theirs.state[q]["exp_avg"].cpu(), away.state[p]["exp_avg"])


def test_copies_go_on(device: str) -> None:
    plain, away = pair(device, moments="int8")
    run(plain, range(4))
    run(away, range(2))
    twin = copy.deepcopy(away)
    run(twin, range(2, 4))
    assert bits(twin) == bits(plain)


def test_in_backward_and_with_a_scheduler(device: str) -> None:
    found = []
    for where in (None, "cpu"):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(40, 50), nn.Tanh(), nn.Linear(50, 30)).to(device)
        optimizer = AdamW(model.parameters(), lr=torch.tensor(0.01), moments="int8", offload=where)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        if where:
            step_in_backward(optimizer)
        for t in range(4):
            torch.manual_seed(t)
            model(torch.randn(8, 40).to(device)).square().sum().backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        found.append(bits(optimizer))
    assert found[0] == found[1]


def test_autograd_sees_that_a_weight_has_changed(device: str) -> None:
    p = nn.Parameter(torch.ones(70, device=device))
    optimizer = AdamW([p], offload="cpu")
    loss = (p * p).sum()
    p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_capture_is_refused_before_anything_is_stepped(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = made(device)
    optimizer = AdamW([{"params": params[:2]}, {"params": params[2:], "offload": "cpu"}])
    run(optimizer, range(2))
    before = bits(optimizer)
    monkeypatch.setattr(offload, "is_capturing", lambda device: True)
    with pytest.raises(RuntimeError, match="cannot be captured"):
        run(optimizer, range(2, 3))
    assert bits(optimizer) == before


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"offload": "cuda"}, r"offload must be 'cpu' or None, got 'cuda': .*host's memory"),
    ({"offload": True}, r"offload must be 'cpu' or None, got True"),
    ({"offload": "cpu", "differentiable": True}, r"offload must be None with differentiable=True"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adam(made("cpu"), **options)
    optimizer = AdamW(made("cpu"), differentiable=options.get("differentiable", False))
    more = {"params": [nn.Parameter(torch.ones(3))], "offload": options["offload"]}
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group(more)
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0]["offload"] = options["offload"]
    params_of(optimizer)[1].grad = torch.ones(3)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert not optimizer.state


def test_parameters_on_the_cpu_stay_as_they_are() -> None:
    plain, away = AdamW(made("cpu")), AdamW(made("cpu"), offload="cpu")
    assert "offload" not in plain.param_groups[0]
    assert away.param_groups[0]["offload"] == "cpu"
    run(plain, range(3))
    run(away, range(3))
    assert bits(away) == bits(plain)
    assert away._plan is not None
    assert not away._plan._away
    assert away.memory().host.total == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("moments", ["float32", "int8"])
def test_work_that_is_under_way(moments: str) -> None:
    """Chunks of their real size, gradients still to be computed, weights used at once."""
    found = []
    for where in (None, "cpu"):
        torch.manual_seed(3)
        p = nn.Parameter(torch.randn(9000, 4000, device="cuda"))
        optimizer = AdamW([p], moments=moments, offload=where)
        sums = []
        for t in range(4):
            torch.cuda._sleep(10**8)
            p.grad = torch.sin(p.detach() * (t + 1))
            optimizer.step()
            p.grad.fill_(math.nan)
            p.grad = None
            torch.empty_like(p).fill_(math.nan)  # the memory that the gradient had
            sums.append(p.detach().double().sum())
        found.append((as_bytes(p), torch.stack(sums).tolist()))
    assert found[0] == found[1]
