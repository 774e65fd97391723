"""The contenders of gpu.py: adamas in its formats, and every other AdamW that is installed.

    python benchmarks/gpu_peers.py DEVICE KEY ...

tries these on a small problem, and prints a line of JSON for each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adamas import formats
from adamas.lab.benchmark.peers import BETAS, EPS, LR, WEIGHT_DECAY, reason
from adamas.lab.benchmark.shapes import Shape

Params = list[nn.Parameter]
Sizes = Callable[[Sequence[Shape]], int]

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}
FUSED = {"float32": "torch-fused", "bfloat16": "torch-fused-bfloat16"}
"""What the others are compared with, by the type of the weights."""

_PROBE_SHAPES: tuple[Shape, ...] = ((8192,), (64, 33), (7,))
_PROBE_STEPS = 3
_PROBE_SECONDS = 150


@dataclass(frozen=True)
class Contender:
    """An AdamW to measure."""

    key: str
    """The name on the command line."""
    title: str
    package: str
    """Whose version is shown."""
    build: Callable[[Params], Optimizer]
    weights: str = "float32"
    """The type of parameters and gradients."""
    state: Sizes | None = None
    """The bytes of the state of tensors of these shapes; None where they are to be measured."""
    tolerance: float = 0.05
    """How far its update may be from AdamW's after a few steps, beside the update's own size."""
    patience: float = 5
    """Seconds that its first step may take, for which it has to compile."""
    module: str = ""
    """What tells whether it is installed, where it is not called as the package is."""

    @property
    def installed(self) -> bool:
        """Whether the package can be found; importing it may still fail."""
        return find_spec(self.module or self.package) is not None

    @property
    def version(self) -> str:
        """The installed version of the package, or an empty string."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return ""

    def step_bytes(self, shapes: Sequence[Shape], state: int | None) -> int | None:
        """What a step must move: it reads p, g and the state, and writes p and the state."""
        if self.state is not None:
            state = self.state(shapes)
        if state is None:
            return None
        return 3 * BYTES[self.weights] * sum(map(prod, shapes)) + 2 * state


def _named(build: str, name: str, params: Params, **options: Any) -> Optimizer:
    """An optimizer of a module that is imported only now, by the arguments all of them know."""
    rule = getattr(import_module(build), name)
    given = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
    made: Optimizer = rule(params, **given, **options)
    return made


def _of(build: str, name: str, **options: Any) -> Callable[[Params], Optimizer]:
    return partial(_named, build, name, **options)


def _slots(weights: str, moments: str, master: int | None, shapes: Sequence[Shape]) -> int:
    slots = formats.slots(weights, moments, master)
    return sum(prod(s.shape(shape)) * BYTES[s.dtype] for shape in shapes for s in slots)


def _adamas(weights: str, moments: str, master: int | None, tolerance: float) -> Contender:
    options: dict[str, Any] = {"moments": moments} | ({"master_bits": master} if master else {})
    parts = [weights, *([str(master)] if master else []), moments]
    beside = f", {weights} at {master} bits" if master else ""
    title = f"adamas {moments}{beside}"
    return Contender(
        "-".join(parts),
        title,
        "adamas",
        _of("adamas.torch", "AdamW", **options),
        weights,
        partial(_slots, weights, moments, master),
        tolerance,
    )


OURS = {
    c.key: c
    for c in (
        _adamas("float32", "float32", None, 1e-3),
        _adamas("float32", "int8", None, 0.05),
        _adamas("float32", "int4", None, 0.3),
        _adamas("float32", "bfloat16", None, 0.05),
        _adamas("bfloat16", "int8", 24, 0.05),
        _adamas("bfloat16", "int4", 24, 0.3),
        _adamas("bfloat16", "bfloat16", 16, 0.05),
        _adamas("bfloat16", "float32", 32, 0.05),
    )
}


def _torch(key: str, title: str, weights: str = "float32", **options: Any) -> Contender:
    def state(shapes: Sequence[Shape]) -> int:
        return 2 * BYTES[weights] * sum(map(prod, shapes))

    return Contender(key, title, "torch", _of("torch.optim", "AdamW", **options), weights, state)


