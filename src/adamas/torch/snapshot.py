"""A model and its optimizer as they are now, to be put back bit for bit after an experiment."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import base

Undo = Callable[[], None]


@contextmanager
def undone(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """A block whose traces are undone at its end, however it ends.

    Parameters, gradients, buffers and modes of the model, state, groups and other attributes of the
    optimizer, and the random states of torch, NumPy and Python are put back into the very same
    objects. What else the block changes, as plain attributes of modules, stays.
    """
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if initialized else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.no_grad():
        undo = [*_model(model, optimizer), *_groups(optimizer), _state(optimizer)]
        undo.append(_attributes(optimizer))
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for each in undo:
                each()
        random.setstate(python)
        np.random.set_state(numpy)


def _model(model: nn.Module, optimizer: Optimizer) -> list[Undo]:
    params = {id(param): param for param in model.parameters()}
    for group in optimizer.param_groups:
        params |= {id(param): param for param in group["params"]}
    undo = [_content(param) for param in params.values()]
    undo += [_gradient(param) for param in params.values()]
    for module in model.modules():
        # A module may put another tensor in a buffer's place.
        undo.append(_entries(module._buffers))
        undo.append(_mode(module))
    return undo


def _gradient(param: Tensor) -> Undo:
    grad, param.grad = param.grad, None

    def undo() -> None:
        param.grad = grad

    return undo


def _mode(module: nn.Module) -> Undo:
    training = module.training

    def undo() -> None:
        module.training = training

    return undo


def _groups(optimizer: Optimizer) -> list[Undo]:
    undo = []
    for group in optimizer.param_groups:
        params = list(group["params"])
        entries = {name: value for name, value in group.items() if name != "params"}
        undo.append(_group(group, params, {n: (v, _kept(v)) for n, v in entries.items()}))
    return undo


def _group(group: dict[str, Any], params: list[Tensor], kept: dict[str, tuple[Any, Any]]) -> Undo:
    own = group["params"]

    def undo() -> None:
        own[:] = params
        group.clear()  # the same dictionary: schedulers hold on to it
        group["params"] = own
        group.update({name: _put_back(value, was) for name, (value, was) in kept.items()})

    return undo


def _state(optimizer: Optimizer) -> Undo:
    entries = [
        (param, entry, _entries(entry) if isinstance(entry, dict) else _content(entry))
        for param, entry in optimizer.state.items()
    ]

    def undo() -> None:
        optimizer.state.clear()
        for param, entry, undo_entry in entries:
            undo_entry()
            optimizer.state[param] = entry

    return undo


def _attributes(optimizer: Optimizer) -> Undo:
    names = set(vars(optimizer)) - {"state", "param_groups"}
    own = {name: vars(optimizer)[name] for name in names}
    contents = [_content(value) for value in own.values() if isinstance(value, Tensor)]
    history = copy.copy(optimizer._history) if isinstance(optimizer, base.Optimizer) else None

    def undo() -> None:
        for name in set(vars(optimizer)) - names - {"state", "param_groups"}:
            delattr(optimizer, name)
        vars(optimizer).update(own)
        for content in contents:
            content()
        if isinstance(optimizer, base.Optimizer) and history is not None:
            optimizer._plan = None  # made of states that are no more what they were
            optimizer._history = history

    return undo


def _entries(of: dict[Any, Any]) -> Undo:
    """The entries of a dictionary, and the contents of its tensors."""
    kept = {name: (value, _kept(value)) for name, value in of.items()}

    def undo() -> None:
        of.clear()
        of.update({name: _put_back(value, was) for name, (value, was) in kept.items()})

    return undo


def _content(value: Any) -> Undo:
    was = _kept(value)

    def undo() -> None:
        _put_back(value, was)

    return undo


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _put_back(value: Any, was: Any) -> Any:
    """The value as it was: in a tensor's own memory, else what was kept of it."""
    return value.copy_(was) if isinstance(value, Tensor) else was
