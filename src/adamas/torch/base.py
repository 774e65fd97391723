"""What the optimizers of all rules have in common, as ``torch.optim.Optimizer`` has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import optimizer as _torch

from ..hyper import Rule
from .checkpoint import Match, pack, unpack
from .conditions import factors_of, outcome_on, request_of, show, skips
from .footprint import Memory
from .gpu import Outcome, Request, needs
from .hyperparameters import check_clipping, check_own, check_rule, hyper_of
from .kinds import kept, kind_of, not_default
from .plan import Plan, held, ready
from .state import check_trainable
from .statistics import Found, History, Statistics

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class Optimizer(torch.optim.Optimizer):
    """Steps parameters by a rule: ``Adam``, ``AdamW``, ``SGD`` or ``RMSprop``.

    The C++ core steps, all in one call, the parameters that lie dense on the CPU in float32,
    float64, bfloat16, float16 or complex pairs; Triton kernels those on a GPU, in one launch for
    all of a type; slower ways step any others: other dtypes and devices, views with gaps, tensor
    subclasses. The bits are the same whatever steps.

    Args:
        params: parameters, named parameters, or parameter groups.
        defaults: the rule's options, as torch.optim's optimizer of the name has them,
        max_grad_norm: and those of all rules beyond them; all as ``Adam``'s.
        skip_nonfinite: one more,
        moments: and this,
        master_bits: this,
        offload: and this.

    Attributes:
        rule: the rule.
        last_grad_norm: as ``Adam``'s,
        skipped_steps: and this.

    Raises:
        ValueError: as ``Adam``.
    """

    rule: ClassVar[type[Rule]]
    # Options that torch.optim's optimizers of older versions, and pickles of theirs, do not have.
    _later: ClassVar[dict[str, Any]] = {"maximize": False, "foreach": None, "differentiable": False}
    _step_supports_amp_scaling = True
    max_grad_norm: float | None
    skip_nonfinite: bool
    last_grad_norm: float | Tensor | None
    skipped_steps: int | Tensor

    def __init__(
        self,
        params: Params,
        defaults: dict[str, Any],
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
            check_rule(group, self.rule)
            hyper_of(group)
            kind = kind_of(group)
            check_own(group)
            check_clipping([group], self.max_grad_norm)
            for param in group["params"]:
                check_trainable(param)
                if not is_lazy(param):  # a lazy module's gets its shape in the first forward
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
        ) and type(self).step is Optimizer.step:  # torch has wrapped a subclass's own
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
        loading, as if all parameters had been stepped by the options of now; where a GPU has
        skipped the last step, as if it had not.

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
        """The bytes that this process holds now, by group: weights, gradients, states.

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
            outcome = outcome_on(self, plan.alone.device, request.captures)
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
        """The states and groups in the form of torch.optim, whose optimizer of the rule loads them.

        The averages are the optimizer's own tensors, not copies; step counts are copies.
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
        """Takes over the states and groups of adamas's or torch.optim's optimizer of this rule.

        Parameters are matched by name where both sides know the names, else by position. States of
        other formats are turned into those of this optimizer's groups, which keep their ``moments``
        and ``master_bits``; those of the same are taken byte for byte.

        Args:
            state_dict: what ``state_dict()`` gave; it is copied. That of others' Adam goes
                through ``adamas.torch.convert_state_dict`` first.
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
        ignored = {option: None for option in ("foreach", "fused") if option in self.defaults}
        completed = self.defaults | ignored | group
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
            for option, value in self._later.items():
                group.setdefault(option, value)


# Attributes beyond torch.optim's, and their values where a pickled optimizer lacks them.
_OWN: dict[str, Any] = {
    "max_grad_norm": None,
    "skip_nonfinite": False,
    "skipped_steps": 0,
    "last_grad_norm": None,
}

_step_uncompiled: Callable[..., float | None] = torch._disable_dynamo(Optimizer._step)  # type: ignore[attr-defined]
_step_with_hooks = Optimizer.profile_hook_step(_step_uncompiled)
# What compiles the code that this thread runs, None for nothing.
_compiler: Callable[[], object] = getattr(
    torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: True
)