PEERS = {
    c.key: c
    for c in (
        _torch("torch-fused", "torch fused", fused=True),
        _torch("torch-fused-bfloat16", "torch fused, bfloat16", "bfloat16", fused=True),
        _torch("torch-foreach", "torch foreach", foreach=True),
        Contender(
            "flashoptim",
            "flashoptim 8-bit",
            "flashoptim",
            _of("flashoptim", "FlashAdamW", master_weight_bits=None),
            patience=15,
        ),
        Contender(
            "flashoptim-bfloat16",
            "flashoptim 8-bit, bfloat16 at 24 bits",
            "flashoptim",
            _of("flashoptim", "FlashAdamW", master_weight_bits=24),
            "bfloat16",
            patience=15,
        ),
        Contender(
            "bitsandbytes",
            "bitsandbytes AdamW8bit",
            "bitsandbytes",
            _of("bitsandbytes.optim", "AdamW8bit"),
        ),
        Contender(
            "optimi",
            "optimi, Triton",
            "torch-optimi",
            _of("optimi", "AdamW", triton=True),
            patience=15,
            module="optimi",
        ),
        Contender(
            "turboadam",
            "turboadam",
            "turboadam",
            _of("turboadam", "TurboAdam"),
            tolerance=0.5,
            patience=15,
        ),
        # Compiled anew for each shape, in half a minute to a minute: last.
        *(
            Contender(
                f"torchao-{bits}",
                f"torchao AdamW{bits}bit",
                "torchao",
                _of("torchao.optim", f"AdamW{bits}bit"),
                tolerance=tolerance,
                patience=45,
            )
            for bits, tolerance in ((8, 0.05), (4, 0.3))
        ),
    )
}
CONTENDERS = OURS | PEERS


def parameters(
    shapes: Sequence[Shape], weights: str, device: str, scale: float = 1.0
) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors of random weights and gradients, each with memory of its own."""
    generator = torch.Generator(device).manual_seed(0)
    kind = getattr(torch, weights)

    def normal(scale: float) -> list[Tensor]:
        return [
            torch.empty(shape, dtype=kind, device=device).normal_(0, scale, generator=generator)
            for shape in shapes
        ]

    return normal(scale), normal(0.01)


def with_gradients(tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Params:
    """Fresh parameters that share this memory."""
    params = [nn.Parameter(tensor) for tensor in tensors]
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = gradient
    return params


def probe(contender: Contender, device: str) -> str | None:
    """Steps a contender on a small problem, and checks that it computes AdamW.

    Returns:
        The reason why it cannot take part, or None where it can.
    """
    try:
        # Weights so small that what bfloat16 rounds off them is little beside the updates.
        tensors, gradients = parameters(_PROBE_SHAPES, contender.weights, device, 0.01)
        start = [tensor.double() for tensor in tensors]
        exact = with_gradients([x.clone() for x in start], [g.double() for g in gradients])
        by_torch = torch.optim.AdamW(exact, LR, BETAS, EPS, WEIGHT_DECAY, foreach=False)
        optimizer = contender.build(with_gradients(tensors, gradients))
        for _ in range(_PROBE_STEPS):
            by_torch.step()
            optimizer.step()
        error = sum(
            float((x - e.detach()).abs().sum()) for x, e in zip(tensors, exact, strict=True)
        )
        moved = sum(float((s - e.detach()).abs().sum()) for s, e in zip(start, exact, strict=True))
    except Exception as exception:
        return reason(exception)
    if not error <= contender.tolerance * moved:
        return f"its update is {error / moved:.0%} away from AdamW's"
    return None


def probe_apart(keys: Iterable[str], device: str, seconds: float) -> dict[str, str]:
    """Tries contenders in a process of their own, which one that crashes takes along alone.

    Returns:
        The reasons of those that cannot take part.
    """
    failures, left, end_by = {}, list(keys), time.monotonic() + min(seconds, _PROBE_SECONDS)
    while left:
        command = [sys.executable, __file__, device, *left]
        limit = max(end_by - time.monotonic(), 10)
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=limit)
            output, end = run.stdout, f"it ends the process, with {run.returncode}"
        except subprocess.TimeoutExpired as expired:
            # Bytes, even where text was asked for.
            output = (expired.stdout or b"").decode()
            end = f"its first steps take over {limit:.0f} s"
        for line in output.splitlines():
            if line.startswith('{"tried":'):
                found = json.loads(line)
                left.remove(found["tried"])
                if found["failure"]:
                    failures[found["tried"]] = found["failure"]
        if left:
            failures[left.pop(0)] = end
    return failures


def main(device: str, *keys: str) -> None:
    """Tries each, and prints a line as soon as it is known."""
    for key in keys:
        line = {"tried": key, "failure": probe(CONTENDERS[key], device)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
