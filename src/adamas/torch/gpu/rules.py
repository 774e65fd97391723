"""The update rules in Triton: ``adamas.equations``, name for name and in the same order.

Not that module itself, for Triton's ``/`` and ``sqrt`` are not rounded correctly.
"""

from __future__ import annotations

import triton.language as tl

from ...hyper import Coefficients
from .jit import jit

COEFFICIENTS = tl.constexpr(len(Coefficients._fields))
_STEP = tl.constexpr(Coefficients._fields.index("step"))


@jit
def load_coefficients(row: tl.tensor, T: tl.constexpr) -> tl.tensor:
    """What ``adam`` multiplies with, of a row of ``hyper.Coefficients`` in float64."""
    return (
        tl.load(row).to(T),
        tl.load(row + 1).to(T),
        tl.load(row + 2).to(T),
        tl.load(row + 3).to(T),
        tl.load(row + 4).to(T),
        tl.load(row + 5).to(T),
        tl.load(row + 6).to(T),
        tl.load(row + 7).to(T),
        tl.load(row + 8).to(T),
        tl.load(row + 9),
        tl.load(row + 10).to(T),
        tl.load(row + 11).to(T),
    )


@jit
def load_step(row: tl.tensor) -> tl.tensor:
    """The step's number, to 32 bits."""
    return tl.load(row + _STEP).to(tl.int64).to(tl.uint32)


@jit
def adam(
    p: tl.tensor,
    grad: tl.tensor,
    m: tl.tensor,
    v: tl.tensor,
    v_max: tl.tensor,
    c: tl.tuple,
    AMSGRAD: tl.constexpr,
    USUAL: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """One step of Adam, AdamW or AMSGrad; ``adamas.equations.adam``.

    Where it is USUAL, gradients are neither scaled nor clipped, nor the loss maximized, nor a decay
    coupled: saying so beforehand spares a sixth of the arithmetic.
    """
    (
        beta1,
        one_minus_beta1,
        beta2,
        one_minus_beta2,
        step_size,
        denom_scale,
        eps,
        decay,
        l2,
        maximize,
        unscale,
        clip,
    ) = c
    g = grad
    if not USUAL:
        g = g * unscale * clip
        g = tl.where(maximize != 0, -g, g)
        g = tl.where(l2 != 0, g + l2 * p, g)
    m = beta1 * m + one_minus_beta1 * g
    v = beta2 * v + one_minus_beta2 * (g * g)
    if AMSGRAD:
        v_max = tl.where((v_max >= v) | (v_max != v_max), v_max, v)
        d = _sqrt(v_max) * denom_scale + eps
    else:
        d = _sqrt(v) * denom_scale + eps
    u = _divide(step_size * m, d)
    u = tl.where(decay != 0, u + decay * p, u)
    return p - u, m, v, v_max


@jit
def _sqrt(x: tl.tensor) -> tl.tensor:
    if x.dtype == tl.float64:
        return tl.sqrt(x)  # which is exact
    else:
        return tl.sqrt_rn(x)


@jit
def _divide(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)
