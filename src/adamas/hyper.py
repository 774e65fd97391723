"""Hyperparameters: their validation, and the coefficients of one step that follow from them."""

from __future__ import annotations

import math
import struct
import sys
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from .bias import bias_correction


class Coefficients(NamedTuple):
    """What a step multiplies with, in the order of ``Coefficients`` in ``src/core/rule.hpp``.

    They are called for what they are to Adam; other rules say what they take them for.

    Attributes:
        beta1: decay rate of the first moment.
        one_minus_beta1: ``1 - beta1``.
        beta2: decay rate of the second moment.
        one_minus_beta2: ``1 - beta2``.
        step_size: ``lr / (1 - beta1^t)``.
        denom_scale: ``1 / sqrt(1 - beta2^t)``.
        eps: added to the denominator, above 0.
        decay: ``lr * weight_decay`` where it is decoupled, else 0.
        l2: ``weight_decay`` where it is coupled, else 0.
        maximize: 1 or 0.
        unscale: 1 / loss scale, the first that a gradient is multiplied with.
        clip: the second, ``max_norm / norm`` where that is below 1.
        step: its number, for the dithers; exact also beside float32.
    """

    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    step_size: float
    denom_scale: float
    eps: float
    decay: float
    l2: float
    maximize: float
    unscale: float
    clip: float
    step: float


@dataclass(frozen=True)
class Rule:
    """The hyperparameters of a rule, checked: ``Hyper``, ``SGDHyper`` or ``RMSpropHyper``.

    Attributes:
        rule: its name in ``equations``.
        structural: the options that say which averages there are, or what they are of.
    """

    rule: ClassVar[str]
    structural: ClassVar[tuple[str, ...]]
    # What the last coefficients were asked for, and they: mostly, the next are nearly the same.
    _last: ClassVar[tuple[tuple[bool, str, float, float], Coefficients] | None] = None

    @property
    def name(self) -> str:
        """What the optimizer is called."""
        raise NotImplementedError

    @property
    def keys(self) -> tuple[str, str, str]:
        """What a state calls the rule's three averages, "" for those that it does without."""
        raise NotImplementedError

    def coefficients(
        self, step: int, compute: str = "float32", unscale: float = 1.0, clip: float = 1.0
    ) -> Coefficients:
        """The coefficients of step ``t``, in float64 and then rounded once to the compute type.

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
        kind = step == 1, compute, unscale, clip
        last = self._last  # looked at once: optimizers in other threads may share the object
        if last is not None and last[0] == kind and unscale and clip:  # 0 equals -0
            scales = self._scales(step)
            if max(scales) <= _LARGEST[compute]:  # or else what follows says so
                rounded = scales if compute == "float64" else _TWO.unpack(_TWO.pack(*scales))
                return Coefficients._make((*last[1][:4], *rounded, *last[1][6:-1], step))
        found = self._checked(step, compute, unscale, clip)
        object.__setattr__(self, "_last", (kind, found))
        return found

    def _checked(self, step: int, compute: str, unscale: float, clip: float) -> Coefficients:
        exact = self._exact(step, unscale, clip)
        # Not max(): where the thread flushes denormals, it would take the smallest for zero.
        if not exact.eps > _SMALLEST[compute]:
            exact = exact._replace(eps=_SMALLEST[compute])
        largest = _LARGEST[compute]
        # Unscale and clip may be anything, as gradients may; below zero a dampening may lead.
        if max(exact[:-3]) > largest or exact.one_minus_beta1 < -largest:
            name, value = next(item for item in exact._asdict().items() if abs(item[1]) > largest)
            raise ValueError(
                f"{name} = {value!r} exceeds {compute}: {'lower' if value > 0 else 'raise'} it"
                + (", or use float64 parameters" if compute == "float32" else "")
            )
        return exact if compute == "float64" else _to_float32(exact)

    def _exact(self, step: int, unscale: float, clip: float) -> Coefficients:
        """Those of a step in float64."""
        raise NotImplementedError

    def _scales(self, step: int) -> tuple[float, float]:
        """Of them ``step_size`` and ``denom_scale``: from the second step on, no others change."""
        raise NotImplementedError

    def _check(self, *names: str) -> None:
        """Makes these fields floats that are finite and at least 0."""
        for name in names:
            value = _number(name, getattr(self, name))
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {value!r}")
            object.__setattr__(self, name, value)

    def _check_flags(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, str):
                raise TypeError(f"{name} must be True or False, got {value!r}")
            object.__setattr__(self, name, bool(value))


@dataclass(frozen=True)
class Hyper(Rule):
    """The hyperparameters of Adam and AdamW, checked.

    ``step_size = lr / (1 - beta1^t)``, ``denom_scale = 1 / sqrt(1 - beta2^t)``,
    ``decay = lr * weight_decay``.

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
    rule: ClassVar[str] = "adam"
    """Its name in ``equations``."""
    structural: ClassVar[tuple[str, ...]] = ("amsgrad", "decoupled_weight_decay")
    """The options that say which averages there are, or what they are of."""

    def __post_init__(self) -> None:
        try:
            beta1, beta2 = self.betas
        except (TypeError, ValueError):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas!r}") from None
        self._check("lr", "eps", "weight_decay")
        betas = _rate("beta1", beta1), _rate("beta2", beta2)
        object.__setattr__(self, "betas", betas)
        self._check_flags("amsgrad", "maximize", "decoupled_weight_decay")

    @property
    def name(self) -> str:
        """Adam, or AdamW where the weight decay is decoupled."""
        return "AdamW" if self.decoupled_weight_decay else "Adam"

    @property
    def keys(self) -> tuple[str, str, str]:
        """Both moments and, for AMSGrad, the largest second one."""
        return "exp_avg", "exp_avg_sq", "max_exp_avg_sq" if self.amsgrad else ""

    def _exact(self, step: int, unscale: float, clip: float) -> Coefficients:
        beta1, beta2 = self.betas
        step_size, denom_scale = self._scales(step)
        decoupled = self.decoupled_weight_decay
        return Coefficients(
            beta1=beta1,
            one_minus_beta1=1.0 - beta1,
            beta2=beta2,
            one_minus_beta2=1.0 - beta2,
            step_size=step_size,
            denom_scale=denom_scale,
            eps=self.eps,
            decay=self.lr * self.weight_decay if decoupled else 0.0,
            l2=0.0 if decoupled else self.weight_decay,
            maximize=float(self.maximize),
            unscale=unscale,
            clip=clip,
            step=step,
        )

    def _scales(self, step: int) -> tuple[float, float]:
        beta1, beta2 = self.betas
        step_size = self.lr / bias_correction(beta1, step)
        return step_size, 1.0 / math.sqrt(bias_correction(beta2, step))


