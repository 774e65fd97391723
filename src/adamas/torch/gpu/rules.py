"""The update rules in Triton: ``adamas.equations``, name for name and in the same order.

Not that module itself, for Triton's ``/`` and ``sqrt`` are not rounded correctly.
"""

from __future__ import annotations

import triton.language as tl

from ... import native
from ...hyper import Coefficients
from .jit import jit

COEFFICIENTS = tl.constexpr(len(Coefficients._fields))
_ADAM, _SGD, _RMSPROP = (tl.constexpr(x) for x in native.RULES.values())


@jit
def load_coefficients(row: tl.tensor, T: tl.constexpr) -> tl.tuple:
    """A row of ``hyper.Coefficients`` in float64, in the type computed in, the step to 32 bits."""
    return Coefficients(
        beta1=tl.load(row).to(T),
        one_minus_beta1=tl.load(row + 1).to(T),
        beta2=tl.load(row + 2).to(T),
        one_minus_beta2=tl.load(row + 3).to(T),
        step_size=tl.load(row + 4).to(T),
        denom_scale=tl.load(row + 5).to(T),
        eps=tl.load(row + 6).to(T),
        decay=tl.load(row + 7).to(T),
        l2=tl.load(row + 8).to(T),
        maximize=tl.load(row + 9),
        unscale=tl.load(row + 10).to(T),
        clip=tl.load(row + 11).to(T),
        step=tl.load(row + 12).to(tl.int64).to(tl.uint32),
    )


@jit
def step(
    p: tl.tensor,
    grad: tl.tensor,
    m: tl.tensor,
    v: tl.tensor,
    w: tl.tensor,
    c: tl.tuple,
    RULE: tl.constexpr,
    AVERAGES: tl.constexpr,
    USUAL: tl.constexpr,
) -> tl.tuple:
    """One step of a rule; of its averages only those count that there are, bits of AVERAGES.

    Anything stands for the others, for Triton 3.6 cannot return None.
    """
    if RULE == _ADAM:
        return adam(p, grad, m, v, w, c, AVERAGES & 4, USUAL)
    elif RULE == _SGD:
        return sgd(p, grad, m, v, w, c, AVERAGES & 1, USUAL)
    else:
        return rmsprop(p, grad, m, v, w, c, AVERAGES & 1, AVERAGES & 4, USUAL)


@jit
def gradient(p: tl.tensor, grad: tl.tensor, c: tl.tuple, USUAL: tl.constexpr) -> tl.tensor:
    """The gradient that averages see; ``adamas.equations.gradient``.

    Where it is USUAL, it is neither scaled nor clipped, nor the loss maximized, nor a decay
    coupled: saying so beforehand spares a sixth of Adam's arithmetic.
    """
    g = grad
    if not USUAL:
        g = g * c.unscale * c.clip
        g = tl.where(c.maximize != 0, -g, g)
        g = tl.where(c.l2 != 0, g + c.l2 * p, g)
    return g


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
) -> tl.tuple:
    """One step of Adam, AdamW or AMSGrad; ``adamas.equations.adam``."""
    g = gradient(p, grad, c, USUAL)
    m = c.beta1 * m + c.one_minus_beta1 * g
    v = c.beta2 * v + c.one_minus_beta2 * (g * g)
    if AMSGRAD:
        v_max = _maximum(v_max, v)
    d = _sqrt(v_max if AMSGRAD else v) * c.denom_scale + c.eps
    u = _divide(c.step_size * m, d)
    u = tl.where(c.decay != 0, u + c.decay * p, u)
    return p - u, m, v, v_max


@jit
def sgd(
    p: tl.tensor,
    grad: tl.tensor,
    m: tl.tensor,
    v: tl.tensor,
    w: tl.tensor,
    c: tl.tuple,
    MOMENTUM: tl.constexpr,
    USUAL: tl.constexpr,
) -> tl.tuple:
    """One step of gradient descent, with momentum or Nesterov's; ``adamas.equations.sgd``."""
    g = gradient(p, grad, c, USUAL)
    u = g
    if MOMENTUM:
        m = c.beta1 * m + c.one_minus_beta1 * g
        u = tl.where(c.beta2 != 0, g + c.beta2 * m, m)
    return p - c.step_size * u, m, v, w


@jit
def rmsprop(
    p: tl.tensor,
    grad: tl.tensor,
    m: tl.tensor,
    v: tl.tensor,
    w: tl.tensor,
    c: tl.tuple,
    CENTERED: tl.constexpr,
    MOMENTUM: tl.constexpr,
    USUAL: tl.constexpr,
) -> tl.tuple:
    """One step of RMSprop, plain or centered; ``adamas.equations.rmsprop``."""
    g = gradient(p, grad, c, USUAL)
    v = c.beta2 * v + c.one_minus_beta2 * (g * g)
    s = v
    if CENTERED:
        m = c.beta2 * m + c.one_minus_beta2 * g
        s = _maximum(v - m * m, 0.0)  # a variance, whose rounding may fall below
    u = _divide(g, _sqrt(s) + c.eps)
    if MOMENTUM:
        w = c.beta1 * w + u
        u = w
    return p - c.step_size * u, m, v, w


@jit
def _maximum(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """The larger one, which keeps NaN."""
    return tl.where((a >= b) | (a != a), a, b)


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
