"""What only a real GPU can show: graphs, streams, waits, compiling, size, another device."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from devices import assert_equal, assert_same, bits, core, give, needs_gpu, record, weights
from torch import nn

from adamas import formats, reference
from adamas.hyper import Hyper
from adamas.torch import Adam, AdamW
from adamas.torch.gpu import kernels, prepare

pytestmark = [pytest.mark.gpu, needs_gpu]

SHAPES = [(70,), (0,), (300, 50), ()]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clips": {"max_grad_norm": 0.1},
    "skips": {"skip_nonfinite": True},
    "captures": {"capturable": True},
    "all": {"max_grad_norm": 0.1, "skip_nonfinite": True, "capturable": True, "moments": "int8"},
}
each_option = pytest.mark.parametrize("name", OPTIONS)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raises where the host waits for the device."""
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch does not find every such call
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_option
def test_row_45_no_step_waits(name: str, device: torch.device) -> None:
    """REGRESSIONS 45: also where gradients move, come and go, and lr changes."""
    params = weights(SHAPES, device, torch.bfloat16)
    optimizer = AdamW(params, lr=0.1, **OPTIONS[name])
    grads = [[torch.randn_like(p) for p in params] for _ in range(3)]
    scaler = torch.ones(1, device=device)
    for t in range(8):
        for i, (p, grad) in enumerate(zip(params, grads[t % 3], strict=True)):
            p.grad = None if t > 3 and i == t % 4 else grad
        optimizer.param_groups[0]["lr"] = 0.1 / (t + 1)
        if name == "skips":
            optimizer.grad_scale = optimizer.found_inf = scaler  # type: ignore[attr-defined]
        if t < 2:
            optimizer.step()
        else:
            with no_waiting():
                optimizer.step()


def test_a_gradient_scaler_waits_once(device: torch.device) -> None:
    """For what torch itself reads at an update, not for the step."""
    params = weights(SHAPES, device)
    optimizer, scaler = AdamW(params), torch.amp.GradScaler("cuda", init_scale=4.0)
    for t in range(4):
        loss = sum((p * p).sum() for p in params)
        scaler.scale(loss).backward()
        if t < 2:
            scaler.step(optimizer)
        else:
            with no_waiting():
                scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert all(int(optimizer.state[p]["step"]) == 4 for p in params)


def compiled() -> int:
    """Variants of the kernels that Triton has compiled in this process."""
    count = 0
    for kernel in (kernels.step_chunk, kernels.place_gradients, prepare.prepare):
        count += sum(len(cache[0]) for cache in kernel.device_caches.values())
    return count


@each_option
def test_row_45_nothing_is_compiled_anew(name: str, device: torch.device) -> None:
    """REGRESSIONS 45: whatever a step, a scheduler or another model's shapes change."""

    def run(shapes: Any, **options: Any) -> None:
        params = weights(shapes, device)
        optimizer = AdamW(params, **OPTIONS[name], **options)
        for t in range(3):
            give(params, t, missing=(t % len(params),) if t else ())
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= 0.7

    run(SHAPES)
    before = compiled()
    for i, shapes in enumerate([SHAPES, [(1,)], [(16,), (8192,)], [(17,)] * 300, [(100_001,)]]):
        run(shapes, lr=0.01 * i, betas=(0.1 * i, 0.9), eps=10.0**-i, weight_decay=0.1 * i)
    assert compiled() == before


