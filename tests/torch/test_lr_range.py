"""The learning rate range test: what it finds, and that it leaves no trace."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import adamas.torch
from adamas.torch import LRRange, lr_range_test, lrrange

Loss = Callable[[Any], Tensor]
BATCHES = 7


def setting(seed: int = 0) -> tuple[nn.Module, list[Any], Loss]:
    """A small network with every kind of tensor in it, batches, and its loss of one."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
    model.append(nn.Linear(16, 1))
    inputs = torch.randn(BATCHES, 16, 4)
    targets = inputs.sum(2, keepdim=True)
    batches = list(zip(inputs, targets, strict=True))
    return model, batches, lambda batch: (model(batch[0]) - batch[1]).square().mean()


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def tensor_lr(params: Any) -> torch.optim.Optimizer:
    return adamas.torch.AdamW(params, lr=torch.tensor(1e-3))


def compact(params: Any) -> torch.optim.Optimizer:
    return adamas.torch.AdamW(params, moments="int8", skip_nonfinite=True, max_grad_norm=1.0)


def bits(value: Any) -> Any:
    """A nested value whose equality is that of bits."""
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().reshape(-1)
        return str(value.dtype), tuple(value.shape), content.view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {name: bits(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return repr(value)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """All that must be as before: contents, and which objects hold them."""
    tensors = [*model.parameters(), *model.buffers()]
    numpy = np.random.get_state()
    return (
        bits(model.state_dict()),
        bits(optimizer.state_dict()),
        [(param is None, bits(param)) for param in (p.grad for p in model.parameters())],
        [id(p.grad) for p in model.parameters() if p.grad is not None],
        [id(tensor) for tensor in tensors],
        [id(v) for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor)],
        [(id(group), id(group["params"]), list(group)) for group in optimizer.param_groups],
        [module.training for module in model.modules()],
        sorted(vars(optimizer)),
        repr(getattr(optimizer, "last_grad_norm", None)),
        repr(getattr(optimizer, "skipped_steps", None)),
        bits(torch.get_rng_state()),
        random.getstate(),
        (numpy[1].tobytes(), numpy[2:]),
    )


def train(
    optimizer: torch.optim.Optimizer, batches: list[Any], loss_of_batch: Loss, steps: int
) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        loss_of_batch(batches[step % BATCHES]).backward()
        optimizer.step()


@pytest.mark.parametrize("trained", [0, 3])
@pytest.mark.parametrize(
    "make",
    [adamas.torch.AdamW, adamas.torch.Adam, tensor_lr, compact, torch.optim.AdamW, sgd],
    ids=lambda make: f"{make.__module__.split('.')[0]}-{make.__name__}",
)
@pytest.mark.parametrize("fails", [False, True], ids=["", "fails"])
def test_leaves_no_trace(make: Callable[[Any], Any], trained: int, fails: bool) -> None:
    """And training goes on as if there had been none."""
    model, batches, loss_of_batch = setting()
    optimizer = make(model.parameters())
    train(optimizer, batches, loss_of_batch, trained)
    model[1].eval()
    before = everything(model, optimizer)
    calls = 0

    def loss(batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        model.train()
        random.random(), np.random.rand()
        if fails and calls == 15:
            raise KeyboardInterrupt
        return loss_of_batch(batch)

    if fails:
        with pytest.raises(KeyboardInterrupt):
            lr_range_test(model, optimizer, loss, batches, steps=30, divergence=1e9)
    else:
        lr_range_test(model, optimizer, loss, batches, steps=30, divergence=1e9)
    assert calls > 10
    assert everything(model, optimizer) == before
    train(optimizer, batches, loss_of_batch, 3)

    model, batches, loss_of_batch = setting()
    other = make(model.parameters())
    train(other, batches, loss_of_batch, trained)
    model[1].eval()
    train(other, batches, loss_of_batch, 3)
    assert bits(optimizer.state_dict()) == bits(other.state_dict())


def test_finds_where_a_quadratic_diverges() -> None:
    """Gradient descent on x^2 shrinks x for lr below 1, and blows it up above."""
    x = nn.Parameter(torch.tensor([10.0]))
    model = nn.ParameterList([x])
    optimizer = torch.optim.SGD([x], lr=0.1)
    found = lr_range_test(
        model, optimizer, lambda _: x.square().sum(), [0], lr_min=1e-4, lr_max=100, steps=200
    )
    assert found.diverged is not None
    assert 1 < found.diverged < 20
    assert found.steepest is not None
    assert 0.003 < found.steepest < 0.5
    assert found.suggestion is not None
    assert found.suggestion <= 0.1 * found.diverged
    assert found.lrs[1] / found.lrs[0] == pytest.approx(1e6 ** (1 / 199))
    assert "suggested lr" in str(found)


def test_suggestion_trains() -> None:
    model, batches, loss_of_batch = setting()
    optimizer = adamas.torch.AdamW(model.parameters())
    found = lr_range_test(model, optimizer, loss_of_batch, batches)
    assert found.suggestion is not None
    assert 1e-3 < found.suggestion < 1
    first = loss_of_batch(batches[0]).item()
    optimizer.param_groups[0]["lr"] = found.suggestion
    train(optimizer, batches, loss_of_batch, 30)
    assert loss_of_batch(batches[0]).item() < first / 2


@pytest.mark.parametrize("seed", range(20))
def test_the_difference_between_batches_is_no_fall(seed: int) -> None:
    """A loss that falls from 2 to 1 around lr = 1e-3, of batches that differ by 0.3."""
    lrs = np.geomspace(1e-7, 1, 100)
    loss = 2 - 1 / (1 + (1e-3 / lrs) ** 1.5)
    noise = np.random.default_rng(seed).normal(0, 0.3, 100)
    fastest = lrrange._fastest_fall(loss + noise)
    assert fastest is not None
    assert 1e-5 < lrs[fastest] < 0.1


def test_groups_keep_their_ratio() -> None:
    one, two = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = adamas.torch.Adam([{"params": [one], "lr": 1e-3}, {"params": [two], "lr": 1e-4}])
    seen: list[list[float]] = []

    def loss(batch: Any) -> Tensor:
        seen.append([group["lr"] for group in optimizer.param_groups])
        return (one + two).square().sum()

    lr_range_test(nn.ParameterList([one, two]), optimizer, loss, [0], lr_max=1e-3, steps=10)
    assert seen[0] == pytest.approx([1e-7, 1e-8])
    assert seen[-1] == pytest.approx([1e-3, 1e-4])
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-4]


def test_nothing_is_suggested_where_nothing_falls() -> None:
    x = nn.Parameter(torch.ones(1))
    optimizer = adamas.torch.Adam([x])
    found = lr_range_test(nn.ParameterList([x]), optimizer, lambda _: (0 * x).sum() + 1, [0])
    assert (found.suggestion, found.diverged) == (None, None)
    assert str(found).startswith("no suggestion: the loss never fell")


def test_plot_is_one_file(tmp_path: Path) -> None:
    model, batches, loss_of_batch = setting()
    optimizer = adamas.torch.Adam(model.parameters())
    path = tmp_path / "lr.html"
    lr_range_test(model, optimizer, loss_of_batch, batches, steps=20, plot=path)
    page = path.read_text(encoding="utf-8")
    assert "color-scheme: light dark" in page
    assert not re.search(r'<(script|link)[^>]*(src|href)="', page)


def test_needs_no_plotly() -> None:
    code = "import sys, adamas.torch; print('plotly' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def once() -> Iterator[int]:
    yield from range(5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr_min": 0}, "lr_min must be above 0 and below lr_max, got lr_min=0"),
        ({"lr_min": 1.0, "lr_max": 0.1}, "below lr_max, got lr_min=1.0 and lr_max=0.1"),
        ({"lr_max": float("nan")}, "below lr_max"),
        ({"steps": 9}, "steps must be at least 10, got 9"),
        ({"divergence": 0}, "divergence must be above 0, got 0"),
        ({"batches": []}, "batches ended after 0"),
        ({"batches": once()}, "batches ended after 5 and cannot begin again"),
        ({"loss": lambda x: 1.0}, "must return a tensor of one element, got 1.0"),
        ({"loss": lambda x: x * torch.ones(3)}, "got a tensor of shape (3,); take its mean"),
        ({"loss": lambda x: x.sum() * float("nan")}, "the loss is nan before any step"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    x = nn.Parameter(torch.ones(1))
    model, optimizer = nn.ParameterList([x]), adamas.torch.Adam([x])
    loss = arguments.pop("loss", lambda x: x.sum())
    batches = arguments.pop("batches", [0])
    before = everything(model, optimizer)
    with pytest.raises(ValueError, match=re.escape(message)):
        lr_range_test(model, optimizer, lambda _: loss(x), batches, **arguments)
    assert everything(model, optimizer) == before


def test_result_is_plain() -> None:
    found = LRRange([1e-3, 1e-2], [1.0, 0.5], 1e-3, 1e-3, None)
    assert str(found).endswith("and did not diverge")
