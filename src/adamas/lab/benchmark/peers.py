"""The contenders: adamas and every other AdamW that may be installed beside it; Adam's parents.

Each one is built on the same parameters and gradients, which they share, and keeps moments of its
own. A new peer is one function and one row of ``CONTENDERS``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .shapes import Shape

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]

LR, BETA1, BETA2, EPS, WEIGHT_DECAY = 1e-3, 0.9, 0.999, 1e-8, 0.01
BETAS = (BETA1, BETA2)
ADAMW_ACCESSES = 7
"""Elements a parameter that a step of AdamW moves: it reads p, g, m, v and writes p, m, v."""

_PROBE_SHAPES: tuple[Shape, ...] = ((8192,), (64, 33), (7,))
_PROBE_STEPS = 3


class Problem:
    """Parameters and gradients of given shapes, filled once and shared by all contenders.

    Args:
        shapes: the shapes of the tensors.
        dtype: "float32" or "float64".
    """

    def __init__(self, shapes: Sequence[Shape], dtype: str) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        kind = getattr(torch, dtype)

        def normal(scale: float) -> list[torch.Tensor]:
            return [
                torch.empty(shape, dtype=kind).normal_(0, scale, generator=generator)
                for shape in shapes
            ]

        self.dtype = dtype
        self.parameters, self.gradients = normal(1.0), normal(0.01)

    @property
    def arrays(self) -> list[Array]:
        """The parameters as NumPy arrays that share their memory."""
        return [tensor.numpy() for tensor in self.parameters]

    @property
    def gradient_arrays(self) -> list[Array]:
        """The gradients as NumPy arrays that share their memory."""
        return [tensor.numpy() for tensor in self.gradients]

    def torch_parameters(self) -> list[torch.nn.Parameter]:
        """Fresh torch parameters that share the memory, each with its gradient."""
        import torch

        parameters = [torch.nn.Parameter(tensor) for tensor in self.parameters]
        for parameter, gradient in zip(parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return parameters


@dataclass(frozen=True)
class Optimizer:
    """A contender built on a problem."""

    step: Callable[[], object]
    read: Callable[[], list[Array]] | None = None
    """Copies the parameters out where the contender does not step the problem's own in place."""


@dataclass(frozen=True)
class Contender:
    """An AdamW to measure, or one of Adam's parents."""

    key: str
    """The name on the command line."""
    title: str
    module: str
    """The package whose import tells whether the contender is installed."""
    build: Callable[[Problem], Optimizer]
    state: float = 2.0
    """Memory it needs beside the shared tensors, in elements of the dtype a parameter."""
    note: str = ""
    tolerance: float = 0.05
    """How far its update may be from AdamW's after a few steps, beside the update's own size."""
    accesses: int = ADAMW_ACCESSES
    """What a step must move at least, in elements a parameter."""
    plain: Callable[[Problem], Optimizer] | None = None
    """The same rule as plainly as can be, where it is not AdamW."""

    @property
    def installed(self) -> bool:
        """Whether the package can be found; importing it may still fail."""
        return find_spec(self.module) is not None

    @property
    def version(self) -> str:
        """The installed version of the package, or an empty string."""
        try:
            return version(self.module)
        except PackageNotFoundError:
            return ""


def _torch(problem: Problem, **options: bool) -> Optimizer:
    import torch

    parameters = problem.torch_parameters()
    optimizer = torch.optim.AdamW(parameters, LR, BETAS, EPS, WEIGHT_DECAY, **options)
    return Optimizer(optimizer.step)


def _parent(problem: Problem, library: str, rule: str, **settings: Any) -> Optimizer:
    module = import_module(library)
    return Optimizer(getattr(module, rule)(problem.torch_parameters(), LR, **settings).step)


def _parents() -> Iterator[Contender]:
    """Gradient descent, momentum and RMSProp, each of adamas and of torch."""
    rules: tuple[tuple[str, str, dict[str, Any], int, int], ...] = (
        ("SGD", "SGD", {}, 0, 3),
        ("momentum", "SGD", {"momentum": 0.9}, 1, 5),
        ("RMSprop", "RMSprop", {}, 1, 5),
    )
    for name, rule, settings, state, accesses in rules:
        fastest: dict[str, Any] = {"fused": True} if rule == "SGD" else {"foreach": True}
        plain = partial(_parent, library="torch.optim", rule=rule, foreach=False, **settings)
        own = partial(_parent, library="adamas.torch", rule=rule, **settings)
        theirs = partial(_parent, library="torch.optim", rule=rule, **settings, **fastest)
        yield Contender(
            f"adamas-{name.lower()}",
            f"adamas {name}",
            "adamas",
            own,
            state,
            accesses=accesses,
            plain=plain,
        )
        yield Contender(
            f"torch-{name.lower()}",
            f"torch {name}, {next(iter(fastest))}",
            "torch",
            theirs,
            state + 2 * (rule == "RMSprop"),
            accesses=accesses,
            plain=plain,
        )


