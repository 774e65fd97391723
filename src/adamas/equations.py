"""The update rules, each written once.

A rule is a pure function of arrays and asks of them only arithmetic operators, so the same lines
run on NumPy arrays (the specification) and on torch tensors of any dtype, layout and device;
``src/core/rule.hpp`` says them again in C++, in the same order. Every operation rounds on its own:
none may be fused, reordered or approximated.

All have one form: of the parameter, its gradient, three averages of gradients, the step's
coefficients (``hyper.Coefficients``, of the arrays' own precision), the exact square root and the
elementwise maximum, which keeps NaN and takes a number too; they return the parameter and the
averages after the step. A rule without one of the averages is given None for it, and returns None.
"""

from collections.abc import Callable
from typing import Any

Array = Any
"""numpy.ndarray or torch.Tensor: whatever brings +, -, * and / of its own."""
Unary = Callable[[Array], Array]
"""The exact square root."""
Binary = Callable[[Array, Array], Array]
"""The elementwise maximum, which keeps NaN."""
Stepped = tuple[Array, Array, Array, Array]
"""The parameter and the three averages after the step."""


def gradient(p: Array, grad: Array, c: Any) -> Array:
    """The gradient that averages see: unscaled, clipped, turned, with the coupled decay.

    ``g = grad * unscale * clip``, its negative to maximize, and ``l2 * p`` added to that.
    """
    g = grad
    if c.unscale != 1:
        g = g * c.unscale
    if c.clip != 1:
        g = g * c.clip
    if c.maximize:
        g = -g
    if c.l2:  # a term that is off is left out, not multiplied by zero: 0 * inf would be NaN
        g = g + c.l2 * p
    return g


def adam(
    p: Array, grad: Array, m: Array, v: Array, v_max: Array, c: Any, sqrt: Unary, maximum: Binary
) -> Stepped:
    """One step of Adam, AdamW or AMSGrad.

    Args:
        p: the parameter.
        grad: its gradient.
        m: the first moment, ``exp_avg``.
        v: the second moment, ``exp_avg_sq``.
        v_max: AMSGrad's largest second moment so far, ``max_exp_avg_sq``, or None.
        c: the step's coefficients.
        sqrt: the exact square root.
        maximum: the elementwise maximum.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), algorithm 1; Loshchilov & Hutter 2019
    (arXiv 1711.05101), algorithm 2; Reddi, Kale & Kumar 2018 (arXiv 1904.09237), algorithm 2.
    """
    g = gradient(p, grad, c)
    m = c.beta1 * m + c.one_minus_beta1 * g
    v = c.beta2 * v + c.one_minus_beta2 * (g * g)
    if v_max is not None:
        v_max = maximum(v_max, v)
    d = sqrt(v if v_max is None else v_max) * c.denom_scale + c.eps
    u = c.step_size * m / d
    if c.decay:
        u = u + c.decay * p
    return p - u, m, v, v_max


def sgd(
    p: Array, grad: Array, m: Array, v: None, w: None, c: Any, sqrt: Unary, maximum: Binary
) -> Stepped:
    """One step of gradient descent, with momentum or Nesterov's.

    Args:
        p: the parameter.
        grad: its gradient.
        m: the momentum, ``momentum_buffer``, or None without.
        v: None,
        w: and None.
        c: the step's coefficients; beta1 is the momentum, and beta2 what of it looks ahead.
        sqrt: not used,
        maximum: nor is this.

    Source: Polyak 1964; Sutskever et al. 2013, in the form of torch.optim.SGD's documentation.
    """
    u = g = gradient(p, grad, c)
    if m is not None:
        u = m = c.beta1 * m + c.one_minus_beta1 * g
        if c.beta2:
            u = g + c.beta2 * m
    return p - c.step_size * u, m, v, w


def rmsprop(
    p: Array, grad: Array, m: Array, v: Array, w: Array, c: Any, sqrt: Unary, maximum: Binary
) -> Stepped:
    """One step of RMSprop, plain or centered, with or without momentum.

    Args:
        p: the parameter.
        grad: its gradient.
        m: the gradient's average, ``grad_avg``, where it is centered, else None.
        v: the square's, ``square_avg``.
        w: the momentum, ``momentum_buffer``, or None without.
        c: the step's coefficients; beta1 is the momentum, and beta2 the averages' decay.
        sqrt: the exact square root.
        maximum: the elementwise maximum.

    Source: Hinton 2012, lecture 6e; Graves 2013 (arXiv 1308.0850), equations 38 to 45, in the form
    of torch.optim.RMSprop's documentation.
    """
    g = gradient(p, grad, c)
    s = v = c.beta2 * v + c.one_minus_beta2 * (g * g)
    if m is not None:
        m = c.beta2 * m + c.one_minus_beta2 * g
        s = maximum(v - m * m, 0.0)  # a variance, whose rounding may fall below
    u = g / (sqrt(s) + c.eps)
    if w is not None:
        u = w = c.beta1 * w + u
    return p - c.step_size * u, m, v, w


RULES: dict[str, Callable[..., Stepped]] = {"adam": adam, "sgd": sgd, "rmsprop": rmsprop}
"""Each by its name."""
