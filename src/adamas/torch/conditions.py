"""What a step depends on besides gradients: their scale and norm, and whether to skip it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..norm import clip_factor
from .gpu import Graphs, Outcome, Request
from .gpu.staging import OUT_OF_PLACE, is_capturing
from .hyperparameters import check_clipping, on_device
from .plan import Plan

if TYPE_CHECKING:
    from .base import Optimizer


def request_of(optimizer: Optimizer) -> Request | None:
    """What an optimizer's step has to find out before it steps, None for nothing."""
    found_inf, grad_scale = _of_scaler(optimizer)
    max_norm, skip_nonfinite = optimizer.max_grad_norm, optimizer.skip_nonfinite
    groups = optimizer.param_groups
    captures = any([group.get("capturable") or on_device(group) for group in groups])
    found = found_inf if isinstance(found_inf, Tensor) else None
    scaled = found is not None or grad_scale is not None
    if not (scaled or captures or skip_nonfinite or max_norm is not None):
        return None
    check_clipping(groups, max_norm)
    return Request(_single(grad_scale), _single(found), max_norm, skip_nonfinite, captures)


def outcome_on(optimizer: Optimizer, device: torch.device, captures: bool) -> Outcome:
    """Where the next step on a device tells what it finds out; what was known before stays.

    The optimizer shows it only once the step is on its way; see ``show``.

    Args:
        optimizer: that steps.
        device: all of its parameters', where
        captures: whether graphs may capture its steps.

    Raises:
        RuntimeError: what was known is not there yet, and a graph would bring it there each time.
    """
    capturing = is_capturing(device)
    outcome = optimizer._outcome
    if outcome is None or outcome.results.device != device:
        results = torch.full((2,), math.nan, dtype=torch.float64, device=device)
        graphs = outcome.graphs if outcome else Graphs()
        outcome = Outcome(results, results, results.new_zeros((), dtype=torch.int64), graphs)
    if optimizer.skipped_steps is not outcome.skipped:
        if capturing:
            raise RuntimeError(OUT_OF_PLACE)
        outcome.skipped.fill_(optimizer.skipped_steps)
    if optimizer.max_grad_norm is not None or optimizer.skip_nonfinite:
        if not isinstance(optimizer.last_grad_norm, Tensor):
            if capturing:
                raise RuntimeError(OUT_OF_PLACE)
            known = optimizer.last_grad_norm
            outcome.results.fill_(math.nan if known is None else known)
        # Another tensor for each step, as others may have kept those before; but replays write
        # to the one that they were captured with.
        fixed = captures or capturing or outcome.graphs
        own = outcome.results if fixed else torch.empty_like(outcome.last)
        outcome = outcome._replace(results=own, last=outcome.results)
    return outcome


def show(optimizer: Optimizer, outcome: Outcome) -> None:
    """Lets an optimizer's attributes be what its last step tells."""
    optimizer._outcome, optimizer.skipped_steps = outcome, outcome.skipped
    if optimizer.max_grad_norm is not None or optimizer.skip_nonfinite:
        optimizer.last_grad_norm = outcome.results[0]


def factors_of(optimizer: Optimizer, plan: Plan) -> tuple[float, float, float | None] | None:
    """What unscales and what clips the gradients of a step, None if it is to be skipped.

    And their norm, where it is to be known.
    """
    found_inf, grad_scale = _of_scaler(optimizer)
    if found_inf is not None and bool(found_inf):  # it is the number 0 without gradients
        return None
    # As torch.amp.GradScaler.unscale_ takes the reciprocal.
    unscale = 1.0 if grad_scale is None else grad_scale.double().reciprocal().float().item()
    max_norm, skip_nonfinite = optimizer.max_grad_norm, optimizer.skip_nonfinite
    if max_norm is None and not skip_nonfinite:
        return unscale, 1.0, None
    check_clipping(optimizer.param_groups, max_norm)
    norm = math.sqrt(plan.squared_norm(unscale))
    if skip_nonfinite and not math.isfinite(norm) and not plan.finite(unscale):
        return None
    return unscale, 1.0 if max_norm is None else clip_factor(norm, max_norm), norm


def skips(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler has said with a number that the step is to be skipped."""
    found_inf, _ = _of_scaler(optimizer)
    return not isinstance(found_inf, Tensor | None) and bool(found_inf)


def _single(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()  # the same, if it is of float32


def _of_scaler(optimizer: Optimizer) -> tuple[Tensor | float | None, Tensor | None]:
    """What a gradient scaler sets for the time of a step."""
    return getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