def _adamas_torch(problem: Problem) -> Optimizer:
    module = import_module("adamas.torch")
    parameters = problem.torch_parameters()
    return Optimizer(module.AdamW(parameters, LR, BETAS, EPS, WEIGHT_DECAY).step)


def _adamas_compact(problem: Problem, moments: str) -> Optimizer:
    module = import_module("adamas.torch")
    parameters = problem.torch_parameters()
    return Optimizer(module.AdamW(parameters, LR, BETAS, EPS, WEIGHT_DECAY, moments=moments).step)


def _adamas_lean(problem: Problem) -> Optimizer:
    """Weights and gradients in 16 bits, of its own."""
    import torch

    module = import_module("adamas.torch")
    parameters = [torch.nn.Parameter(tensor.bfloat16()) for tensor in problem.parameters]
    for parameter, gradient in zip(parameters, problem.gradients, strict=True):
        parameter.grad = gradient.bfloat16()
    formats = {"moments": "int8", "master_bits": 24}
    optimizer = module.AdamW(parameters, LR, BETAS, EPS, WEIGHT_DECAY, **formats)
    return Optimizer(optimizer.step, lambda: [p.detach().float().numpy() for p in parameters])


def _adamas_numpy(problem: Problem) -> Optimizer:
    module = import_module("adamas")
    optimizer = module.AdamW(problem.arrays, LR, BETAS, EPS, WEIGHT_DECAY)
    return Optimizer(partial(optimizer.step, problem.gradient_arrays))


def _deepspeed(problem: Problem) -> Optimizer:
    # It compiles its kernel on first use: with the ninja of this environment, activated or not.
    scripts = str(Path(sys.executable).parent)
    if scripts not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = scripts + os.pathsep + os.environ["PATH"]
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    module = import_module("deepspeed.ops.adam")
    parameters = problem.torch_parameters()
    optimizer = module.DeepSpeedCPUAdam(
        parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, adamw_mode=True
    )
    return Optimizer(optimizer.step)


def _bitsandbytes(problem: Problem) -> Optimizer:
    module = import_module("bitsandbytes.optim")
    parameters = problem.torch_parameters()
    return Optimizer(module.AdamW8bit(parameters, LR, BETAS, EPS, WEIGHT_DECAY).step)


def _optax(problem: Problem) -> Optimizer:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax, optax = import_module("jax"), import_module("optax")
    if problem.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    transform = optax.adamw(LR, BETA1, BETA2, EPS, weight_decay=WEIGHT_DECAY)
    gradients = [jax.numpy.asarray(array) for array in problem.gradient_arrays]
    # Copies: a donated buffer must be JAX's own.
    parameters = [jax.numpy.array(array, copy=True) for array in problem.arrays]
    state = transform.init(parameters)

    def update(parameters: object, state: object, gradients: object) -> tuple[object, object]:
        updates, state = transform.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state

    jitted = jax.jit(update, donate_argnums=(0, 1))

    def step() -> None:
        nonlocal parameters, state
        parameters, state = jitted(parameters, state, gradients)
        jax.block_until_ready((parameters, state))

    return Optimizer(step, lambda: [np.asarray(parameter) for parameter in parameters])


def _numpy(problem: Problem) -> Optimizer:
    params, grads = problem.arrays, problem.gradient_arrays
    exp_avgs = [np.zeros_like(p) for p in params]
    exp_avg_sqs = [np.zeros_like(p) for p in params]
    t = 0

    def step() -> None:
        nonlocal t
        t += 1
        step_size = LR / (1 - BETA1**t)
        denom_scale = (1 - BETA2**t) ** -0.5
        for p, g, m, v in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
            m *= BETA1
            m += (1 - BETA1) * g
            v *= BETA2
            v += (1 - BETA2) * (g * g)
            p *= 1 - LR * WEIGHT_DECAY
            p -= step_size * m / (np.sqrt(v) * denom_scale + EPS)

    return Optimizer(step)


