"""The update rules, each written once.

A rule is a pure function of arrays and asks of them only arithmetic operators, so the same lines
run on NumPy arrays (the specification) and on torch tensors of any dtype, layout and device;
``src/core/rule.hpp`` says them again in C++, name for name. Every operation rounds on its own: none
may be fused, reordered or approximated.
"""

from collections.abc import Callable
from typing import Any

Array = Any
"""numpy.ndarray or torch.Tensor: whatever brings +, -, * and / of its own."""


def adam(
    p: Array,
    grad: Array,
    m: Array,
    v: Array,
    v_max: Array,
    c: Any,
    sqrt: Callable[[Array], Array],
    maximum: Callable[[Array, Array], Array],
) -> tuple[Array, Array, Array, Array]:
    """One step of Adam, AdamW or AMSGrad.

    Args:
        p: the parameter.
        grad: its gradient.
        m: the first moment, ``exp_avg``.
        v: the second moment, ``exp_avg_sq``.
        v_max: AMSGrad's largest second moment so far, ``max_exp_avg_sq``, or None.
        c: the step's coefficients (``hyper.Coefficients``), of the arrays' own precision.
        sqrt: the exact square root.
        maximum: the elementwise maximum, which keeps NaN.

    Returns:
        ``p``, ``m``, ``v`` and ``v_max`` after the step.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), algorithm 1; Loshchilov & Hutter 2019
    (arXiv 1711.05101), algorithm 2; Reddi, Kale & Kumar 2018 (arXiv 1904.09237), algorithm 2.
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
    m = c.beta1 * m + c.one_minus_beta1 * g
    v = c.beta2 * v + c.one_minus_beta2 * (g * g)
    if v_max is not None:
        v_max = maximum(v_max, v)
    d = sqrt(v if v_max is None else v_max) * c.denom_scale + c.eps
    u = c.step_size * m / d
    if c.decay:
        u = u + c.decay * p
    return p - u, m, v, v_max
