"""Options that are looked at again only where they have become others."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import nn

from adamas.torch import SGD, Adam


def test_what_was_refused_once_is_refused_again() -> None:
    """Nothing of a step that raises, or of a question, makes the next one go by old formats."""
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = Adam([p])
    optimizer.step()
    optimizer.param_groups[0]["moments"] = "int5"
    for _ in range(2):
        with pytest.raises(ValueError, match="moments must be"):
            optimizer.step()
    assert optimizer.state[p]["step"] == 1
    optimizer.param_groups[0] |= {"moments": "float32", "amsgrad": True}
    optimizer.statistics()
    optimizer.step()
    assert "max_exp_avg_sq" in optimizer.state[p]


def test_options_that_change_where_they_are() -> None:
    momentum, betas = torch.tensor(0.0), deque([0.9, 0.999])
    one, other = (nn.Parameter(torch.ones(2)) for _ in range(2))
    one.grad = other.grad = torch.ones(2)
    sgd, adam = SGD([one], lr=0.5, momentum=momentum), Adam([other], betas=betas)  # type: ignore[arg-type]
    for optimizer in (sgd, adam):
        optimizer.step()
    momentum.fill_(0.9)
    sgd.step()
    assert "momentum_buffer" in sgd.state[one]
    betas[0] = 2.0
    with pytest.raises(ValueError, match="beta"):
        adam.step()
    group = adam.param_groups[0]
    group["betas"] = 0.9, 0.999
    adam.step()
    # The same objects in the same order, under other names.
    names = [{"lr": "eps", "eps": "lr"}.get(key, key) for key in group]
    values = list(group.values())
    group.clear()
    group.update(zip(names, values, strict=True))
    before = other.detach().clone()
    adam.step()
    assert torch.equal(other, before)  # a learning rate of 1e-8 rounds to nothing here