def _numpy_out(problem: Problem) -> Optimizer:
    params, grads = problem.arrays, problem.gradient_arrays
    exp_avgs = [np.zeros_like(p) for p in params]
    exp_avg_sqs = [np.zeros_like(p) for p in params]
    buffer = np.empty(max(p.size for p in params), problem.dtype)
    scratch = [buffer[: p.size].reshape(p.shape) for p in params]
    t = 0

    def step() -> None:
        nonlocal t
        t += 1
        step_size = LR / (1 - BETA1**t)
        denom_scale = (1 - BETA2**t) ** -0.5
        for p, g, m, v, a in zip(params, grads, exp_avgs, exp_avg_sqs, scratch, strict=True):
            m *= BETA1
            np.multiply(g, 1 - BETA1, out=a)
            m += a
            v *= BETA2
            np.multiply(g, g, out=a)
            a *= 1 - BETA2
            v += a
            p *= 1 - LR * WEIGHT_DECAY
            np.sqrt(v, out=a)
            a *= denom_scale
            a += EPS
            np.divide(m, a, out=a)
            a *= step_size
            p -= a

    return Optimizer(step)


CONTENDERS = {
    c.key: c
    for c in (
        # Those that the bars compare come first: where memory is short, the last are left out.
        Contender("adamas", "adamas (PyTorch)", "adamas", _adamas_torch),
        Contender("adamas-numpy", "adamas (NumPy)", "adamas", _adamas_numpy),
        Contender("torch-fused", "torch fused", "torch", partial(_torch, fused=True)),
        *(
            Contender(
                f"adamas-{moments}",
                f"adamas {moments}",
                "adamas",
                partial(_adamas_compact, moments=moments),
                elements,
                f"{moments} moments",
                tolerance,
            )
            for moments, elements, tolerance in (
                ("bfloat16", 1, 0.05),
                ("int8", 0.53, 0.05),
                ("int4", 0.28, 0.3),
            )
        ),
        Contender(
            "adamas-lean",
            "adamas 16-bit, int8",
            "adamas",
            _adamas_lean,
            1.8,
            "bfloat16 weights of 24 master bits, int8 moments",
            2.0,  # its weights begin rounded, by about as much as these steps change them
        ),
        Contender("torch", "torch default", "torch", _torch, state=3),
        Contender(
            "torch-foreach", "torch foreach", "torch", partial(_torch, foreach=True), state=4
        ),
        Contender("deepspeed", "DeepSpeedCPUAdam", "deepspeed", _deepspeed),
        Contender("optax", "optax, jitted", "optax", _optax, state=4, note="buffers donated"),
        Contender(
            "bitsandbytes", "bitsandbytes 8-bit", "bitsandbytes", _bitsandbytes, 1, "8-bit moments"
        ),
        Contender("numpy", "NumPy by hand", "numpy", _numpy, state=3),
        Contender(
            "numpy-out", "NumPy by hand, out=", "numpy", _numpy_out, 3, "no temporary arrays"
        ),
        *_parents(),
    )
}

MINE = tuple(key for key in CONTENDERS if key.startswith("adamas"))


def probe(contender: Contender, dtype: str) -> str | None:
    """Builds and steps a contender on a small problem, and checks that it computes its rule.

    Compiles, too, what a contender compiles on first use, so that nothing measured contains it.

    Returns:
        The reason why it cannot take part, or None where it can.
    """
    start = [array.copy() for array in Problem(_PROBE_SHAPES, dtype).arrays]
    expected, problem = Problem(_PROBE_SHAPES, dtype), Problem(_PROBE_SHAPES, dtype)
    by_hand = (contender.plain or _numpy)(expected)
    try:
        optimizer = contender.build(problem)
        for _ in range(_PROBE_STEPS):
            by_hand.step()
            optimizer.step()
        result = optimizer.read() if optimizer.read else problem.arrays
    except Exception as error:
        return reason(error)

    def distance(arrays: list[Array], others: list[Array]) -> float:
        total = sum(float(np.abs(a - b).sum()) for a, b in zip(arrays, others, strict=True))
        return total / sum(prod(shape) for shape in _PROBE_SHAPES)

    error_size = distance(result, expected.arrays) / distance(start, expected.arrays)
    if not error_size <= contender.tolerance:
        return f"its update is {error_size:.0%} away from its rule's"
    return None


def reason(error: BaseException) -> str:
    """An exception in one short line."""
    message = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {message[0]}" if message else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