@dataclass(frozen=True)
class SGDHyper(Rule):
    """The hyperparameters of gradient descent, checked.

    ``beta1 = momentum``, ``one_minus_beta1 = 1 - dampening`` but 1 at the first step, which begins
    the momentum with the gradient, ``beta2 = momentum`` where it is Nesterov's, else 0.

    Args:
        lr: learning rate, finite and at least 0.
        momentum: finite and at least 0; 0 keeps none.
        dampening: what of a gradient the momentum leaves out, finite.
        weight_decay: finite and at least 0; ``weight_decay * param`` is added to the gradient.
        nesterov: step by the gradient and the momentum it has led to; needs momentum and no
            dampening.
        maximize: ascend.

    Raises:
        ValueError: a hyperparameter is out of its range.
        TypeError: a hyperparameter is not a number.
    """

    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    rule: ClassVar[str] = "sgd"
    """Its name in ``equations``."""
    structural: ClassVar[tuple[str, ...]] = ("momentum",)
    """The options that say which averages there are, or what they are of."""

    def __post_init__(self) -> None:
        self._check("lr", "momentum", "weight_decay")
        dampening = _number("dampening", self.dampening)
        if not math.isfinite(dampening):
            raise ValueError(f"dampening must be finite, got {dampening!r}")
        object.__setattr__(self, "dampening", dampening)
        self._check_flags("nesterov", "maximize")
        if self.nesterov and not (self.momentum > 0 and dampening == 0):
            raise ValueError(
                f"nesterov=True needs a momentum above 0 and no dampening, got momentum "
                f"{self.momentum!r} and dampening {dampening!r}"
            )

    @property
    def name(self) -> str:
        """SGD."""
        return "SGD"

    @property
    def keys(self) -> tuple[str, str, str]:
        """The momentum, if there is any."""
        return "momentum_buffer" if self.momentum else "", "", ""

    def _exact(self, step: int, unscale: float, clip: float) -> Coefficients:
        step_size, denom_scale = self._scales(step)
        return Coefficients(
            beta1=self.momentum,
            one_minus_beta1=1.0 if step == 1 else 1.0 - self.dampening,
            beta2=self.momentum if self.nesterov else 0.0,
            one_minus_beta2=0.0,
            step_size=step_size,
            denom_scale=denom_scale,
            eps=0.0,
            decay=0.0,
            l2=self.weight_decay,
            maximize=float(self.maximize),
            unscale=unscale,
            clip=clip,
            step=step,
        )

    def _scales(self, step: int) -> tuple[float, float]:
        return self.lr, 0.0


