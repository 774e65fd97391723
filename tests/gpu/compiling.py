"""Compiles what steps launch, for GPUs that need not be there; ``test_compiled`` runs it.

Prints as JSON of each kernel and target the operations by which it could round otherwise than it
says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adamas import native
from adamas.torch import Adam, gpu
from adamas.torch.gpu.jit import Launcher
from adamas.torch.gpu.launches import Launches
from adamas.torch.gpu.sums import Sums

TARGETS = [GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)]  # an H100, an MI300
TYPES = {torch.int64: "*i64", torch.int32: "*i32", torch.float64: "*fp64", torch.float32: "*fp32"}
# In LLVM's language, of which both vendors' compilers make theirs, and in PTX.
LICENCES = {
    "llir": r"(?<== f)(?:add|sub|mul|div|neg) (?:fast|contract|reassoc|afn|arcp)\b"
    r"|!fpmath|llvm\.fmuladd|div\.full|approx",
    "ptx": r"\bfma\.|\.ftz\b|\.approx\b|div\.full",
}
STEPS: list[tuple[torch.dtype, dict[str, Any]]] = [
    (torch.float32, {}),
    (torch.float32, {"moments": "int8", "max_grad_norm": 1.0}),
    (torch.bfloat16, {"moments": "int4", "master_bits": 24, "weight_decay": 0.1}),
    (torch.float64, {"amsgrad": True, "maximize": True, "skip_nonfinite": True}),
]


class Launched(NamedTuple):
    """What a launch compiles."""

    kernel: Any
    types: tuple[str, ...]
    constants: tuple[Any, ...]
    options: dict[str, int]


def launched() -> list[Launched]:
    """What some steps launch, nothing of which is run."""
    found: dict[str, Launched] = {}

    def note(self: Launcher, _: int, arguments: Any, constants: Any, **options: int) -> None:
        tensors = [TYPES[x.dtype] if isinstance(x, torch.Tensor) else "i32" for x in arguments]
        one = Launched(self._kernel, tuple(tensors), constants, options)
        found[f"{one.kernel.__name__} {constants}"] = one

    Launcher.__call__ = note  # type: ignore[method-assign]
    Launcher.compile = lambda *_, **__: None  # type: ignore[method-assign]
    gpu.DEVICES.add("cpu")
    for dtype, options in STEPS:
        param = nn.Parameter(torch.zeros(100, dtype=dtype))
        optimizer = Adam([param], **options)
        for _ in range(2):
            param.grad = torch.zeros_like(param)
            optimizer.step()
    rows = native.table(1)
    rows[0, native.SIZE], rows[0, native.GRAD] = 1, param.grad.data_ptr()
    launches = Launches(rows, param.device)
    launches.place()
    Sums(launches)(np.ones(1, bool), 1.0)
    return list(found.values())


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
    options = one.options | {"enable_fp_fusion": False}
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
            yield {
                "kernel": one.kernel.__name__, "constants": one.constants, "target": target.arch,
                "code": len(texts.get("cubin") or texts["hsaco"]), "wrong": wrong,
            }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(list(findings())))
