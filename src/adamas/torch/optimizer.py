"""``Adam``, ``AdamW``, ``SGD`` and ``RMSprop``, drop-ins for torch.optim's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..hyper import Hyper, RMSpropHyper, SGDHyper
from .base import Optimizer, Params


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
            4, about 2.1 and about 1.1 bytes a parameter for both; see ``adamas.formats``. With
            "float32", those of float64 parameters are in float64, which have no other format;
            AMSGrad's maximum is always in full.
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

    rule = Hyper
    """What its hyperparameters are kept in."""
    _later = Optimizer._later | {
        "amsgrad": False,
        "capturable": False,
        "fused": None,
        "decoupled_weight_decay": False,
    }

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
        defaults = {
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
        super().__init__(
            params, defaults, max_grad_norm, skip_nonfinite, moments, master_bits, offload
        )


class AdamW(Adam):
    """A drop-in for ``torch.optim.AdamW``: Adam whose decay shrinks the weights themselves.

    The arguments are ``Adam``'s, but for ``decoupled_weight_decay``, which is always on, and
    ``weight_decay``, which is 0.01 by default: a step subtracts ``lr * weight_decay * param``.

    Source: Loshchilov & Hutter 2019, arXiv 1711.05101; torch.optim.AdamW's documentation.
    """

    _later = Adam._later | {"decoupled_weight_decay": True}

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


class SGD(Optimizer):
    """A drop-in for ``torch.optim.SGD``: gradient descent, with momentum or Nesterov's.

    The equation is ``adamas.equations.sgd``; for what steps which parameters see ``Adam``.

    Args:
        params: parameters, named parameters, or parameter groups.
        lr: learning rate, at least 0; a number or a tensor of one element.
        momentum: at least 0; 0 keeps no momentum.
        dampening: what of a gradient the momentum leaves out, after its first.
        weight_decay: at least 0; ``weight_decay * param`` is added to the gradient.
        nesterov: step by the gradient and the momentum it has led to; needs momentum and no
            dampening.
        maximize: ascend.
        foreach: accepted and ignored, as ``Adam``'s.
        differentiable: let autograd record the step, in plain torch operations.
        fused: accepted and ignored, as ``Adam``'s.
        capturable: as ``Adam``'s; torch.optim.SGD, which counts no steps, has none.
        max_grad_norm: as ``Adam``'s, and so are all that follow,
        skip_nonfinite: this,
        moments: what the momentum is kept in: 4, 2, about 2.1 or about 1.1 bytes a parameter,
        master_bits: the weights that are trained where parameters have 16 bits,
        offload: and where states are.

    A state has a ``step`` beside torch's ``momentum_buffer``: of the steps taken, from the first
    that there was momentum for.

    Raises:
        ValueError: as ``Adam``; Nesterov's without momentum, or with dampening.

    Source: Sutskever et al. 2013; torch.optim.SGD's documentation.
    """

    rule = SGDHyper
    """What its hyperparameters are kept in."""
    _later = Optimizer._later | {"nesterov": False, "fused": None}

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        moments: str = "float32",
        master_bits: int | None = None,
        offload: str | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        if capturable:  # which torch's groups have not
            defaults["capturable"] = True
        super().__init__(
            params, defaults, max_grad_norm, skip_nonfinite, moments, master_bits, offload
        )


class RMSprop(Optimizer):
    """A drop-in for ``torch.optim.RMSprop``, plain or centered, with or without momentum.

    The equation is ``adamas.equations.rmsprop``; for what steps which parameters see ``Adam``.

    Args:
        params: parameters, named parameters, or parameter groups.
        lr: learning rate, at least 0; a number or a tensor of one element.
        alpha: decay rate of the squares' average, in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: at least 0; ``weight_decay * param`` is added to the gradient.
        momentum: at least 0; 0 keeps none.
        centered: divide by the gradient's deviation from its average; only with
            ``moments="float32"``.
        capturable: as ``Adam``'s.
        foreach: accepted and ignored, as ``Adam``'s.
        maximize: ascend.
        differentiable: let autograd record the step, in plain torch operations.
        max_grad_norm: as ``Adam``'s, and so are all that follow,
        skip_nonfinite: this,
        moments: what the squares' average is kept in: 4, 2, about 2.1 or about 1.1 bytes a
            parameter; the momentum stays in full,
        master_bits: the weights that are trained where parameters have 16 bits,
        offload: and where states are.

    Raises:
        ValueError: as ``Adam``.

    Source: Hinton 2012, lecture 6e; torch.optim.RMSprop's documentation.
    """

    rule = RMSpropHyper
    """What its hyperparameters are kept in."""
    _later = Optimizer._later | {"momentum": 0, "centered": False, "capturable": False}

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        moments: str = "float32",
        master_bits: int | None = None,
        offload: str | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        super().__init__(
            params, defaults, max_grad_norm, skip_nonfinite, moments, master_bits, offload
        )
