"""The PyTorch front end beside torch.optim."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import adamas.torch
from adamas import Hyper, reference
from adamas.torch import Adam, AdamW, plan

RULES = [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)]
rules = pytest.mark.parametrize(("ours", "theirs"), RULES, ids=["Adam", "AdamW"])


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    data, target = load_digits(return_X_y=True)
    return torch.from_numpy(data / 16.0), torch.from_numpy(target)


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.LayerNorm(48), nn.Linear(48, 10)).to(
        dtype
    )


@rules
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_follows_torch_on_recorded_gradients(
    ours: type[Adam],
    theirs: type[torch.optim.Adam],
    dtype: torch.dtype,
    bound: float,
    digits: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """200 steps of a real network, every option, relative to each tensor's largest weight.

    Where weights decay apart, torch rounds ``param * (1 - lr * weight_decay)`` each step, an error
    that adds up: there its own distance from exact arithmetic is allowed for, and ours is smaller.
    """
    data, target = digits[0].to(dtype), digits[1]
    for amsgrad, maximize, decay in product((False, True), (False, True), (0.0, 0.01)):
        hyper = Hyper(
            weight_decay=decay,
            amsgrad=amsgrad,
            maximize=maximize,
            decoupled_weight_decay=ours is AdamW,
        )
        options = {"amsgrad": amsgrad, "maximize": maximize, "weight_decay": decay}
        model = network(dtype)
        theirs_params = list(model.parameters())
        ours_params = [nn.Parameter(p.detach().clone()) for p in theirs_params]
        apart = hyper.coefficients(1).decay > 0
        exact = [Exact(p.detach().numpy(), hyper) for p in theirs_params if apart]
        one, other = ours(ours_params, **options), theirs(theirs_params, foreach=False, **options)
        for step in range(200):
            batch = slice(step * 8 % 1600, step * 8 % 1600 + 32)
            loss = nn.functional.cross_entropy(model(data[batch]), target[batch])
            other.zero_grad()
            (-loss if maximize else loss).backward()
            for p, q in zip(ours_params, theirs_params, strict=True):
                p.grad = q.grad.clone()
            for q, e in zip(theirs_params, exact, strict=False):
                e.step(q.grad.numpy())
            one.step()
            other.step()
        for number, (p, q) in enumerate(zip(ours_params, theirs_params, strict=True)):
            mine, torchs = p.detach().numpy(), q.detach().numpy()
            largest = np.abs(torchs).max()
            allowed = bound * largest
            if apart:
                e = exact[number]
                torch_error, own_error = e.distance(torchs), e.distance(mine)
                assert own_error <= torch_error + bound * largest / 4, (options, own_error)
                allowed += torch_error
            assert np.abs(mine - torchs).max() <= allowed, options


class Exact:
    """The paper's equations in extended precision."""

    def __init__(self, param: np.ndarray, hyper: Hyper) -> None:
        self.p = param.astype(np.longdouble)
        self.m, self.v, self.largest, self.t, self.hyper = (
            0 * self.p,
            0 * self.p,
            0 * self.p,
            0,
            hyper,
        )

    def step(self, grad: np.ndarray) -> None:
        h, self.t = self.hyper, self.t + 1
        lr, beta1, beta2, eps, decay = map(np.longdouble, (h.lr, *h.betas, h.eps, h.weight_decay))
        g = grad.astype(np.longdouble) * (-1 if h.maximize else 1)
        if not h.decoupled_weight_decay:
            g = g + decay * self.p
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g * g
        self.largest = np.maximum(self.largest, self.v) if h.amsgrad else self.v
        m_hat, v_hat = self.m / (1 - beta1**self.t), self.largest / (1 - beta2**self.t)
        shrink = lr * decay * self.p if h.decoupled_weight_decay else 0
        self.p = self.p - lr * m_hat / (np.sqrt(v_hat) + eps) - shrink

    def distance(self, param: np.ndarray) -> float:
        return float(np.abs(param - self.p).max())


