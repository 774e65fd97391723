"""``Adam`` and ``AdamW`` as subclasses of ``torch.optim.Optimizer``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as _torch

from .checkpoint import Match, pack, unpack
from .conditions import factors_of, outcome_on, request_of, show, skips
from .footprint import Memory
from .gpu import Outcome, Request, needs
from .hyperparameters import check_clipping, check_own, hyper_of
from .kinds import kept, kind_of, not_default
from .plan import Plan, held, ready
from .state import check_trainable
from .statistics import Found, History, Statistics

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Adam(Optimizer):
    """A drop-in for ``torch.optim.Adam``: its arguments, groups, state and checkpoints.

    The equation is ``adamas.equations.adam``, and its bits are the same whatever steps it. The C++
    core steps, all in one call, the parameters that lie dense on the CPU in float32, float64,
    bfloat16, float16 or complex pairs; Triton kernels those on a GPU, in one launch for all of a
    type; slower ways step any others: other dtypes and devices, views with gaps, tensor subclasses.

    Args:
        params: parameters, named parameters, or parameter groups.
        lr: learning rate, at least 0; a number or a tensor of one element.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: at least 0; ``weight_decay * param`` is added to the gradient, or
            ``lr * weight_decay * param`` subtracted from the parameter if it is decoupled.
        amsgrad: divide by the largest second moment so far.
        foreach: accepted and ignored: a step is always one call for all parameters.
        maximize: ascend.
        capturable: count the steps on the GPU, so that they can be captured in a CUDA graph: make
            three steps before the capture. Accepted for parameters on the CPU, where there is
            nothing to capture.
        differentiable: let autograd record the step, in plain torch operations.
        fused: accepted and ignored: a step is always fused.
        decoupled_weight_decay: AdamW's decay.
        max_grad_norm: clip the gradients of all groups together to this norm, above 0, with the
            bits of multiplying them by ``adamas.norm.clip_factor`` before; ``float("inf")`` only
            measures. The gradients themselves stay as they are.
        moments: what the moments are kept in: "float32", "bfloat16", "int8" or "int4", which are 8,
            4, about 2.1 and about 1.1 bytes a parameter for both; see ``adamas.formats``. Those of
            float64 parameters stay in float64, and AMSGrad's maximum in float32.
        master_bits: of the weights that are trained where parameters have 16 bits: 32 (the
            default) has the bits of training float32 weights whose rounding the model sees, 24
            keeps one byte beside a bfloat16 parameter, 16 nothing.
        offload: "cpu" keeps the state of parameters on a GPU in the host's pinned memory, and has
            the core step them; parameters on the CPU, and views with gaps, it leaves as they are.
        skip_nonfinite: leave everything as it is, step counts too, where an element of any
            gradient is infinite or NaN.

    Attributes:
        last_grad_norm: the global norm of the last step's gradients, unscaled and before clipping,
            with ``max_grad_norm`` or ``skip_nonfinite``; None before the first step, and what it
            was where a step is skipped.
        skipped_steps: how many steps were skipped, by ``skip_nonfinite`` or by a gradient scaler,
            whose scaled gradients the step takes as they are (``torch.amp.GradScaler``). Where all
            parameters are on one GPU, both are tensors of one element there, with ``capturable``
            the same at each step: nobody waits for the device but who reads them.

    Raises:
        ValueError: a hyperparameter is out of range, there are no parameters, or one of them can
            never have a gradient.

    Source: Kingma & Ba 2015, arXiv 1412.6980; torch.optim.Adam's documentation.
    """

    _step_supports_amp_scaling = True
    max_grad_norm: float | None
    skip_nonfinite: bool
    last_grad_norm: float | Tensor | None
    skipped_steps: int | Tensor

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        moments: str = "float32",
        master_bits: int | None = None,
        offload: str | None = None,
    ) -> None:
        check_clipping([], max_grad_norm)
        self.max_grad_norm, self.skip_nonfinite = max_grad_norm, bool(skip_nonfinite)
        self.skipped_steps, self.last_grad_norm = 0, None
        self._plan: Plan | None = None
        self._outcome: Outcome | None = None
        self._history = History()
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        defaults |= not_default(moments=moments, master_bits=master_bits, offload=offload)
        hyper_of(defaults)
        kind_of(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a parameter group; see ``torch.optim.Optimizer.add_param_group``.

        Raises:
            ValueError: as the constructor; the optimizer is left as it was.
        """
        groups = len(self.param_groups)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            hyper_of(group)
            kind = kind_of(group)
            check_own(group)
            check_clipping([group], self.max_grad_norm)
            for param in group["params"]:
                check_trainable(param)
                kept(param, kind)
        except Exception:
            del self.param_groups[groups:]
            raise
        # A scheduler fills a tensor lr in place; one shared with another group would follow.
        if any(group["lr"] is other["lr"] for other in self.param_groups[:groups]):
            group["lr"] = group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, *args: Any, **options: Any) -> float | None:
        """One step of every parameter that has a gradient.

        Args:
            *args: a closure, or none: it evaluates the model again and returns the loss.
            **options: the same as ``closure=``.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError, TypeError, ValueError: a gradient, a hyperparameter or a state is not
                usable; then no parameter was touched.
        """
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _torch._global_optimizer_pre_hooks
            or _torch._global_optimizer_post_hooks
            or torch.autograd.profiler._is_profiler_enabled
        ) and type(self).step is Adam.step:  # torch has wrapped a subclass's own
            return _step_with_hooks(self, *args, **options)
        # Compiled, the step would be traced into NumPy and the core: it runs as it is. What torch
        # does for that takes longer than a small step, so only where code is compiled.
        if torch.compiler.is_dynamo_compiling() or _compiler() is not None:
            result: float | None = _step_uncompiled(self, *args, **options)
            return result
        return self._step(*args, **options)  # hooks see what the caller gave

    # torch would wrap ``step`` in its hooks and a profiler's record, which cost more than a step of
    # a small model even where there are none.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        with torch.set_grad_enabled(False):  # no_grad() takes twice as long
            request = request_of(self)
            plan = self._plan = ready(self._plan, groups, self.state, needs(request))
            try:
                found = self._take(plan, groups, request)
            finally:
                plan.forget()
            if found is None:
                return loss
            self._history.add(plan.taken, found)
            self._history.end(groups)
        return loss

    def measure_next_step(self) -> None:
        """Lets the next step find its statistics while it steps, without a pass of its own.

        Where steps are taken during backward, it is to be called before backward.
        """
        self._history.measuring = True

    @torch.no_grad()
    def statistics(self) -> Statistics:
        """What the last step did: norms, the largest relative update, stalled weights.

        After ``measure_next_step()`` and a step, what that step has found. Else it is worked out
        from the states by an extra pass, to rounding, and for gradients that are still there: after
        loading, as if all parameters had been stepped by the options of now.

        Returns:
            By parameter and by group; ``print`` shows a table. Of sharded parameters it is the
            whole, for which all processes of the mesh must ask.

        Raises:
            ValueError: there has been no step.
        """
        groups, states = self.param_groups, self.state
        return self._history.statistics(
            groups, states, lambda: held(self._plan, groups, states).everything(groups)
        )

    def memory(self) -> Memory:
        """The bytes that this process holds now, by group: weights, gradients, Adam's state.

        Returns:
            ``groups`` and ``total``; ``print`` shows a table. Gradients count while they are there,
            the state from a parameter's first step on.
        """
        return Memory(self.param_groups, self.state)

    def _take(
        self, plan: Plan, groups: list[dict[str, Any]], request: Request | None
    ) -> list[Found] | None:
        """Steps what a plan has looked at; None where the step is to be skipped."""
        measure = self._history.measuring
        if request is not None and plan.alone and not skips(self):
            outcome = outcome_on(self, plan.alone.device)
            found = plan.step_guarded(groups, request, outcome, measure)
            show(self, outcome)  # what a step that raises has found nobody sees
            return found
        factors = factors_of(self, plan)
        if factors is None:
            self.skipped_steps += 1
            return None
        unscale, clip, norm = factors
        done = plan.step(groups, unscale, clip, measure)
        self.last_grad_norm = self.last_grad_norm if norm is None else norm
        return done

    def state_dict(self) -> dict[str, Any]:
        """The states and groups in the form of ``torch.optim.Adam``'s, which loads them.

        The moments are the optimizer's own tensors, not copies; step counts are copies.
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state_dict = pack(self.state, self.param_groups)
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            replaced = post_hook(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        return state_dict

    def load_state_dict(  # type: ignore[override]  # torch's returns nothing
        self, state_dict: dict[str, Any], strict: bool = True
    ) -> Match:
        """Takes over the states and groups of adamas's or torch.optim's Adam or AdamW.

        Parameters are matched by name where both sides know the names, else by position. States of
        other formats are turned into those of this optimizer's groups, which keep their ``moments``
        and ``master_bits``; those of the same are taken byte for byte.

        Args:
            state_dict: what ``state_dict()`` gave; it is copied. Other optimizers' goes through
                ``adamas.torch.convert_state_dict`` first.
            strict: refuse it unless it has each parameter, and no others. Else parameters that it
                lacks keep their states, and where it has more groups or fewer, all groups keep
                their options.

        Returns:
            How many parameters matched, by name or by position, and the missing and extra ones.

        Raises:
            ValueError: the state is foreign or of another model; the optimizer is left as it was.
        """
        state_dict = state_dict.copy() if isinstance(state_dict, dict) else state_dict
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = pre_hook(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        with torch.no_grad():
            states, groups, match = unpack(self, state_dict, strict)
        self._plan = None
        self._history.clear()
        self.state.clear()
        self.state.update(states)
        for group, new in zip(self.param_groups, groups, strict=True):
            group.clear()  # the same dictionaries: schedulers and others hold on to them
            group.update(new)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)
        return match

    def complete_group(self, group: dict[str, Any]) -> dict[str, Any]:
        """A parameter group of a checkpoint, with the options it lacks, checked."""
        completed = self.defaults | {"foreach": None, "fused": None} | group
        hyper_of(completed)
        kind_of(completed)
        return completed

    def __getstate__(self) -> dict[str, Any]:
        """What pickling and copying keep: torch.optim's, and the options beyond it."""
        kept: dict[str, Any] = super().__getstate__()
        own = {name: getattr(self, name) for name in _OWN}
        return kept | {k: v.item() if isinstance(v, Tensor) else v for k, v in own.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a pickled or copied optimizer; options that it lacks get their defaults."""
        self._plan = self._outcome = None
        self._history = History()
        super().__setstate__(_OWN | state)
        for group in self.param_groups:
            for option in ("amsgrad", "maximize", "capturable", "differentiable"):
                group.setdefault(option, False)
            for option in ("foreach", "fused"):
                group.setdefault(option, None)
            group.setdefault("decoupled_weight_decay", isinstance(self, AdamW))


class AdamW(Adam):
    """A drop-in for ``torch.optim.AdamW``: Adam whose decay shrinks the weights themselves.

    The arguments are ``Adam``'s, but for ``decoupled_weight_decay``, which is always on, and
    ``weight_decay``, which is 0.01 by default: a step subtracts ``lr * weight_decay * param``.

    Source: Loshchilov & Hutter 2019, arXiv 1711.05101; torch.optim.AdamW's documentation.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        moments: str = "float32",
        master_bits: int | None = None,
        offload: str | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            max_grad_norm=max_grad_norm,
            skip_nonfinite=skip_nonfinite,
            moments=moments,
            master_bits=master_bits,
            offload=offload,
        )

    def complete_group(self, group: dict[str, Any]) -> dict[str, Any]:
        """As ``Adam.complete_group``; the decay stays decoupled, wherever the group is from."""
        return super().complete_group(group | {"decoupled_weight_decay": True})


# Attributes beyond torch.optim's, and their values where a pickled optimizer lacks them.
_OWN: dict[str, Any] = {
    "max_grad_norm": None,
    "skip_nonfinite": False,
    "skipped_steps": 0,
    "last_grad_norm": None,
}

_step_uncompiled: Any = torch._disable_dynamo(Adam._step)  # type: ignore[attr-defined]
_step_with_hooks = Optimizer.profile_hook_step(_step_uncompiled)
# What compiles the code that this thread runs, None for nothing.
_compiler: Callable[[], object] = getattr(
    torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: True
)
