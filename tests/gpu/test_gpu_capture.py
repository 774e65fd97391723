"""Steps that a graph repeats, beside the same steps on the CPU.

Without a GPU, the graph is a list of what was launched and sent.
"""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest
import torch
from devices import assert_equal, core, numbers, params_of, record, weights
from graphs import capture, tensors_on_device
from torch import Tensor, nn

from adamas.torch import SGD, AdamW, RMSprop, conditions, plan, step_in_backward

pytestmark = pytest.mark.gpu

SHAPES = [(70,), (0,), (3, 5), ()]
WARM = 3 if torch.cuda.is_available() else 2  # steps before a capture


class Twins:
    """An optimizer on the device whose steps are captured, and the same on the CPU.

    Args:
        device: the device.
        shapes: of the parameters.
        dtypes: and theirs.
        rule: the optimizers' class.
        **options: the optimizer's.
    """

    def __init__(
        self,
        device: torch.device,
        dtypes: Any = torch.float32,
        rule: type[Any] = AdamW,
        **options: Any,
    ) -> None:
        self.device, self.seed = device, 0
        self.here = rule(weights(SHAPES, torch.device("cpu"), dtypes), **options)
        for key, value in options.items():
            options[key] = value.to(device) if isinstance(value, Tensor) else value
        self.there = rule(weights(SHAPES, device, dtypes), **options, capturable=True)

    def give(self, *, moved: bool, scale: float = 1.0) -> None:
        """Both the same gradients, on the device in the same memory or elsewhere."""
        self.seed += 1
        pairs = zip(params_of(self.here), params_of(self.there), strict=True)
        for i, (p, q) in enumerate(pairs):
            p.grad = (numbers(p.shape, 10 * self.seed + i) * scale).to(p.dtype)
            if moved or q.grad is None:
                q.grad = p.grad.clone().to(self.device)
            else:
                q.grad.copy_(p.grad)

    def follow(self) -> None:
        """Steps on the CPU, and compares."""
        with core():
            self.here.step()
        assert_equal(record(self.there), record(self.here), f"at {self.seed}")

    def eager(self, *, moved: bool) -> None:
        """A step that is not captured."""
        self.give(moved=moved)
        self.there.step()
        self.follow()


OPTIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "both": {"skip_nonfinite": True, "max_grad_norm": 1e-2, "dtypes": torch.bfloat16},
    "amsgrad": {"amsgrad": True, "maximize": True, "dtypes": torch.float64},
    "int8": {"moments": "int8", "dtypes": torch.bfloat16, "master_bits": 24},
    "SGD": {"rule": SGD, "momentum": 0.9, "nesterov": True, "max_grad_norm": 1e-2},
    "RMSprop": {"rule": RMSprop, "momentum": 0.5, "skip_nonfinite": True},
}


RATES = [torch.tensor(0.1), torch.tensor([0.1], dtype=torch.float64)]


@pytest.mark.parametrize(
    ("name", "lr"),
    [
        *((name, 0.1) for name in OPTIONS),
        *(("float32", RATES[0]), ("both", RATES[1]), ("SGD", RATES[0])),
    ],
)
def test_row_44_a_replay_is_an_eager_step(lr: Any, name: str, device: torch.device) -> None:
    """REGRESSIONS 44: replayed with other gradients, and another lr where a tensor holds it."""
    with tensors_on_device(device):
        twins = Twins(device, lr=lr, **OPTIONS[name])
        for _ in range(WARM):
            twins.eager(moved=True)
        twins.give(moved=True)  # so that the capture has to place them
        replay = capture(twins.there.step, device)
        for t in range(10 if device.type == "cuda" else 2):
            bad = t == 1 and "skip_nonfinite" in OPTIONS[name]
            twins.give(moved=False, scale=math.nan if bad else 1.0)
            if isinstance(lr, Tensor):
                for optimizer in (twins.here, twins.there):
                    optimizer.param_groups[0]["lr"].fill_(0.1 / (t + 2))
            replay()
            twins.follow()


def test_tensors_for_betas_on_the_device(device: torch.device) -> None:
    betas = torch.tensor(0.8), torch.tensor(0.9, dtype=torch.float64)
    with tensors_on_device(device):
        twins = Twins(device, lr=0.1, betas=betas)
        twins.there.param_groups[0]["betas"] = tuple(b.clone().to(device) for b in betas)
        for t in range(3):
            for optimizer in (twins.here, twins.there):
                optimizer.param_groups[0]["betas"][0].fill_(0.1 * t)
                optimizer.param_groups[0]["betas"][1].fill_(0.99)
            twins.eager(moved=False)


