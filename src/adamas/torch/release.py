"""Stepping during backward: a gradient lives only until its parameter is stepped."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from .optimizer import Adam
from .plan import Plan, name_of, ready
from .recode import State


def step_in_backward(optimizer: Adam, accumulate: int = 1) -> BackwardStepper:
    """Lets backward step each parameter as soon as its gradient is ready, and free the gradient.

    The bits are those of an ordinary step, which treats each parameter by itself. The training loop
    stays as it is: ``optimizer.step()`` runs the hooks, and steps parameters that backward has not
    stepped because they got fewer gradients than there were backward passes. Hooks of ``step`` do
    not see the gradients, and a gradient scaler cannot be used: gradients would be stepped scaled.
    On Linux, the process keeps freed gradients for itself unless its allocator returns them: set
    ``MALLOC_MMAP_THRESHOLD_=1000000`` in its environment, or use jemalloc.

    Args:
        optimizer: without ``max_grad_norm`` and ``skip_nonfinite``, which need all gradients at
            once.
        accumulate: backward passes whose gradients are added up for one step, at least 1.

    Returns:
        What undoes it: ``remove()``.

    Raises:
        ValueError: the optimizer has such options, or ``accumulate`` is below 1.

    Source: torch.Tensor.register_post_accumulate_grad_hook's documentation.
    """
    return BackwardStepper(optimizer, accumulate)


class BackwardStepper:
    """An optimizer's hooks on its parameters; see ``step_in_backward``."""

    def __init__(self, optimizer: Adam, accumulate: int) -> None:
        if type(accumulate) is not int or accumulate < 1:
            raise ValueError(
                f"accumulate must be a whole number of at least 1, got {accumulate!r}: the number "
                "of backward passes to one step"
            )
        for option in ("max_grad_norm", "skip_nonfinite"):
            if getattr(optimizer, option):
                raise ValueError(
                    f"{option}={getattr(optimizer, option)!r} needs the gradients of all "
                    "parameters at once, but during backward each is stepped by itself: do "
                    "without it, or do not step in backward"
                )
        self._optimizer, self._accumulate = optimizer, accumulate
        self._seen: dict[Tensor, int] = {}
        self._plans: dict[Tensor, Plan] = {}
        self._places: dict[Tensor, tuple[int, int]] = {
            param: (number, i)
            for number, group in enumerate(optimizer.param_groups)
            for i, param in enumerate(group["params"])
            if param.requires_grad
        }
        # torch does not find cycles through a parameter's hooks, so these hold the stepper weakly;
        # the optimizer's holds it.
        ready = weakref.WeakMethod(self._ready)

        def when_ready(param: Tensor) -> None:
            if step := ready():
                step(param)

        self._handles: list[Any] = [optimizer.register_step_post_hook(self._begin_again)]
        for param in self._places:
            register: Any = param.register_post_accumulate_grad_hook
            self._handles.append(register(when_ready))

    def remove(self) -> None:
        """Takes the hooks away: from now on only ``optimizer.step()`` steps."""
        for handle in self._handles:
            handle.remove()

    def _begin_again(self, *_: object) -> None:
        self._seen.clear()

    @torch.no_grad()
    def _ready(self, param: Tensor) -> None:
        self._seen[param] = self._seen.get(param, 0) + 1
        if self._seen[param] < self._accumulate:
            return
        self._seen[param] = 0
        number, i = self._places[param]
        optimizer = self._optimizer
        group = optimizer.param_groups[number]
        alone = [group | {"params": [param], "param_names": [name_of(group, number, i)]}]
        states = optimizer.state
        own: dict[Tensor, State] = {param: states[param]} if param in states else {}
        plan = self._plans[param] = ready(self._plans.get(param), alone, own)
        states[param] = own[param]
        found = plan.step(alone, measure=optimizer._measuring)
        optimizer._found += [each._replace(group=number) for each in found]
        plan.forget()
        param.grad = None
