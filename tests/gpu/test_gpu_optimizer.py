"""The optimizers on a device, beside the same on the CPU: all bits of each step."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from devices import assert_same, bits, core, give, numbers, params_of, record, set_grad, weights
from torch import Tensor, nn

from adamas.torch import Adam, AdamW, step_in_backward

pytestmark = pytest.mark.gpu

FORMATS: list[dict[str, Any]] = [{}, {"moments": "bfloat16"}, {"moments": "int8"}]
FORMATS += [{"moments": "int4"}]
each_format = pytest.mark.parametrize("options", FORMATS, ids=lambda o: o.get("moments", "float32"))
SHAPES = [(0,), (3,), (), (70, 5), (0, 3), (8, 8), (0,)]


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, FORMATS[0]),
        (torch.complex64, FORMATS[3]),
        (torch.bfloat16, FORMATS[2]),
        (torch.float16, FORMATS[1]),
    ],
    ids=["float32", "complex64-int4", "bfloat16-int8", "float16-bfloat16"],
)
def test_groups_empty_tensors_and_gradients_that_come_and_go(
    dtype: torch.dtype, options: dict[str, Any], device: torch.device
) -> None:
    """REGRESSIONS 1 and 8: empty ones first, between others and last, and each its own count."""

    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights(SHAPES, device, dtype)
        groups = [{"params": params[:3], "amsgrad": True}, {"params": params[3:], "lr": 0.1}]
        optimizer = AdamW(groups, lr=1e-2, **options)
        for t in range(4):
            give(params, t, missing=[(), (0, 1), (3,), (2, 5, 6)][t])
            optimizer.step()
            yield record(optimizer)

    counts = assert_same(scenario, device)[-1]
    assert [counts[f"step of {i}"] for i in range(7)] == [3, 3, 3, 3, 4, 3, 3]


def test_dtypes_and_formats_in_one_optimizer(device: torch.device) -> None:
    kinds = [torch.float32, torch.float64, torch.bfloat16, torch.bfloat16, torch.float16]
    kinds += [torch.complex64, torch.complex128, torch.float16]

    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights([(5, 17)] * 8, device, kinds)
        groups: list[dict[str, Any]] = [
            {"params": [params[i] for i in (0, 1, 2, 5, 6)], "weight_decay": 0.2},
            {"params": [params[3]], "moments": "int8", "master_bits": 24, "maximize": True},
            {"params": [params[4]], "moments": "int4", "betas": (0.8, 0.95)},
            {"params": [params[7]], "moments": "bfloat16", "master_bits": 16, "eps": 0.0},
        ]
        optimizer = Adam(groups, lr=torch.tensor(0.02), weight_decay=0.1)
        for t in range(3):
            give(params, t, missing=[(), (4,), ()][t])
            optimizer.step()
            yield record(optimizer)

    assert_same(scenario, device)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "with gaps": lambda x: torch.stack([x, x], -1)[..., 0],
    "misaligned": lambda x: torch.cat([x.reshape(-1)[:1], x.reshape(-1)])[1:].view(x.shape),
}


@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.float32, {}), (torch.bfloat16, {"moments": "int8", "master_bits": 24})],
    ids=["float32", "int8"],
)
def test_row_6_layouts(dtype: torch.dtype, options: dict[str, Any], device: torch.device) -> None:
    """REGRESSIONS 6: each of parameters with each of gradients, one after another."""

    def scenario(device: torch.device) -> Iterator[Any]:
        params = [
            nn.Parameter(make(numbers((3, 2, 4, 3), i).to(dtype).to(device)))
            for i, make in enumerate(LAYOUTS.values())
        ]
        optimizer = Adam(params, lr=0.1, **options)
        for t in range(len(LAYOUTS)):
            for i, p in enumerate(params):
                make = list(LAYOUTS.values())[(t + i) % len(LAYOUTS)]
                p.grad = make(numbers((3, 2, 4, 3), 10 * t + i).to(dtype).to(device))
            optimizer.step()
            yield record(optimizer)

    assert_same(scenario, device)


@pytest.mark.parametrize("moments", ["float32", "int4"])
def test_gradients_of_other_dtypes_that_move_each_step(moments: str, device: torch.device) -> None:
    """Of a dtype that differs from step to step, at addresses that do."""
    kinds = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights([(70,)] * 3, device, [torch.float32, torch.bfloat16, torch.float16])
        optimizer = Adam(params, lr=0.1, moments=moments, max_grad_norm=1.0)
        kept = []
        for t in range(5):
            for i, p in enumerate(params):
                kept.append(numbers((70,), 10 * t + i, kinds[(t + i) % 4]).to(device))
                set_grad(p, kept[-1])
            optimizer.step()
            yield record(optimizer)

    assert_same(scenario, device)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_gradient_of_another_dtype_in_the_same_memory(
    kind: torch.dtype, device: torch.device
) -> None:
    """As allocators give it again: the address is the same, and what lies there is not."""

    def scenario(device: torch.device) -> Iterator[Any]:
        (param,) = weights([(70,)], device)
        optimizer = Adam([param], lr=0.1)
        memory = torch.zeros(70, device=device)
        for t, dtype in enumerate((kind, torch.float32, kind, torch.float32)):
            grad = memory.view(dtype)[:70]
            grad.copy_(numbers((70,), t))
            set_grad(param, grad)
            optimizer.step()
            yield record(optimizer)

    assert_same(scenario, device)


def test_options_that_change_on_the_way(device: torch.device) -> None:
    """AMSGrad on and off, another format, another group, and each hyperparameter."""

    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights([(70,), (3, 5), (64,)], device, torch.bfloat16)
        optimizer = AdamW(params[:2], lr=0.1)
        group = optimizer.param_groups[0]
        changes: list[Callable[[], Any]] = [
            lambda: group.update(amsgrad=True),
            lambda: group.update(moments="int8"),
            lambda: group.update(amsgrad=False, lr=0.01, betas=(0.5, 0.9)),
            lambda: optimizer.add_param_group({"params": params[2], "moments": "int4"}),
            lambda: group.update(moments="float32", maximize=True, master_bits=24),
            lambda: group.update(weight_decay=0.3, eps=1e-3, decoupled_weight_decay=False),
        ]
        for t in range(7):
            give(params, t)
            optimizer.step()
            yield record(optimizer)
            if t < 6:
                changes[t]()

    assert_same(scenario, device)


def through_file(saved: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize(
    ("options", "capturable"), [*((f, False) for f in FORMATS), ({"moments": "int8"}, True)]
)
@pytest.mark.parametrize("back", [False, True], ids=["to the device", "from the device"])
def test_checkpoints_move_between_devices(
    options: dict[str, Any], capturable: bool, back: bool, device: torch.device
) -> None:
    """The run goes on with the bits of one that was never stopped."""
    cpu = torch.device("cpu")
    kinds = [torch.bfloat16, torch.float16, torch.float32]

    def run(optimizer: Adam, steps: range, there: bool) -> None:
        for t in steps:
            give(params_of(optimizer), t)
            if there:
                optimizer.step()
            else:
                with core():
                    optimizer.step()

    def make(on: torch.device) -> Adam:
        options_of = {"capturable": capturable and on == device}
        return AdamW(weights([(70,), (1,), (5, 3)], on, kinds), 0.1, **options, **options_of)

    straight = make(cpu)
    run(straight, range(4), False)
    first, second = (make(device), make(cpu)) if back else (make(cpu), make(device))
    run(first, range(2), back)
    saved = through_file(first.state_dict())
    assert saved["state"][0]["step"].dtype == torch.float32
    second.load_state_dict(saved)
    with torch.no_grad():
        for p, q in zip(params_of(first), params_of(second), strict=True):
            q.copy_(p)
    run(second, range(2, 4), not back)
    found, expected = record(second), record(straight)
    assert {k: v for k, v in found.items() if "step" in k} == {
        k: v for k, v in expected.items() if "step" in k
    }
    for key in expected:
        assert "step" in key or key in ("norm", "skipped") or (found[key] == expected[key]).all()


@pytest.mark.parametrize("capturable", [False, True])
def test_checkpoints_from_and_to_torch(capturable: bool, device: torch.device) -> None:
    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights([(70,), (5, 3)], device)
        theirs = torch.optim.AdamW(params, lr=0.1, amsgrad=True, foreach=False)
        ours = AdamW(params, lr=0.1, amsgrad=True, capturable=capturable)
        give(params, 0)
        ours.step()
        theirs.load_state_dict(ours.state_dict())
        theirs.param_groups[0]["capturable"] = False  # torch's on the CPU refuses it
        assert {s["step"].item() for s in theirs.state.values()} == {1.0}
        saved = theirs.state_dict()
        saved["state"][1]["step"] = torch.tensor(7.0, device=device)
        ours.load_state_dict(saved)
        for t in (1, 2):
            give(params, t)
            ours.step()
            yield record(ours)

    assert assert_same(scenario, device)[-1]["step of 1"] == 9


@pytest.mark.parametrize("options", [{}, {"moments": "int8"}, {"capturable": True}])
def test_copies_and_pickles(options: dict[str, Any], device: torch.device) -> None:
    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights([(70,), (0,), (5, 3)], device)
        optimizer = AdamW(params, lr=0.1, skip_nonfinite=True, **options)
        give(params, 0)
        optimizer.step()
        copied = copy.deepcopy(optimizer)
        pickled = pickle.loads(pickle.dumps(optimizer))
        for one in (optimizer, copied, pickled):
            for t in (1, 2):
                give(params_of(one), t)
                one.step()
            yield record(one)

    first, *others = assert_same(scenario, device)
    assert all((other["weights of 0"] == first["weights of 0"]).all() for other in others)


@pytest.mark.parametrize("options", [{}, {"moments": "int8"}, {"capturable": True}])
def test_steps_in_backward(options: dict[str, Any], device: torch.device) -> None:
    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights([(6, 7), (5, 6)], device)
        never = nn.Parameter(torch.ones(2, device=device))
        optimizer = AdamW([*params, never], lr=0.1, **options)
        stepper = step_in_backward(optimizer)
        for t in range(4):
            if t == 3:
                stepper.remove()
            x = numbers((4, 7), t).to(device)
            # Products of small whole numbers are exact, in whatever order they are added up.
            x = (x * 4).round().clamp(-3, 3)
            for p in params:
                p.grad = None
                (p * (x.sum() + t)).sum().backward()
            optimizer.step()
            yield record(optimizer)

    assert_same(scenario, device)


def test_hooks_closures_and_schedulers(device: torch.device) -> None:
    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights([(7,), (5, 3)], device)
        optimizer = Adam(params, lr=torch.tensor(0.1), betas=(torch.tensor(0.8), 0.99))
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        seen: list[str] = []
        optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
        optimizer.register_step_post_hook(lambda *_: seen.append("after"))
        for t in range(3):

            def closure(t: int = t) -> float:
                assert torch.is_grad_enabled()
                give(params, t)
                return 1.5 + t

            assert optimizer.step(closure) == 1.5 + t
            schedule.step()
            yield record(optimizer), list(seen), float(optimizer.param_groups[0]["lr"])

    assert_same(scenario, device)


def near(one: Any, other: Any, bound: float) -> None:
    """Statistics, to rounding."""
    for name in ("parameters", "groups"):
        for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
            assert a[:3] == b[:3]
            assert a[3:] == pytest.approx(b[3:], rel=bound, abs=1e-30, nan_ok=True)


@pytest.mark.parametrize("ahead", [False, True], ids=["afterwards", "measured"])
@pytest.mark.parametrize(
    "options",
    [{}, {"moments": "int4"}, {"max_grad_norm": 1.0}, {"capturable": True}],
    ids=["float32", "int4", "clipped", "capturable"],
)
def test_statistics_and_memory(options: dict[str, Any], ahead: bool, device: torch.device) -> None:
    def run(device: torch.device) -> Any:
        params = weights([(70,), (5, 3), (0,)], device, torch.bfloat16)
        optimizer = AdamW(params, lr=0.1, **options)
        for t in range(3):
            give(params, t)
            if ahead and t == 2:
                optimizer.measure_next_step()
            optimizer.step()
        return optimizer.statistics(), optimizer.memory().total

    with core():
        expected, held = run(torch.device("cpu"))
    found, there = run(device)
    # The core measures moments before it codes them, the device afterwards.
    near(found, expected, 0.05 if "moments" in options else 1e-5)
    if not options.get("capturable"):
        assert there == held
    assert math.isfinite(found.parameters[0].update_norm)


def test_a_step_tells_autograd_that_it_wrote(device: torch.device) -> None:
    """Else backward would use weights of after the step."""
    p, q = weights([(5,), (5,)], device)
    optimizer = AdamW([p, q], max_grad_norm=1.0)
    for norm in (None, 1.0):
        optimizer.max_grad_norm = norm
        loss = (p * p).sum()
        give([p, q], 0, missing=(1,))
        before = p._version, q._version
        optimizer.step()
        assert (p._version - before[0], q._version - before[1]) == (1, 0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


BAD: list[tuple[Callable[[Adam], Any], str]] = [
    (lambda o: set_grad(params_of(o)[1], torch.ones(4)), "must have its shape"),
    (lambda o: o.param_groups[0].update(lr=-1.0), "lr must be"),
    (lambda o: o.param_groups[0].update(betas=(0.9, 1.0)), "beta2 must be"),
    (lambda o: o.param_groups[0].update(lr=1e39), "exceeds float32"),
    (lambda o: o.state[params_of(o)[1]].update(step=-1), "must have a step"),
    (lambda o: o.state[params_of(o)[1]].update(exp_avg=torch.ones(2)), "must have exp_avg"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[message for _, message in BAD])
@pytest.mark.parametrize(
    "options", [{}, {"max_grad_norm": 1.0}, {"capturable": True}], ids=["", "clips", "capturable"]
)
def test_what_cannot_be_stepped_changes_nothing(
    options: dict[str, Any],
    spoil: Callable[[Adam], Any],
    message: str,
    device: torch.device,
) -> None:
    params = weights([(5,), (3,)], device)
    optimizer = AdamW(params, **options)
    for t in range(2):
        give(params, t)
        optimizer.step()
    give(params, 2)
    spoil(optimizer)
    before = [bits(x) for p in params for x in (p, optimizer.state[p]["exp_avg_sq"])]
    with pytest.raises((ValueError, RuntimeError), match=message):
        optimizer.step()
    after = [bits(x) for p in params for x in (p, optimizer.state[p]["exp_avg_sq"])]
    assert all((one == other).all() for one, other in zip(before, after, strict=True))
