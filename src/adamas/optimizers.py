"""The NumPy front end: an optimizer for each rule, over arrays, in place."""

from __future__ import annotations

from .arrays import Arrays, Optimizer
from .hyper import Hyper, RMSpropHyper, SGDHyper


class Adam(Optimizer):
    """Adam over NumPy arrays, which it updates in place.

    The equation is ``adamas.equations.adam``; see ``Optimizer`` for what all have in common.

    Args:
        params: an array, or a sequence or mapping of arrays: writable, of float16, float32, float64
            or, as the package ml_dtypes has it, bfloat16, of any shape, no two of them sharing
            memory.
        lr: learning rate, at least 0.
        betas: decay rates of the first and second moment, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: at least 0; ``weight_decay * param`` is added to the gradient.
        amsgrad: divide by the largest second moment so far.
        maximize: ascend.
        moments: what both moments are kept in: "float32" (8 bytes an element; 16 beside float64,
            whose are kept in that), "bfloat16" (4), "int8" (about 2.1) or "int4" (about 1.1). The
            last three are for arrays of float32, bfloat16 and float16.
        master_bits: of the float32 master weight that is trained where an array has 16 bits, and
            of which the array is a rounding. 32, the default None too: all of it, which adds 2
            bytes an element to bfloat16 and 4 to float16. 24: the first 24 bits, only beside
            bfloat16, which adds 1 byte. 16: none; the array itself is trained. Where bits are
            lost, they are rounded so that updates count on average, however small.

    Raises:
        ValueError: a hyperparameter is out of range, a format is unknown or none that an array's
            dtype can have, there are no arrays, or an array is read-only or shares memory with
            another.
        TypeError: something is no array, or of another type.

    Source: Kingma & Ba 2015, arXiv 1412.6980; the arguments are torch.optim.Adam's.
    """

    def __init__(
        self,
        params: Arrays,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        maximize: bool = False,
        moments: str = "float32",
        master_bits: int | None = None,
    ) -> None:
        hyper = Hyper(lr, betas, eps, weight_decay, amsgrad, maximize)
        super().__init__(params, hyper, moments, master_bits)


class AdamW(Optimizer):
    """AdamW over NumPy arrays: Adam whose weight decay shrinks the weights themselves.

    The arguments are ``Adam``'s, but ``weight_decay`` is 0.01 by default, and a step subtracts
    ``lr * weight_decay * param`` instead of adding to the gradient.

    Source: Loshchilov & Hutter 2019, arXiv 1711.05101; the arguments are torch.optim.AdamW's.
    """

    def __init__(
        self,
        params: Arrays,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        maximize: bool = False,
        moments: str = "float32",
        master_bits: int | None = None,
    ) -> None:
        hyper = Hyper(lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay=True)
        super().__init__(params, hyper, moments, master_bits)


class SGD(Optimizer):
    """Gradient descent over NumPy arrays, with momentum or Nesterov's.

    The equation is ``adamas.equations.sgd``. In int8 and int4 a momentum is kept in both codes of
    its words, of 2.1 and 1.1 bytes an element; below 3e-23 in size it is zero there.

    Args:
        params: as ``Adam``'s.
        lr: learning rate, at least 0.
        momentum: at least 0; 0 keeps no state but the step count.
        dampening: what of a gradient the momentum leaves out, after the first.
        weight_decay: at least 0; ``weight_decay * param`` is added to the gradient.
        nesterov: step by the gradient and the momentum it has led to.
        maximize: ascend.
        moments: what the momentum is kept in, as ``Adam``'s,
        master_bits: and the weights.

    Raises:
        ValueError, TypeError: as ``Adam``; Nesterov's without momentum, or with dampening.

    Source: Sutskever et al. 2013; the arguments are torch.optim.SGD's.
    """

    def __init__(
        self,
        params: Arrays,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        moments: str = "float32",
        master_bits: int | None = None,
    ) -> None:
        hyper = SGDHyper(lr, momentum, dampening, weight_decay, nesterov, maximize)
        super().__init__(params, hyper, moments, master_bits)


class RMSprop(Optimizer):
    """RMSprop over NumPy arrays, plain or centered, with or without momentum.

    The equation is ``adamas.equations.rmsprop``.

    Args:
        params: as ``Adam``'s.
        lr: learning rate, at least 0.
        alpha: decay rate of the squares' average, in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: at least 0; ``weight_decay * param`` is added to the gradient.
        momentum: at least 0; 0 keeps none.
        centered: divide by the gradient's deviation from its average; only with
            ``moments="float32"``.
        maximize: ascend.
        moments: what the squares' average is kept in, as ``Adam``'s; the momentum stays in full.
        master_bits: as ``Adam``'s.

    Raises:
        ValueError, TypeError: as ``Adam``.

    Source: Hinton 2012, lecture 6e; the arguments are torch.optim.RMSprop's.
    """

    def __init__(
        self,
        params: Arrays,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        maximize: bool = False,
        moments: str = "float32",
        master_bits: int | None = None,
    ) -> None:
        hyper = RMSpropHyper(lr, alpha, eps, weight_decay, momentum, centered, maximize)
        super().__init__(params, hyper, moments, master_bits)