@dataclass(frozen=True)
class RMSpropHyper(Rule):
    """The hyperparameters of RMSprop, checked.

    ``beta1 = momentum``, ``beta2 = alpha``, ``step_size = lr``.

    Args:
        lr: learning rate, finite and at least 0.
        alpha: decay rate of the averages, in [0, 1).
        eps: added to the denominator, as ``Hyper``'s.
        weight_decay: finite and at least 0; ``weight_decay * param`` is added to the gradient.
        momentum: finite and at least 0; 0 keeps none.
        centered: divide by the gradient's deviation from its average, not by its size.
        maximize: ascend.

    Raises:
        ValueError: a hyperparameter is out of its range.
        TypeError: a hyperparameter is not a number.
    """

    lr: float = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False
    maximize: bool = False
    rule: ClassVar[str] = "rmsprop"
    """Its name in ``equations``."""
    structural: ClassVar[tuple[str, ...]] = ("centered", "momentum")
    """The options that say which averages there are, or what they are of."""

    def __post_init__(self) -> None:
        self._check("lr", "eps", "weight_decay", "momentum")
        object.__setattr__(self, "alpha", _rate("alpha", self.alpha))
        self._check_flags("centered", "maximize")

    @property
    def name(self) -> str:
        """RMSprop."""
        return "RMSprop"

    @property
    def keys(self) -> tuple[str, str, str]:
        """The gradient's average if it is centered, the square's, and the momentum if any."""
        first = "grad_avg" if self.centered else ""
        return first, "square_avg", "momentum_buffer" if self.momentum else ""

    def _exact(self, step: int, unscale: float, clip: float) -> Coefficients:
        step_size, denom_scale = self._scales(step)
        return Coefficients(
            beta1=self.momentum,
            one_minus_beta1=1.0,
            beta2=self.alpha,
            one_minus_beta2=1.0 - self.alpha,
            step_size=step_size,
            denom_scale=denom_scale,
            eps=self.eps,
            decay=0.0,
            l2=self.weight_decay,
            maximize=float(self.maximize),
            unscale=unscale,
            clip=clip,
            step=step,
        )

    def _scales(self, step: int) -> tuple[float, float]:
        return self.lr, 1.0


_SMALLEST = {"float32": 2.0**-149, "float64": 2.0**-1074}
_LARGEST = {"float32": (2 - 2.0**-23) * 2.0**127, "float64": sys.float_info.max}
_FLOATS = struct.Struct(f"{len(Coefficients._fields) - 1}f")
_TWO = struct.Struct("2f")


def _to_float32(exact: Coefficients) -> Coefficients:
    rounded = Coefficients._make((*_FLOATS.unpack(_FLOATS.pack(*exact[:-1])), exact.step))
    # Where the thread flushes denormals, an eps that is one has become zero.
    return rounded if rounded.eps else rounded._replace(eps=exact.eps)


def _rate(name: str, value: object) -> float:
    rate = _number(name, value)
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")
    return rate


def _number(name: str, value: object) -> float:
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        return float(value)  # type: ignore[arg-type]  # tensors and NumPy scalars convert too
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    except OverflowError:
        raise ValueError(f"{name} must be finite, got a number beyond float64") from None
