"""Random trainers beside torch.optim: any parameters, options and order of events.

``ADAMAS_EXAMPLES=5000`` tries that many random ones, others each time; without it, a hundred that
are always the same.
"""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn

from adamas.torch import Adam, AdamW
from adamas.torch.recode import trained

EXAMPLES = int(os.environ.get("ADAMAS_EXAMPLES", "0"))
EVENTS = 20  # of an example at most

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() else x,
    "channels_last": lambda x: (
        x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()
    ),
    "a view behind others": lambda x: torch.cat([x.new_zeros(3), x.flatten()])[3:].view(x.shape),
    "a view with gaps": lambda x: torch.stack([x, x], -1)[..., 0],
}
# Only a gradient can be these: elements of a parameter must not share memory.
GRAD_LAYOUTS = LAYOUTS | {
    "expanded": lambda x: x.flatten()[:1].sum().expand(x.shape),
    "negated lazily": lambda x: (
        torch.complex(x, -x).conj().imag if x.dtype in (torch.float32, torch.float64) else x
    ),
    "conjugated lazily": lambda x: x.conj() if x.is_complex() else x,
}
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.bfloat16]
SHAPES = st.sampled_from(
    [(), (0,), (1,), (3,), (17,), (4, 5), (5, 1), (0, 3), (1, 1, 1), (2, 3, 4), (2, 3, 2, 2)]
)
# Second moments fade slower than first ones, or hardly faster: else a step grows without bound
# once gradients get small, and its rounding errors with it.
OPTIONS = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([0.0, 1e-4, 0.01, 0.1]),
        "betas": st.sampled_from([(0.9, 0.999), (0.5, 0.75), (0.0, 0.9), (0.8, 0.6)]),
        "eps": st.sampled_from([1e-8, 1e-3, 1.0]),
        "weight_decay": st.sampled_from([0.0, 0.125, 0.5]),
        "amsgrad": st.booleans(),
        "maximize": st.booleans(),
    }
)
PARAMS = st.lists(
    st.tuples(SHAPES, st.sampled_from(DTYPES), st.sampled_from(list(LAYOUTS))),
    min_size=1,
    max_size=4,
)
SEEDS = st.integers(0, 2**31)


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int, scale: float = 1.0) -> Tensor:
    """Sixty-fourths, which are exact in every dtype.

    With decays that are powers of two, a first gradient and the decay that is added to it are then
    exact, too: a first step depends on the sign of their sum, which must not be that of an error.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randint(-127, 128, shape, generator=generator) / 64 * scale for _ in range(2)]
    return torch.complex(*parts) if dtype.is_complex else parts[0].to(dtype)


class Beside(RuleBasedStateMachine):
    """An optimizer of adamas and one of torch.optim that live through the same.

    Torch keeps the moments of 16-bit parameters in 16 bits, adamas in float32: beside a bfloat16
    parameter stands a float32 one, as its master weight.
    """

    @initialize(rule=st.sampled_from([Adam, AdamW]), params=PARAMS, options=OPTIONS, seed=SEEDS)
    def begin(self, rule: type[Adam], params: Any, options: dict[str, Any], seed: int) -> None:
        self.rule = rule
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        self.allowed: list[float] = []  # how far each pair's weights may be apart
        self.largest: dict[tuple[int, str], float] = {}  # of each pair's moments, so far
        ours, theirs = self.new_params(params, seed)
        self.ours, self.theirs = rule(ours, **options), self.torchs(theirs, **options)

    def torchs(self, params: Any, **options: Any) -> torch.optim.Optimizer:
        """The loop over parameters: the fused one mistakes a gradient's layout."""
        rule = torch.optim.AdamW if self.rule is AdamW else torch.optim.Adam
        return rule(params, foreach=False, **options)

    def new_params(self, params: Any, seed: int) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        new = []
        for shape, dtype, layout in params:
            value = values(shape, dtype, seed + len(self.pairs) + len(new))
            wide = value.float() if dtype == torch.bfloat16 else value.clone()
            new.append((nn.Parameter(LAYOUTS[layout](value)), nn.Parameter(wide)))
        self.pairs += new
        self.allowed += [0.0] * len(new)
        return [one for one, _ in new], [other for _, other in new]

    @rule(
        seed=SEEDS,
        # Powers of two, as gradients are exact then.
        scale=st.sampled_from([0.0, 2.0**-20, 2.0**-4, 1.0, 2.0**10]),
        present=st.lists(st.booleans() | st.just(True), min_size=1, max_size=5),
        layouts=st.lists(st.sampled_from(list(GRAD_LAYOUTS)), min_size=1, max_size=5),
    )
    def gradients(self, seed: int, scale: float, present: list[bool], layouts: list[str]) -> None:
        for i, (one, other) in enumerate(self.pairs):
            one.grad = other.grad = None
            if present[i % len(present)]:
                value = values(tuple(one.shape), one.dtype, seed + i, scale)
                one.grad = GRAD_LAYOUTS[layouts[i % len(layouts)]](value)
                other.grad = one.grad.resolve_conj().resolve_neg().clone().to(other.dtype)

    @rule(times=st.integers(1, 4))
    def step(self, times: int) -> None:
        kept = [None if one.grad is None else one.grad.clone() for one, _ in self.pairs]
        for _ in range(times):
            self.ours.step()
            self.theirs.step()
            self.count_errors()
            self.compare()
        for (one, _), grad in zip(self.pairs, kept, strict=True):
            assert (one.grad is None) if grad is None else torch.equal(one.grad, grad)

    @rule(none=st.booleans())
    def zero_grad(self, none: bool) -> None:
        for one, other in self.pairs:  # a view of others cannot be filled
            if one.grad is not None and not none:
                one.grad, other.grad = one.grad.clone(), other.grad.clone()
        self.ours.zero_grad(none)
        self.theirs.zero_grad(none)

    @rule(which=st.integers(0, 5), lr=st.sampled_from([0.0, 1e-3, 0.05]), tensor=st.booleans())
    def change_lr(self, which: int, lr: float, tensor: bool) -> None:
        for optimizer in (self.ours, self.theirs):
            group = optimizer.param_groups[which % len(optimizer.param_groups)]
            group["lr"] = torch.tensor(lr, dtype=torch.float64) if tensor else lr

    @rule(
        which=st.integers(0, 5),
        change=st.sampled_from(
            [{"betas": (0.7, 0.9)}, {"weight_decay": 0.25}, {"eps": 1e-5}, {"maximize": True}]
        ),
    )
    def change_options(self, which: int, change: dict[str, Any]) -> None:
        for optimizer in (self.ours, self.theirs):
            optimizer.param_groups[which % len(optimizer.param_groups)].update(change)

    @precondition(lambda self: len(self.pairs) < 8)
    @rule(params=PARAMS, options=OPTIONS, seed=SEEDS)
    def add_group(self, params: Any, options: dict[str, Any], seed: int) -> None:
        ours, theirs = self.new_params(params, seed)
        self.ours.add_param_group({"params": ours, **options})
        self.theirs.add_param_group({"params": theirs, **options})

    @rule(file=st.booleans())
    def ours_to_ours(self, file: bool) -> None:
        saved = self.ours.state_dict()
        self.ours = self.fresh(self.rule, 0)
        self.ours.load_state_dict(through_file(saved) if file else saved)

    @rule(file=st.booleans())
    def ours_to_torchs(self, file: bool) -> None:
        """Torch goes on from where adamas is."""
        saved = self.ours.state_dict()
        self.theirs = self.fresh(self.torchs, 1)
        self.theirs.load_state_dict(through_file(saved) if file else copy.deepcopy(saved))
        for group in self.theirs.param_groups:
            group["foreach"] = False
        with torch.no_grad():
            for i, (one, other) in enumerate(self.pairs):
                other.copy_(trained(one, self.ours.state.get(one, {})))
                self.allowed[i] = 0.0

    @rule(file=st.booleans())
    def torchs_to_ours(self, file: bool) -> None:
        """Adamas goes on from where torch is."""
        saved = self.theirs.state_dict()
        self.ours = self.fresh(self.rule, 0)
        self.ours.load_state_dict(through_file(saved) if file else saved)
        with torch.no_grad():
            for i, (one, other) in enumerate(self.pairs):
                one.copy_(other)
                other.copy_(one)
                self.allowed[i] = 0.0

    @rule()
    def copied(self) -> None:
        """The pairs are of the copies then, as a pickled or copied trainer's."""
        grads = [one.grad for one, _ in self.pairs]
        copied = copy.deepcopy(self.ours)
        params = [p for group in copied.param_groups for p in group["params"]]
        self.ours = copied
        self.pairs = [(p, other) for p, (_, other) in zip(params, self.pairs, strict=True)]
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad

    def fresh(self, rule: Any, side: int) -> Any:
        """Another optimizer of the same parameters, with options that a load replaces."""
        sizes = [len(group["params"]) for group in self.ours.param_groups]
        params = iter([pair[side] for pair in self.pairs])
        groups = [{"params": [next(params) for _ in range(size)]} for size in sizes]
        return rule(groups, lr=3.0, betas=(0.1, 0.2), weight_decay=7.0)

    def count_errors(self) -> None:
        """Adds to what is allowed for each parameter the rounding errors of a step of both.

        Each rounds the weight, torch twice where decay is apart; and each has a relative error of
        some units in the update, which is at most lr times a few, but where a moment that cancels
        is divided by a smaller root, by up to some hundreds.
        """
        groups = [(group, p) for group in self.ours.param_groups for p in group["params"]]
        for i, (group, _) in enumerate(groups):
            other = self.pairs[i][1]
            if other.grad is not None and other.numel():
                eps = torch.finfo(other.dtype).eps
                largest = float(other.detach().abs().max())
                self.allowed[i] += eps * (2 * largest + 300 * float(group["lr"]))

    def compare(self) -> None:
        for i, (one, other) in enumerate(self.pairs):
            mine, torchs = one.detach(), other.detach()
            if one.dtype == torch.bfloat16:  # what is rounded lies as what it was rounded from
                low, high = ((torchs + sign * self.allowed[i]).bfloat16() for sign in (-1, 1))
                assert bool(((low <= mine) & (mine <= high)).all()), i
            elif mine.numel():
                assert float((mine - torchs).abs().max()) <= self.allowed[i], i
            self.compare_states(i)

    def compare_states(self, i: int) -> None:
        one, other = self.pairs[i]
        mine, torchs = self.ours.state.get(one, {}), self.theirs.state.get(other, {})
        assert mine.keys() - {"remainder"} == torchs.keys() - {"remainder"}
        steps = int(torchs.get("step", 0))
        assert mine.get("step", 0) == steps
        for key in torchs.keys() - {"step", "remainder"}:
            a, b = mine[key], torchs[key]
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            if not b.numel():
                continue
            # Each step rounds a moment and what it adds, four times on each side, and the next one
            # does not enlarge that. Where a weight's decay is in the gradient, so is its error.
            largest = max(self.largest.get((i, key), 0.0), float(b.abs().max()))
            self.largest[i, key] = largest
            given = 0.5 * self.allowed[i] * (1.0 if key == "exp_avg" else 2 * largest**0.5)
            bound = 8 * (steps + 1) * torch.finfo(a.dtype).eps * largest + given
            assert float((a - b).abs().max()) <= bound, (i, key)

    @invariant()
    def same_groups(self) -> None:
        if not hasattr(self, "ours"):
            return
        for one, other in zip(self.ours.param_groups, self.theirs.param_groups, strict=True):
            mine, torchs = (
                {k: v for k, v in group.items() if k not in ("params", "foreach")}
                for group in (one, other)
            )
            assert mine == torchs


def through_file(saved: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


TestBeside = Beside.TestCase
TestBeside.settings = settings(
    max_examples=EXAMPLES or 100,
    stateful_step_count=EVENTS,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
