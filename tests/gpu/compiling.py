"""Compiles what steps launch, for GPUs that need not be there; ``test_compiled`` runs it.

Prints as JSON of each kernel and target what it was compiled for, and the lines by which it could
round otherwise than it says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor, nn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from adamas import native
from adamas.torch import SGD, Adam, RMSprop, gpu
from adamas.torch.gpu import launches
from adamas.torch.gpu.launches import Launches
from adamas.torch.gpu.sums import Sums

TARGETS = [GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)]  # an H100, an MI300
TYPES = {torch.int64: "*i64", torch.int32: "*i32", torch.float64: "*fp64", torch.float32: "*fp32"}
# In LLVM's language, which both vendors' compilers are given, and in PTX. Whether AMD's fuses then
# is an option's to say, and what it makes of an exact root or quotient is fused, too.
LICENCES = {
    "llir": r"= f(?:add|sub|mul|div|neg) (?:\w+ )*(?:fast|contract|reassoc|afn|arcp) "
    r"|!fpmath|llvm\.fmuladd|div\.full|approx|llvm\.amdgcn\.(?:sqrt|rsq|rcp|fdiv)",
    "ptx": r"\bfma\.|\.ftz\b|\.approx\b|div\.full",
}
STEPS: list[tuple[Callable[..., Any], torch.dtype, dict[str, Any]]] = [
    (Adam, torch.float32, {}),
    (Adam, torch.float32, {"moments": "int8", "max_grad_norm": 1.0}),
    (Adam, torch.bfloat16, {"moments": "int4", "master_bits": 24, "capturable": True}),
    (Adam, torch.float64, {"amsgrad": True, "maximize": True, "skip_nonfinite": True}),
    (RMSprop, torch.float16, {"momentum": 0.9, "centered": True}),
    (SGD, torch.bfloat16, {"momentum": 0.9, "moments": "int8", "master_bits": 32}),
]


class Launched(NamedTuple):
    """What a launch compiles."""

    kernel: Any
    types: tuple[str, ...]
    constants: tuple[Any, ...]
    options: dict[str, Any]


class Compiled:
    """In the place of what would be launched."""

    def __getitem__(self, _: Any) -> Callable[..., None]:
        return lambda *_: None


def launched() -> list[Launched]:
    """What some steps compile, nothing of which is run."""
    found: dict[str, Launched] = {}

    def note(kernel: Any, *arguments: Any, grid: Any, **options: Any) -> Compiled:
        count = sum(parameter.is_constexpr for parameter in kernel.params)
        given, constants = arguments[:-count], arguments[-count:]
        types = [TYPES[x.dtype] if isinstance(x, Tensor) else "i32" for x in given]
        found[f"{kernel.__name__} {constants}"] = Launched(kernel, (*types,), constants, options)
        return Compiled()

    JITFunction.warmup = note
    tile, device = launches._tile, torch.device("cuda")
    launches._tile = lambda alike, _: tile(alike, device)
    gpu.DEVICES.add("cpu")
    for rule, dtype, options in STEPS:
        param = nn.Parameter(torch.zeros(100, dtype=dtype))
        optimizer = rule([param], **options)
        for _ in range(2):
            param.grad = torch.zeros_like(param)
            optimizer.step()
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.zeros(())
    optimizer.step()
    of_a_part()
    return list(found.values())


def of_a_part() -> None:
    """Steps elements that lie elsewhere in their whole tensor, and not at multiples of 16 bytes."""
    elements = torch.zeros(9)[1:]
    rows = native.table(1)
    rows[0, [native.PARAM, native.GRAD, native.EXP_AVG, native.EXP_AVG_SQ]] = elements.data_ptr()
    rows[0, native.TYPES] = native.types("float32", moments="bfloat16")
    rows[0, [native.SIZE, native.RUN, native.STRIDE]] = 8, 4, 16
    there = Launches(rows, elements.device)
    there.place()
    there.step(np.zeros((1, 13)))
    Sums(there)(np.ones(1, bool), 1.0)


def compiled(one: Launched, target: GPUTarget) -> dict[str, Any]:
    """The texts that Triton makes of a kernel on its way."""
    types, constants = iter(one.types), iter(one.constants)
    signature, values, known = {}, {}, {}
    for i, parameter in enumerate(one.kernel.params):
        name = parameter.name
        signature[name] = "constexpr" if parameter.is_constexpr else next(types)
        if parameter.is_constexpr:
            values[(i,)] = next(constants)
        elif signature[name][0] == "*" and not parameter.do_not_specialize_on_alignment:
            known[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(one.kernel, signature, values, known)
    # Registers are limited for NVIDIA's compiler only.
    options = {k: v for k, v in one.options.items() if k != "maxnreg" or target.backend == "cuda"}
    return dict(triton.compile(source, target=target, options=options).asm)


def findings() -> Iterator[dict[str, Any]]:
    for one in launched():
        for target in TARGETS:
            texts = compiled(one, target)
            wrong = [
                line.strip()
                for kind, licence in LICENCES.items()
                for line in texts.get(kind, "").splitlines()
                if re.search(licence, line)
            ]
            code = texts["cubin" if target.backend == "cuda" else "hsaco"]
            yield {
                "kernel": one.kernel.__name__, "target": target.arch, "wrong": wrong,
                "constants": one.constants, "options": one.options, "bytes": len(code),
            }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(list(findings())))