def flat(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [
        tensor.detach().clone()
        for group in optimizer.param_groups
        for p in group["params"]
        for tensor in (p, *(v for v in optimizer.state[p].values() if isinstance(v, torch.Tensor)))
    ]


def identical(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def train(optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    """Steps with gradients that depend on the step's number alone."""
    for t in range(start, stop):
        for group in optimizer.param_groups:
            for p in group["params"]:
                generator = torch.Generator().manual_seed(1000 * t + p.numel())
                values = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p.grad = values.to(p.dtype)
        optimizer.step()


def params(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(7, 5), (5,), (), (0,), (2, 3, 4, 4)]
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in shapes
    ]


@rules
@pytest.mark.parametrize("amsgrad", [False, True])
def test_checkpoints_in_both_directions(
    ours: type[Adam], theirs: type[torch.optim.Adam], amsgrad: bool
) -> None:
    source = theirs(params(), lr=0.02, betas=(0.8, 0.9), amsgrad=amsgrad, foreach=False)
    train(source, 0, 5)
    here = ours([nn.Parameter(p.detach().clone()) for p in source.param_groups[0]["params"]])
    here.load_state_dict(source.state_dict())
    assert here.param_groups[0]["lr"] == 0.02
    assert here.param_groups[0]["betas"] == (0.8, 0.9)
    train(source, 5, 10)
    train(here, 5, 10)
    for p, q in zip(*(o.param_groups[0]["params"] for o in (here, source)), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    for options in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        clones = [nn.Parameter(p.detach().clone()) for p in here.param_groups[0]["params"]]
        back = theirs(clones)
        back.load_state_dict(here.state_dict())
        back.param_groups[0].update(options)
        if "fused" in options:
            for state in back.state.values():
                state["step"] = state["step"].float()
        train(back, 10, 12)
        assert all(int(s["step"]) == 12 for s in back.state.values())
    saved = here.state_dict()["state"][0]
    assert list(saved) == ["step", "exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * amsgrad
    assert saved["step"].dtype == torch.float32
    assert saved["step"].shape == ()


@rules
def test_rows_9_35_37_resumed_is_uninterrupted(
    ours: type[Adam], theirs: type[torch.optim.Adam]
) -> None:
    straight = ours(params(), lr=0.1, amsgrad=True)
    train(straight, 0, 9)
    halted = ours(params(), lr=0.1, amsgrad=True)
    train(halted, 0, 4)
    file = io.BytesIO()
    weights = [p.detach().clone() for p in halted.param_groups[0]["params"]]
    torch.save({"optimizer": halted.state_dict(), "weights": weights}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    resumed = ours([nn.Parameter(w) for w in loaded["weights"]], lr=5.0)
    resumed.load_state_dict(loaded["optimizer"])
    train(resumed, 4, 9)
    assert identical(flat(straight), flat(resumed))
    assert all(state["step"] == 9 for state in resumed.state.values())


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))],
    ids=["deepcopy", "pickle"],
)
def test_copies_go_on_alike(duplicate: Callable[[Adam], Adam]) -> None:
    one = AdamW(params(), lr=0.1)
    train(one, 0, 3)
    other = duplicate(one)
    train(one, 3, 6)
    before = flat(other)
    train(other, 3, 6)
    assert identical(flat(one), flat(other))
    assert not identical(before, flat(other))


@rules
def test_groups_and_schedulers(ours: type[Adam], theirs: type[torch.optim.Adam]) -> None:
    results = []
    for rule in (ours, theirs):
        all_params = params(torch.float64)
        optimizer = rule(
            [
                {"params": all_params[:2], "lr": 0.1, "weight_decay": 0.3},
                {"params": all_params[2:3]},
            ],
            lr=0.01,
        )
        optimizer.add_param_group({"params": all_params[3:], "betas": (0.5, 0.6), "amsgrad": True})
        schedulers = [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4),
            torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=20),
        ]
        for t in range(12):
            train(optimizer, t, t + 1)
            for scheduler in schedulers:
                scheduler.step()
        results.append([p.detach() for p in all_params])
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_closure_and_zero_grad() -> None:
    p = nn.Parameter(torch.tensor([2.0]))
    optimizer = Adam([p], lr=0.5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        assert torch.is_grad_enabled()
        loss = (p**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.item() == 4
    assert p.item() == pytest.approx(1.5)
    optimizer.zero_grad()
    assert p.grad is None
    assert optimizer.step() is None
    assert p.item() == pytest.approx(1.5)


def test_hooks() -> None:
    p = nn.Parameter(torch.ones(1))
    optimizer = Adam([p])
    seen: list[str] = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: seen.append("pre")),
        optimizer.register_step_post_hook(lambda *_: seen.append("post")),
        register_optimizer_step_pre_hook(lambda *_: seen.append("global")),
        optimizer.register_state_dict_pre_hook(lambda *_: seen.append("state")),
        optimizer.register_state_dict_post_hook(lambda _, state: state | {"extra": 1}),
        optimizer.register_load_state_dict_pre_hook(lambda *_: seen.append("load")),
        optimizer.register_load_state_dict_post_hook(lambda *_: seen.append("loaded")),
    ]
    p.grad = torch.ones(1)
    optimizer.step()
    state = optimizer.state_dict()
    assert state.pop("extra") == 1
    optimizer.load_state_dict(state)
    assert seen == ["global", "pre", "post", "state", "load", "loaded"]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(seen) == 6