@pytest.mark.parametrize("name", ["plain", "all"])
def test_row_44_a_graph_of_forward_backward_and_step(name: str, device: torch.device) -> None:
    """REGRESSIONS 44: ten replays, the lr in a tensor that changes, eager steps between them."""
    options = OPTIONS[name] | {"capturable": True}

    def make() -> tuple[nn.Module, AdamW, torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(device)
        lr = torch.tensor(0.1, device=device)
        return model, AdamW(model.parameters(), lr=lr, **options), torch.zeros(4, 8, device=device)

    def train(model: nn.Module, optimizer: AdamW, x: torch.Tensor) -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    (model, optimizer, x), (other, eager, y) = make(), make()

    def both(t: int, step: Callable[[], None]) -> None:
        for one, data in ((optimizer, x), (eager, y)):
            one.param_groups[0]["lr"].fill_(0.1 / (t + 1))
            data.copy_(torch.randn(4, 8, generator=torch.Generator().manual_seed(t)))
            if name == "all" and t == 7:
                data[0, 0] = math.nan
        step()
        train(other, eager, y)
        assert_equal(record(optimizer), record(eager), f"at {t}")

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for t in range(3):
            both(t, lambda: train(model, optimizer, x))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad()
    with torch.cuda.graph(graph):
        train(model, optimizer, x)
    own = [p.grad for p in model.parameters()]
    for t in range(3, 13):
        both(t, graph.replay)
        if t % 4 == 0:
            both(100 + t, lambda: train(model, optimizer, x))
            for p, grad in zip(model.parameters(), own, strict=True):
                p.grad = grad


def test_a_stream_of_ones_own(device: torch.device) -> None:
    """Steps follow what was put on the current stream before them."""

    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights([(1 << 20,)], device)
        optimizer = AdamW(params, lr=0.1, max_grad_norm=1.0)
        stream = torch.cuda.Stream() if device.type == "cuda" else None
        with torch.cuda.stream(stream):
            for t in range(4):
                give(params, t)
                for _ in range(64):  # which takes the device longer than the host
                    params[0].grad.mul_(-1)
                optimizer.step()
            yield record(optimizer)

    assert_same(scenario, device)


def test_a_scale_that_is_elsewhere(device: torch.device) -> None:
    """Where the loss is, which need not be where the parameters are."""

    def scenario(device: torch.device) -> Iterator[Any]:
        params = weights(SHAPES, device)
        optimizer = AdamW(params, lr=0.1)
        for t in range(3):
            give(params, t, scale=4.0)
            optimizer.grad_scale = torch.tensor([4.0])  # type: ignore[attr-defined]
            optimizer.found_inf = torch.tensor([float(t == 1)])  # type: ignore[attr-defined]
            optimizer.step()
            yield record(optimizer)

    assert_same(scenario, device)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_row_7_another_device_than_the_current_one(device: torch.device) -> None:
    """REGRESSIONS 7: all on one that is not current, then one parameter on each."""
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    with torch.cuda.device(0):
        for options in OPTIONS.values():

            def scenario(on: torch.device, options: Any = options) -> Iterator[Any]:
                where = last if on.type == "cuda" else on
                params = weights(SHAPES, where)
                optimizer = AdamW(params, lr=0.1, **options)
                for t in range(3):
                    give(params, t)
                    optimizer.step()
                yield record(optimizer)
                apart = [*weights([(70,)], on), *weights([(5,)], where)]
                optimizer = AdamW(apart, lr=0.1, **options)
                for t in range(3):
                    give(apart, t)
                    optimizer.step()
                yield record(optimizer)

            assert_same(scenario, device)


@pytest.mark.parametrize("stepped", [False, True])
def test_a_parameter_that_moves_without_its_gradient(device: torch.device, stepped: bool) -> None:
    """Its address would be read where there is nothing, or something else."""
    cpu = torch.device("cpu")
    for here, there in ((cpu, device), (device, cpu)):
        (p,) = weights([(70,)], here)
        optimizer = AdamW([p], lr=0.1)
        p.grad = torch.ones_like(p)
        if stepped:
            optimizer.step()
        p.data = p.data.to(there)
        before = bits(p)
        with pytest.raises(RuntimeError, match=f"must be on its device {there.type}"):
            optimizer.step()
        assert_equal(bits(p), before, "weights")


def test_parameters_on_the_cpu_beside_those_on_the_device(device: torch.device) -> None:
    def scenario(device: torch.device) -> Iterator[Any]:
        params = [*weights([(70,)], device), *weights([(5,)], torch.device("cpu"))]
        optimizer = AdamW(params, lr=0.1, max_grad_norm=0.1, skip_nonfinite=True)
        for t in range(3):
            give(params, t, scale=math.inf if t == 1 else 1.0)
            optimizer.step()
            yield record(optimizer)

    assert_same(scenario, device)


def test_row_5_more_than_2_to_the_31_elements(device: torch.device) -> None:
    """REGRESSIONS 5: groups near the beginning, 2^31 and the end, beside the specification."""
    size = 2**31 + 2**20 + 77
    if torch.cuda.mem_get_info()[0] < 8 * size:
        pytest.skip("too little memory on the GPU")
    torch.manual_seed(0)
    param = nn.Parameter(torch.zeros(size, dtype=torch.bfloat16, device=device).uniform_(-1, 1))
    grad = torch.empty_like(param, requires_grad=False).normal_()
    optimizer = AdamW([param], lr=0.1, moments="int4", master_bits=24)
    last = size // 64 * 64
    parts = [slice(a, min(a + 192, size)) for a in (0, 2**31 - 64, 2**31 + 64 * 1000, last - 64)]

    def values(tensor: torch.Tensor, part: slice) -> np.ndarray:
        return tensor.detach()[part].cpu().view(torch.int16).numpy().view(np.uint16)

    hyper = Hyper(lr=0.1, weight_decay=0.01, decoupled_weight_decay=True)
    found = [values(param, part) for part in parts]
    states = [reference.initial_state(p, hyper, "int4", 24) for p in found]
    for _ in range(2):
        param.grad = grad
        optimizer.step()
        for i, part in enumerate(parts):
            index = np.arange(part.start, part.stop)
            given = values(grad, part)
            found[i], states[i] = reference.step(found[i], given, states[i], hyper, index=index)
    state = optimizer.state[param]
    for i, part in enumerate(parts):
        assert np.array_equal(values(param, part), found[i])
        for key in ("words", "remainder"):
            assert np.array_equal(state[key][part].cpu().numpy(), states[i][key].reshape(-1))
        groups = slice(part.start // formats.GROUP, -(-part.stop // formats.GROUP))
        assert np.array_equal(values(state["scales"], groups), states[i]["scales"])


@pytest.mark.parametrize("moments", ["int8", "int4"])
@pytest.mark.parametrize("shape", [(), (1,), (70,), (3, 5)])
def test_compact_checkpoints_of_the_device_load_there(
    shape: tuple[int, ...], moments: str, device: torch.device
) -> None:
    """The scales of a tensor of one element have the shape that those of a shard would have."""
    (p,) = weights([shape], device)
    optimizer = Adam([p], moments=moments)
    give([p], 0)
    optimizer.step()
    before = record(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    assert_equal(record(optimizer), before, "after loading")


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_a_compiled_loop_around_it(device: torch.device) -> None:
    torch.manual_seed(0)
    (p,), (q,) = weights([(64,)], device), weights([(64,)], device)
    one, other = AdamW([p], lr=0.1), AdamW([q], lr=0.1)

    def train(param: nn.Parameter, optimizer: AdamW) -> None:
        (param * 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    train_compiled = torch.compile(train)
    for _ in range(3):
        train_compiled(p, one)
        train(q, other)
    assert torch.equal(p, q)
    assert (bits(one.state[p]["exp_avg"]) == bits(other.state[q]["exp_avg"])).all()


def test_autocast_with_a_gradient_scaler(device: torch.device) -> None:
    """The step has the bits of one on the CPU, of the same gradients, unscaled."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1)).to(device)
    params = list(model.parameters())
    optimizer, scaler = AdamW(params, lr=0.1), torch.amp.GradScaler("cuda", init_scale=1024.0)
    beside = [nn.Parameter(p.detach().cpu().clone()) for p in params]
    plain = AdamW(beside, lr=0.1)
    for t in range(5):
        optimizer.zero_grad()
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(t)).to(device)
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(x).square().mean()
        scaler.scale(loss).backward()
        for p, q in zip(params, beside, strict=True):
            q.grad = p.grad.cpu() / scaler.get_scale()
        skipped = any(not q.grad.isfinite().all() for q in beside)
        scaler.step(optimizer)
        scaler.update()
        if not skipped:
            with core():
                plain.step()
        for p, q in zip(params, beside, strict=True):
            assert torch.equal(p.cpu(), q)