@pytest.mark.parametrize(
    "moved",
    [True, False],
    ids=["gradients of its own", "gradients where they were"],
)
def test_row_44_eager_steps_between_replays(moved: bool, device: torch.device) -> None:
    """REGRESSIONS 44: the graph goes on with its gradients and lr, eager steps with theirs."""
    twins = Twins(device, lr=0.1)
    for _ in range(WARM):
        twins.eager(moved=False)
    twins.give(moved=moved)
    replay = capture(twins.there.step, device)
    own = [q.grad for q in params_of(twins.there)]
    others = [torch.zeros_like(q) for q in params_of(twins.there)]

    def use(grads: list[Any], lr: float) -> None:
        for q, grad in zip(params_of(twins.there), grads, strict=True):
            q.grad = grad
        for optimizer in (twins.here, twins.there):
            optimizer.param_groups[0]["lr"] = lr

    for _ in range(2):
        replay()
        twins.follow()
        use(others, 0.03)
        twins.eager(moved=False)
        use(own, 0.1)
        twins.give(moved=False)


@pytest.mark.parametrize("option", ["lr", "max_grad_norm"])
def test_a_replay_keeps_the_numbers_that_it_was_captured_with(
    option: str, device: torch.device
) -> None:
    """As torch.optim's: a float is what it was, whatever an eager step has had since."""
    twins = Twins(device, lr=0.1, max_grad_norm=1e-2)

    def set_both(value: float) -> None:
        for optimizer in (twins.here, twins.there):
            if option == "lr":
                optimizer.param_groups[0]["lr"] = value
            else:
                optimizer.max_grad_norm = value

    for _ in range(WARM):
        twins.eager(moved=False)
    twins.give(moved=False)
    replay = capture(twins.there.step, device)
    replay()
    twins.follow()
    set_both(0.03)
    twins.eager(moved=False)
    set_both(0.1 if option == "lr" else 1e-2)
    twins.give(moved=False)
    replay()
    twins.follow()


def test_an_eager_step_between_replays_that_needs_another_plan(device: torch.device) -> None:
    """The graph keeps its memory, and both count the same steps."""
    twins = Twins(device, lr=0.1)
    for _ in range(WARM):
        twins.eager(moved=False)
    twins.give(moved=False)
    replay = capture(twins.there.step, device)
    assert twins.there._plan
    assert twins.there._plan.alone
    assert twins.there._outcome
    launches = twins.there._plan.alone._launches
    for _ in range(2):
        replay()
        twins.follow()
        for max_norm in (1e-2, None):
            for optimizer in (twins.here, twins.there):
                optimizer.max_grad_norm = max_norm
            if max_norm:
                twins.eager(moved=False)
        twins.here.last_grad_norm = twins.there.last_grad_norm
        assert any(used is launches for used in twins.there._outcome.graphs.used)
        twins.give(moved=False)


def test_an_eager_step_between_replays_with_a_gradient_that_is_not_aligned(
    device: torch.device,
) -> None:
    """Then chunks are in another order than those that the graph was captured with."""
    dtypes = [torch.float32, torch.float32, torch.float32, torch.float16]
    twins = Twins(device, lr=0.1, dtypes=dtypes)
    for _ in range(WARM):
        twins.eager(moved=False)
    twins.give(moved=True)
    replay = capture(twins.there.step, device)
    replay()
    twins.follow()
    last = params_of(twins.there)[3]
    own = last.grad
    last.grad = torch.zeros(9, dtype=torch.float16, device=device)[1]
    twins.eager(moved=False)
    last.grad = own
    twins.give(moved=False)
    replay()
    twins.follow()


def test_a_capture_that_has_to_build_says_so(device: torch.device) -> None:
    """And leaves everything as it is."""
    params = weights(SHAPES, device)
    optimizer = AdamW(params, capturable=True)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = record(optimizer)
    many = weights([(3,)] * 20, device)
    optimizer.add_param_group({"params": many})
    for p in many:
        p.grad = torch.ones_like(p)
    assert "make three steps" in refusal(optimizer, device)
    assert not any(p in optimizer.state for p in many)
    del optimizer.param_groups[1]
    assert_equal(record(optimizer), before, "afterwards")


def refusal(optimizer: AdamW, device: torch.device) -> str:
    """What an optimizer says of its step where that cannot be captured."""
    told = []

    def step() -> None:
        try:
            optimizer.step()
        except RuntimeError as error:  # before the end of the capture, which has one of its own
            told.append(str(error))
            raise

    with pytest.raises(RuntimeError):
        capture(step, device)
    return told[0]


@pytest.mark.parametrize("change", ["maximize", "measure"])
def test_a_capture_unlike_the_steps_before_is_refused(change: str, device: torch.device) -> None:
    """What it would have to compile, or to read; and leaves everything as it is."""
    params = weights(SHAPES, device)
    optimizer = AdamW(params, capturable=True)
    for p in params:
        p.grad = torch.ones_like(p)
    for _ in range(WARM):
        optimizer.step()
    before = record(optimizer)
    if change == "measure":
        optimizer.measure_next_step()
        assert "cannot be measured" in refusal(optimizer, device)
        assert_equal(record(optimizer), before, "afterwards")
        optimizer.step()  # which is measured instead
        assert optimizer.statistics().parameters[0].update_norm > 0
    else:
        optimizer.param_groups[0]["maximize"] = True
        assert "make three steps" in refusal(optimizer, device)
        assert_equal(record(optimizer), before, "afterwards")
        for _ in range(WARM):
            optimizer.step()
        capture(optimizer.step, device)