def test_hooks_of_a_subclass_run_once() -> None:
    """Torch wraps its step, too."""

    class Counting(AdamW):
        def step(self, *args: Any, **options: Any) -> Any:
            calls.append("step")
            return super().step(*args, **options)

    calls: list[str] = []
    p = nn.Parameter(torch.ones(1))
    p.grad = torch.ones(1)
    optimizer = Counting([p])
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step()
    assert calls == ["before", "step", "after"]


def test_the_profiler_sees_steps() -> None:
    p = nn.Parameter(torch.ones(1))
    optimizer = AdamW([p])
    p.grad = torch.ones(1)
    with torch.profiler.profile() as profile:
        optimizer.step()
    assert any("Optimizer.step#AdamW.step" in event.name for event in profile.events())


def test_autograd_knows_that_weights_changed() -> None:
    """A graph that saved the old weights must not be used with the new."""
    p = nn.Parameter(torch.ones(3))
    loss = (p * p * p).sum()
    p.grad = torch.ones(3)
    Adam([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autograd_knows_which_weights_did_not_change() -> None:
    """A graph that saved a weight without gradient can be used after a step of others."""
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = Adam([p, q])
    for _ in range(2):
        q.grad = p.grad = torch.ones(3)
        optimizer.step()
        loss = (q * q).sum()
        q.grad = None
        optimizer.step()
        loss.backward()
        assert torch.equal(q.grad, 2 * q)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_until_all_weights_are_stepped(
    number: int, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = [nn.Parameter(torch.ones(4)[::2]), nn.Parameter(torch.ones(3, dtype=torch.bfloat16))]
    here += [nn.Parameter(torch.ones(3))] * dense
    optimizer = Adam(here, lr=0.5)
    for p in here:
        p.grad = torch.ones_like(p)
    plain_step = plan.plain.step

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(number)
        return plain_step(*arguments)

    monkeypatch.setattr(plan.plain, "step", interrupted)
    previous = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    finally:
        signal.signal(number, previous)
    assert [state["step"] for state in optimizer.state.values()] == [1] * len(here)
    assert all((p == 0.5).all() for p in here)


PLAIN: list[tuple[str, Callable[[], torch.Tensor]]] = [
    ("bfloat16", lambda: torch.randn(9, 5).bfloat16()),
    ("float16", lambda: torch.randn(9, 5).half()),
    ("bfloat16 with gaps", lambda: torch.randn(9, 10).bfloat16()[:, ::2]),
    ("float16 with gaps", lambda: torch.randn(9, 10).half()[:, ::2]),
    ("gaps", lambda: torch.randn(9, 10)[:, ::2]),
    ("overlapping dimensions", lambda: torch.randn(40).as_strided((6, 5), (6, 1))),
    ("complex with a gap", lambda: torch.randn(8, dtype=torch.complex64)[::2]),
]


@pytest.mark.parametrize(("name", "make"), PLAIN, ids=[name for name, _ in PLAIN])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_what_the_core_does_not_take(
    name: str, make: Callable[[], torch.Tensor], amsgrad: bool
) -> None:
    """Stepped by the same equations, beside parameters that the core takes."""
    torch.manual_seed(0)
    odd = nn.Parameter(make())
    plain = nn.Parameter(torch.randn(5))
    optimizer = AdamW([odd, plain], lr=0.01, amsgrad=amsgrad)
    hyper = Hyper(0.01, weight_decay=0.01, amsgrad=amsgrad, decoupled_weight_decay=True)

    def numpy(tensor: torch.Tensor) -> np.ndarray:
        real = (
            torch.view_as_real(tensor.detach().clone().resolve_conj())
            if tensor.is_complex()
            else tensor
        )
        return real.detach().float().clone().numpy()

    half = odd.dtype in (torch.bfloat16, torch.float16)
    expected = numpy(odd)
    state = reference.initial_state(expected, hyper)
    for _ in range(5):
        for p in (odd, plain):
            p.grad = torch.randn_like(p)
        optimizer.step()
        expected, state = reference.step(expected, numpy(odd.grad), state, hyper)
    # Of 16 bits, they are the rounding of float32 weights that are trained.
    expected = torch.from_numpy(expected).to(odd.dtype).float().numpy() if half else expected
    np.testing.assert_array_equal(numpy(odd), expected)
    assert optimizer.state[odd]["step"] == 5
    if not odd.is_complex():
        assert optimizer.state[odd]["exp_avg"].dtype == torch.float32
        assert optimizer.state[odd]["exp_avg"].numpy().tobytes() == state["exp_avg"].tobytes()


def test_columns_of_a_matrix_share_no_memory() -> None:
    matrix = torch.ones(300, 4)
    params = [nn.Parameter(column) for column in (matrix[:, :1], matrix[:, 1:3], matrix[:, 3:])]
    optimizer = Adam(params, lr=0.5)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert (matrix == 0.5).all()
    params[1].data = matrix[:, 2:]
    with pytest.raises(ValueError, match=r"parameter 1 of .* and parameter 2 of .* share memory"):
        optimizer.step()
    assert (matrix == 0.5).all()


def test_types_that_share_a_group_keep_their_precision() -> None:
    def made() -> list[nn.Parameter]:
        torch.manual_seed(0)
        types = (torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.complex128)
        return [nn.Parameter(torch.randn(9, dtype=dtype)) for dtype in types]

    for order in (1, -1):
        here, there = made()[::order], made()[::order]
        together, apart = AdamW(here, lr=0.1), [AdamW([q], lr=0.1) for q in there]
        for _ in range(3):
            for p, q in zip(here, there, strict=True):
                q.grad = p.grad = torch.randn_like(p)
            for optimizer in (together, *apart):
                optimizer.step()
        assert identical(here, there)


def test_row_21_complex_parameters_are_pairs() -> None:
    """Each of its parts has a second moment of its own, as torch.optim has it."""
    torch.manual_seed(0)
    one = nn.Parameter(torch.randn(6, dtype=torch.complex128))
    other = nn.Parameter(one.detach().clone())
    ours, theirs = AdamW([one], lr=0.1), torch.optim.AdamW([other], lr=0.1, foreach=False)
    for _ in range(5):
        one.grad = torch.randn(6, dtype=torch.complex128)
        other.grad = one.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(one, other, rtol=1e-13, atol=0)


def test_gradients_that_lie_elsewhere_each_step() -> None:
    one, other = nn.Parameter(torch.ones(8, 9)), nn.Parameter(torch.ones(8, 9))
    ours = Adam([one], lr=0.1)
    hyper = Hyper(0.1)
    expected = one.detach().numpy().copy()
    state = reference.initial_state(expected, hyper)
    kept = []
    forms: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda g: g,
        lambda g: g.t().contiguous().t(),
        lambda g: torch.stack([g, g], -1)[..., 0],
        lambda g: g[:1].expand(8, 9),
        lambda g: torch.complex(g, -g).conj().imag,  # with torch's lazy negation
        lambda g: torch.cat([torch.zeros(1), g.flatten()])[1:].view(8, 9),
    ]
    for form in forms * 2:
        grad = form(torch.randn(8, 9))
        kept.append(grad)
        one.grad = grad
        ours.step()
        expected, state = reference.step(expected, grad.resolve_neg().numpy(), state, hyper)
        assert one.detach().numpy().tobytes() == expected.tobytes()
    assert other.grad is None


def test_a_lazily_negated_gradient_from_autograd() -> None:
    p = nn.Parameter(torch.tensor([1.0]))
    torch.complex(torch.zeros(1), p).backward(torch.tensor([1 - 2j]).conj().conj().conj())
    negated = p.grad.is_neg()
    before = p.item()
    Adam([p], lr=0.5).step()
    assert p.item() == before - 0.5 * np.sign(p.grad.item())
    assert negated in (True, False)


def test_a_lazily_conjugated_gradient() -> None:
    p, q = (nn.Parameter(torch.ones(3, dtype=torch.complex64)) for _ in range(2))
    one, other = Adam([p], lr=0.1), Adam([q], lr=0.1)
    for _ in range(2):
        p.grad = torch.randn(3, dtype=torch.complex64).conj()
        q.grad = p.grad.resolve_conj()
        assert p.grad.is_conj()
        one.step()
        other.step()
        assert torch.equal(p, q)


def test_a_gradient_that_is_the_parameter() -> None:
    for shift in (0, 5, -5):  # or of which a part is one of the parameter
        memory = torch.randn(1010)
        p = nn.Parameter(memory[5:1005])
        q = nn.Parameter(p.detach().clone())
        one, other = Adam([p], lr=0.1), Adam([q], lr=0.1)
        for _ in range(3):
            p.grad = memory[5 + shift : 1005 + shift]
            q.grad = p.grad.clone()
            one.step()
            other.step()
            assert torch.equal(p, q)


def test_tensors_that_move_between_steps() -> None:
    """Data, moments and whole states may be replaced; the step follows them."""
    here, there = params(), params()
    one, other = Adam(here, lr=0.1), Adam(there, lr=0.1)

    def moments() -> None:
        for state in one.state.values():
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = state[key].clone()

    def moments_in_place() -> None:
        for state in one.state.values():
            state["exp_avg"].data = state["exp_avg"].clone()

    def data() -> None:
        for p in here:
            p.data = p.data.clone()

    def states() -> None:
        for p in here:
            one.state[p] = dict(one.state[p])

    def dtypes() -> None:
        for state in one.state.values():
            state["exp_avg"] = state["exp_avg"].double()
            state["step"] = torch.tensor(float(state["step"]))

    for t, move in enumerate((moments, data, states, moments_in_place, dtypes)):
        train(one, t, t + 1)
        train(other, t, t + 1)
        move()
    train(one, 9, 10)
    train(other, 9, 10)
    assert identical(flat(one), flat(other))


def test_a_model_that_changes_its_type() -> None:
    model = nn.Linear(3, 3)
    optimizer = Adam(model.parameters(), lr=0.1)
    train(optimizer, 0, 2)
    model.double()
    optimizer.zero_grad()
    train(optimizer, 2, 4)
    assert all(s["exp_avg"].dtype == torch.float64 for s in optimizer.state.values())
    assert all(s["step"] == 4 for s in optimizer.state.values())


def test_differentiable() -> None:
    start = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    p = start.clone()
    optimizer = Adam([p], lr=0.1, differentiable=True)
    p.grad = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    grad = p.grad
    optimizer.step()
    p.sum().backward()
    assert start.grad.tolist() == [1, 1]
    # After one step the update is lr * g / (|g| + eps): it hardly depends on the gradient's size.
    assert grad.grad.abs().max() < 1e-6


@rules
def test_lr_and_betas_as_tensors(ours: type[Adam], theirs: type[torch.optim.Adam]) -> None:
    for lr in (torch.tensor(0.1), torch.tensor([0.1])):
        optimizer = ours(params(), lr=lr)
        train(optimizer, 0, 2)
        lr.fill_(0.0)  # the optimizer's lr is this tensor
        before = flat(optimizer)[0]
        train(optimizer, 2, 3)
        assert torch.equal(before, flat(optimizer)[0])
    betas = (torch.tensor(0.5), torch.tensor(0.75))
    optimizer, plain = ours(params(), betas=betas), ours(params(), betas=(0.5, 0.75))
    train(optimizer, 0, 2)
    train(plain, 0, 2)
    assert identical(flat(optimizer), flat(plain))


def test_numpy_numbers() -> None:
    p, q = (nn.Parameter(torch.ones(2)) for _ in range(2))
    given = {"lr": np.array(0.5), "betas": (np.float64(0.5), np.array([0.75]))}
    optimizers = Adam([p], **given), Adam([q], lr=0.5, betas=(0.5, 0.75))
    for one in (p, q):
        one.grad = torch.arange(2.0)
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(p, q)


def test_the_table_is_kept_while_nothing_moves() -> None:
    optimizer = AdamW(params())
    train(optimizer, 0, 1)
    plan = optimizer._plan
    train(optimizer, 1, 4)
    assert optimizer._plan is plan
    assert adamas.torch.Adam is Adam


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_a_compiled_step_has_the_bits_of_a_plain_one() -> None:
    ends = []
    for compiled in (False, True):
        here = params()
        optimizer = AdamW(here, lr=0.1)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for number in range(3):
            for p in here:
                p.grad = torch.full_like(p, number - 0.5)
            step()
        ends.append([p.detach() for p in here])
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
@pytest.mark.parametrize("whole", [True, False], ids=["traced", "left to Python"])
def test_what_a_compiled_loop_steps_is_not_compiled(
    whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = AdamW([p], lr=0.1)
    compilers, traced, take = [], [], optimizer._take

    def watched(*arguments: object) -> object:
        compilers.append(torch._C._dynamo.eval_frame.get_eval_frame_callback())
        traced.append(torch.compiler.is_dynamo_compiling())
        return take(*arguments)

    def train() -> None:
        p.grad = torch.ones(3)
        optimizer.step()

    def train_in_try() -> None:
        try:  # a break in it leaves all of the function to Python
            torch._dynamo.graph_break()
            train()
        finally:
            p.grad = None

    monkeypatch.setattr(optimizer, "_take", watched)
    compiled = torch.compile(train if whole else train_in_try, backend="eager")
    for _ in range(3):
        compiled()
    assert compilers == [None] * 3
    assert not any(traced)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dense", [True, False])
def test_denormals_in_a_thread_that_flushes_them(dtype: torch.dtype, dense: bool) -> None:
    ends, tiny = [], 1e-310
    for flush in (False, True):
        p = nn.Parameter(torch.ones(6, dtype=dtype)[:: 1 if dense else 2])
        optimizer = Adam([p], lr=0.5, eps=0)
        p.grad = torch.tensor([0.0, 1e-42, 1.0] * (2 if dense else 1), dtype=dtype)
        torch.set_flush_denormal(flush)
        try:
            for _ in range(2):
                optimizer.step()
            assert (tiny * 0.5 == 0) == flush  # the thread is as it was
        finally:
            torch.set_flush_denormal(False)
        ends.append((p.detach(), optimizer.state[p]["exp_avg"]))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert ends[0][0].isfinite().all()


@pytest.mark.parametrize("value", [1.0, math.nan], ids=["stepped", "skipped"])
def test_copies_of_gradients_do_not_outlive_a_step(value: float) -> None:
    strange, plain = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(6)[::2])
    optimizer = Adam([strange, plain], skip_nonfinite=True)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    before = tensors()
    strange.grad = torch.full((4, 3), value).t()
    plain.grad = torch.full((3,), value)
    optimizer.step()
    strange.grad = plain.grad = None
    assert tensors() - before == 4  # the moments


def test_a_gradient_in_the_way_after_a_step_that_was_refused() -> None:
    """The step after it looks again at what the refused one had begun to look at."""
    ends = []
    for refused in (False, True):
        memory = torch.linspace(1, 9, 100_001)
        p, other = nn.Parameter(memory[1:]), nn.Parameter(torch.ones(2, 2))
        optimizer = Adam([p, other], lr=0.1)
        p.grad, other.grad = torch.ones(100_000), torch.ones(2, 2)
        optimizer.step()
        p.grad = memory[:-1]
        if refused:
            other.grad.resize_(4)
            with pytest.raises(ValueError, match="must have its shape"):
                optimizer.step()
            other.grad.resize_(2, 2)
        optimizer.step()
        ends.append(p.detach())
    assert torch.equal(*ends)


def test_a_lazy_module() -> None:
    """Its parameters have no shape yet."""
    model = nn.Sequential(nn.LazyLinear(4))
    optimizer = AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert optimizer.state[model[0].weight]["exp_avg"].shape == (4, 3)


def test_a_checkpoint_has_its_steps_wherever_tensors_are_made() -> None:
    param = nn.Parameter(torch.ones(2))
    optimizer = AdamW([param])
    param.grad = torch.ones(2)
    optimizer.step()
    with torch.device("meta"):
        saved = optimizer.state_dict()
    assert saved["state"][0]["step"].item() == 1


def test_an_optimizer_that_its_hook_holds_at_the_end_is_no_leak() -> None:
    """As torch's tutorial has one for each parameter; autograd's cycles nobody collects."""
    code = """
import torch
from adamas.torch import Adam
param = torch.nn.Parameter(torch.ones(3))
optimizer = Adam([param])
param.register_post_accumulate_grad_hook(lambda p: optimizer.step())
param.sum().backward()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
