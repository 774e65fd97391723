"""Hyperparameters: their validation, and the coefficients of one step that follow from them."""

from __future__ import annotations

import math
import struct
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

_BITS = 128  # fraction bits of the fixed-point powers below
_ONE = 1 << _BITS


class Coefficients(NamedTuple):
    """What a step multiplies with, in the order of ``Coefficients`` in ``src/core/rule.hpp``."""

    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    step_size: float  # lr / (1 - beta1^t)
    denom_scale: float  # 1 / sqrt(1 - beta2^t)
    eps: float
    decay: float  # lr * weight_decay where it is decoupled, else 0
    l2: float  # weight_decay where it is coupled, else 0
    maximize: float  # 1 or 0
    unscale: float  # 1 / loss scale: the first that a gradient is multiplied with
    clip: float  # the second: max_norm / norm where that is below 1
    step: float  # its number, for the dithers; exact also beside float32


@dataclass(frozen=True)
class Hyper:
    """The hyperparameters of Adam and AdamW, checked.

    Args:
        lr: learning rate, finite and at least 0.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the denominator, finite and at least 0. Where it is or would round to zero,
            the smallest positive number stands for it: a weight without gradient stays, not NaN.
        weight_decay: finite and at least 0.
        amsgrad: divide by the largest second moment so far.
        maximize: ascend.
        decoupled_weight_decay: shrink the weight itself (AdamW), not add to its gradient (Adam).

    Raises:
        ValueError: a hyperparameter is out of its range.
        TypeError: a hyperparameter is not a number.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    maximize: bool = False
    decoupled_weight_decay: bool = False

    def __post_init__(self) -> None:
        try:
            beta1, beta2 = self.betas
        except (TypeError, ValueError):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas!r}") from None
        for name in ("lr", "eps", "weight_decay"):
            value = _number(name, getattr(self, name))
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {value!r}")
            object.__setattr__(self, name, value)
        for name, value in (("beta1", beta1), ("beta2", beta2)):
            if not 0.0 <= _number(name, value) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {value!r}")
        object.__setattr__(self, "betas", (float(beta1), float(beta2)))
        for name in ("amsgrad", "maximize", "decoupled_weight_decay"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise TypeError(f"{name} must be True or False, got {value!r}")
            object.__setattr__(self, name, bool(value))

    def coefficients(
        self, step: int, compute: str = "float32", unscale: float = 1.0, clip: float = 1.0
    ) -> Coefficients:
        """The coefficients of step ``t``, in float64 and then rounded once to the compute type.

        ``step_size = lr / (1 - beta1^t)``, ``denom_scale = 1 / sqrt(1 - beta2^t)``,
        ``decay = lr * weight_decay``.

        Args:
            step: the step's number ``t``, counted from 1.
            compute: "float32" or "float64".
            unscale: 1 / the scale of the loss and so of the gradients.
            clip: what the gradients, unscaled, are multiplied with to clip them.

        Raises:
            ValueError: the step is below 1, or a coefficient is too large for the compute type.
        """
        if step < 1:
            raise ValueError(
                f"step must count from 1, got {step}: at 0 the bias correction divides by zero"
            )
        beta1, beta2 = self.betas
        decoupled = self.decoupled_weight_decay
        exact = Coefficients(
            beta1=beta1,
            one_minus_beta1=1.0 - beta1,
            beta2=beta2,
            one_minus_beta2=1.0 - beta2,
            step_size=self.lr / bias_correction(beta1, step),
            denom_scale=1.0 / math.sqrt(bias_correction(beta2, step)),
            # Not max(): where the thread flushes denormals, it would take the smallest for zero.
            eps=self.eps if self.eps > _SMALLEST[compute] else _SMALLEST[compute],
            decay=self.lr * self.weight_decay if decoupled else 0.0,
            l2=0.0 if decoupled else self.weight_decay,
            maximize=float(self.maximize),
            unscale=unscale,
            clip=clip,
            step=step,
        )
        largest = _LARGEST[compute]
        if max(exact[:-3]) > largest:  # unscale and clip may be anything, as gradients may
            name, value = next(item for item in exact._asdict().items() if item[1] > largest)
            raise ValueError(
                f"{name} = {value!r} exceeds {compute}: lower it"
                + (", or use float64 parameters" if compute == "float32" else "")
            )
        return exact if compute == "float64" else _to_float32(exact)


@lru_cache(maxsize=8)  # groups mostly share them
def bias_correction(beta: float, step: int) -> float:
    """``1 - beta^step``, rounded once.

    The power is taken in integers of 128 fraction bits. By logarithm and exponential it would
    differ between processors: glibc's have other last bits where there is FMA than where not.
    """
    power = _ONE
    squarings = _squarings(beta)
    for bit in range(step.bit_length()):
        if step >> bit & 1:
            power = power * squarings[bit] >> _BITS
    return (_ONE - power) / _ONE


@lru_cache(maxsize=64)
def _squarings(beta: float) -> tuple[int, ...]:
    """``beta^(2^k)`` in fixed point for each bit of a 64-bit step."""
    numerator, denominator = beta.as_integer_ratio()
    powers = [(numerator << _BITS) // denominator]
    for _ in range(63):
        powers.append(powers[-1] * powers[-1] >> _BITS)
    return tuple(powers)


_SMALLEST = {"float32": 2.0**-149, "float64": 2.0**-1074}


_LARGEST = {"float32": (2 - 2.0**-23) * 2.0**127, "float64": sys.float_info.max}
_FLOATS = struct.Struct(f"{len(Coefficients._fields) - 1}f")


def _to_float32(exact: Coefficients) -> Coefficients:
    rounded = Coefficients._make((*_FLOATS.unpack(_FLOATS.pack(*exact[:-1])), exact.step))
    # Where the thread flushes denormals, an eps that is one has become zero.
    return rounded if rounded.eps else rounded._replace(eps=exact.eps)


def _number(name: str, value: object) -> float:
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        return float(value)  # type: ignore[arg-type]  # tensors and NumPy scalars convert too
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    except OverflowError:
        raise ValueError(f"{name} must be finite, got a number beyond float64") from None