@pytest.mark.parametrize("change", ["load", "number"])
def test_a_graph_keeps_the_tensors_that_it_reads(change: str, device: torch.device) -> None:
    """Of options, too, that have become others since."""
    params = weights(SHAPES, device)
    lr = torch.tensor(0.1, device=device)
    optimizer = AdamW([{"params": params, "lr": lr}], capturable=True)
    still_there = weakref.ref(lr)
    del lr
    for p in params:
        p.grad = torch.ones_like(p)
    with tensors_on_device(device):
        for _ in range(WARM):
            optimizer.step()
        replay = capture(optimizer.step, device)
        if change == "load":
            optimizer.load_state_dict(optimizer.state_dict())
        else:
            optimizer.param_groups[0]["lr"] = 0.05
            optimizer.step()
        gc.collect()
        assert still_there() is not None
        replay()


def test_a_graph_of_steps_in_backward_counts_where_they_do(device: torch.device) -> None:
    """Each parameter's by itself, so that nobody is told of others' counts."""
    params = weights(SHAPES, device)
    optimizer = AdamW(params, capturable=True)
    step_in_backward(optimizer)

    def train() -> None:
        torch.stack([p.square().sum() for p in params]).sum().backward()
        optimizer.step()

    for _ in range(WARM):
        train()
    if device.type == "cpu":  # on a GPU, only after backward on a stream other than the default
        capture(train, device)
    for _ in range(2):
        train()
    assert {int(optimizer.state[p]["step"]) for p in params} == {WARM + 2}


def test_a_graph_that_counts_apart_is_told_of(device: torch.device) -> None:
    """A parameter gets its first gradient between replays."""
    *params, late = weights([*SHAPES, (5,)], device)
    optimizer = AdamW([*params, late], capturable=True)
    for p in params:
        p.grad = torch.ones_like(p)
    for _ in range(WARM):
        optimizer.step()
    capture(optimizer.step, device)
    optimizer.step()  # which counts where the graph does
    late.grad = torch.ones_like(late)
    with pytest.warns(UserWarning, match="Capture the step again"):
        optimizer.step()
    optimizer.step()  # told once
    capture(optimizer.step, device)
    optimizer.step()  # as it was told


@pytest.mark.parametrize(("name", "value"), [("skipped_steps", 0), ("last_grad_norm", None)])
def test_a_capture_that_would_repeat_a_reset_is_refused(
    name: str, value: Any, device: torch.device
) -> None:
    """What was set since the last step is not on the device yet."""
    twins = Twins(device, lr=0.1, skip_nonfinite=True)
    for _ in range(WARM):
        twins.eager(moved=False)
    setattr(twins.there, name, value)
    told = []

    def step() -> None:
        try:
            twins.there.step()
        except RuntimeError as error:
            told.append(str(error))
            raise

    with pytest.raises(RuntimeError):
        capture(step, device)
    assert "make three steps" in told[0]


def test_a_replay_tells_its_norm_where_only_lr_is_on_the_device(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ``capturable``, that the device's lr stands for; a skipped one that before it."""
    if device.type == "cpu":
        monkeypatch.setattr(conditions, "on_device", lambda group: isinstance(group["lr"], Tensor))
    with tensors_on_device(device):
        twins = Twins(device, lr=torch.tensor(0.1), skip_nonfinite=True)
        twins.there.param_groups[0]["capturable"] = False
        for _ in range(WARM):
            twins.eager(moved=False)
        twins.give(moved=False)
        replay = capture(twins.there.step, device)
        for scale in (1.0, math.nan):
            twins.give(moved=False, scale=scale)
            replay()
            twins.follow()


@pytest.mark.parametrize("capturable", [False, True])
def test_a_capture_of_what_the_host_counts_is_refused(
    capturable: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a view with gaps plain operations would be repeated, with one step's bias corrections."""
    whole = nn.Parameter(numbers((5,), 0).to(device))
    gaps = nn.Parameter(numbers((5, 2), 1).to(device)[:, 0])
    optimizer = AdamW([whole, gaps], lr=0.1, capturable=capturable)
    for p in (whole, gaps):
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = record(optimizer)
    with monkeypatch.context() as patch:
        patch.setattr(plan, "is_capturing", lambda device: True)
        with pytest.raises(RuntimeError, match="parameter 1 of group 0 cannot be captured"):
            optimizer.step()
    assert_equal(record(optimizer), before, "afterwards")
