"""Stepping during backward: a gradient lives only until its parameter is stepped."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from .base import Optimizer
from .conditions import request_of
from .entries import name_of
from .gpu import needs
from .plan import Plan, ready
from .recode import State
from .sharding import is_sharded, local


def step_in_backward(optimizer: Optimizer, accumulate: int = 1) -> BackwardStepper:
    """Lets backward step each parameter as soon as its gradient is ready, and free the gradient.

    The bits are those of an ordinary step, which treats each parameter by itself. The training loop
    stays as it is: ``optimizer.step()`` ends the step. It runs the hooks, and steps parameters that
    backward has not stepped because they got fewer gradients than there were backward passes.
    Options and groups are the optimizer's at the time; parameters that it gets later are stepped by
    ``optimizer.step()``. Hooks of ``step`` do not see the gradients.

    A gradient scaler cannot be used: gradients would be stepped scaled. Neither can
    ``DistributedDataParallel``, which adds gradients up over processes only after they were
    stepped: use FSDP2 (``fully_shard``), or ordinary steps.

    On Linux, the process keeps freed gradients for itself unless its allocator returns them: set
    ``MALLOC_MMAP_THRESHOLD_=1000000`` in its environment, or use jemalloc.

    Args:
        optimizer: without ``max_grad_norm`` and ``skip_nonfinite``, which need all gradients at
            once.
        accumulate: backward passes whose gradients are added up for one step, at least 1.

    Returns:
        A stepper, whose ``remove()`` undoes it.

    Raises:
        ValueError: the optimizer has such options, or ``accumulate`` is below 1; during backward,
            where it has got such options.
        TypeError: the optimizer is not one of adamas's.
        RuntimeError: during backward or ``optimizer.step()``, where a parameter gets a gradient
            after it was stepped, or where a gradient scaler steps.

    Source: torch.Tensor.register_post_accumulate_grad_hook's documentation.
    """
    return BackwardStepper(optimizer, accumulate)


class BackwardStepper:
    """An optimizer's hooks on its parameters; see ``step_in_backward``."""

    def __init__(self, optimizer: Optimizer, accumulate: int) -> None:
        if type(accumulate) is not int or accumulate < 1:
            raise ValueError(
                f"accumulate must be a whole number of at least 1, got {accumulate!r}: the number "
                "of backward passes to one step"
            )
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"the optimizer must be adamas's, got {type(optimizer).__name__}: make it from "
                "adamas.torch"
            )
        _check_options(optimizer)
        self._optimizer, self._accumulate = optimizer, accumulate
        # Of this step: how many gradients a parameter got, with the sum of them as it was left,
        # which parameters were stepped, and where they are in the optimizer's groups.
        self._seen: dict[Tensor, tuple[int, weakref.ref[Tensor], int]] = {}
        self._stepped: set[Tensor] = set()
        self._places: dict[Tensor, tuple[int, int]] = {}
        self._plans: dict[Tensor, Plan] = {}
        # torch does not find cycles through a parameter's hooks, so these hold the stepper weakly;
        # the optimizer's holds it.
        ready = weakref.WeakMethod(self._ready)

        def when_ready(param: Tensor) -> None:
            if step := ready():
                step(param)

        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._check_step),
            optimizer.register_step_post_hook(self._begin_again),
        ]
        for group in optimizer.param_groups:
            for param in dict.fromkeys(group["params"]):
                if param.requires_grad:
                    register: Any = param.register_post_accumulate_grad_hook
                    self._handles.append(register(when_ready))

    def remove(self) -> None:
        """Takes the hooks away: from now on only ``optimizer.step()`` steps."""
        for handle in self._handles:
            handle.remove()

    def _begin_again(self, *_: object) -> None:
        self._seen.clear()
        self._stepped.clear()
        self._places.clear()

    def _check_step(self, optimizer: Optimizer, *_: object) -> None:
        if any(hasattr(optimizer, name) for name in ("grad_scale", "found_inf")):
            raise RuntimeError(
                "a gradient scaler cannot be used with step_in_backward, which has stepped the "
                "gradients scaled: train in bfloat16 without one, or do not step in backward"
            )
        for param in self._stepped:
            if param.grad is not None:
                raise RuntimeError(
                    f"{self._name(param)} has a gradient though backward has stepped it: what "
                    "wrote it afterwards, as DistributedDataParallel does, comes too late. Use "
                    "FSDP2 (fully_shard), or do not step in backward"
                )

    @torch.no_grad()
    def _ready(self, param: Tensor) -> None:
        optimizer = self._optimizer
        place = self._place(param)
        if place is None or param.grad is None:
            return  # its group was taken away, or another has stepped it
        _check_options(optimizer)
        if param in self._stepped:
            raise RuntimeError(
                f"{self._name(param)} got a gradient again after it was stepped and before "
                "optimizer.step(): give accumulate= the number of backward passes to one step, "
                "call optimizer.step() after them, and checkpoint with use_reentrant=False, "
                "which computes each gradient in one piece"
            )
        if self._count(param, param.grad) < self._accumulate:
            return
        _await_copy(param)
        number, _ = place
        name = self._name(param)
        alone = [optimizer.param_groups[number] | {"params": [param], "param_names": [name]}]
        states = optimizer.state
        own: dict[Tensor, State] = {param: states[param]} if param in states else {}
        request = request_of(optimizer)
        plan = self._plans[param] = ready(self._plans.get(param), alone, own, needs(request))
        states[param] = own[param]
        found = optimizer._take(plan, alone, request) or []
        found = [each._replace(group=number) for each in found]
        optimizer._history.add(plan.taken._replace(group=number), found)
        plan.forget()
        self._stepped.add(param)
        self._seen.pop(param)
        param.grad = None

    def _count(self, param: Tensor, grad: Tensor) -> int:
        """How many gradients were added up in this one.

        Backward adds to a gradient in place, once. One that is another tensor or was written by
        others has been begun anew, by ``zero_grad``. Where it has not, ``optimizer.step()`` steps.
        """
        version = local(grad)._version
        count, before, then = self._seen.get(param, (0, None, 0))
        if before is None or before() is not grad or version != then + 1:
            count = 0
        self._seen[param] = count + 1, weakref.ref(grad), version
        return count + 1

    def _place(self, param: Tensor) -> tuple[int, int] | None:
        """The number of a parameter's group and its place there, None where it has none now."""
        groups = self._optimizer.param_groups
        place = self._places.get(param)
        if not self._places or (place and not _is_at(groups, *place, param)):
            self._places = {
                one: (number, i)
                for number, group in enumerate(groups)
                for i, one in enumerate(group["params"])
            }
        return self._places.get(param)

    def _name(self, param: Tensor) -> str:
        place = self._place(param)
        return name_of(self._optimizer.param_groups[place[0]], *place) if place else "a parameter"


def _await_copy(param: Any) -> None:
    """Waits until FSDP2 has copied a gradient that it offloads: torch before 2.13 tells too early.

    It is copied on the stream that is current there.
    """
    if is_sharded(param) and local(param).device.type == "cpu":
        kind = param.device_mesh.device_type
        if kind != "cpu":
            torch.get_device_module(kind).current_stream().synchronize()


def _is_at(groups: list[dict[str, Any]], number: int, i: int, param: Tensor) -> bool:
    params = groups[number]["params"] if number < len(groups) else []
    return i < len(params) and params[i] is param


def _check_options(optimizer: Optimizer) -> None:
    for option in ("max_grad_norm", "skip_nonfinite"):
        if getattr(optimizer, option):
            raise ValueError(
                f"{option}={getattr(optimizer, option)!r} needs the gradients of all parameters at "
                "once, but during backward each is stepped by itself: do without it, or do not "
                "step in backward"
            )
