"""``prepare``, launched by itself; without a device, in Triton's interpreter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from devices import REAL  # skips all that imports this where there is no Triton
from torch import Tensor

from adamas import native, norm
from adamas.hyper import Coefficients
from adamas.torch.gpu import prepare, sets
from adamas.torch.gpu.jit import Launcher
from adamas.torch.gpu.kernels import BEGIN, COLUMNS, GRAD_DTYPE, ROW

DEVICE = "cuda" if REAL else "cpu"
CHUNK = 8192
DTYPES = {name: getattr(torch, name) for name in native.DTYPES}
UNSCALE, CLIP = (Coefficients._fields.index(name) for name in ("unscale", "clip"))
MARK = 77.0  # what nothing writes


def chunks_of(grads: list[Tensor]) -> Tensor:
    rows = []
    for row, grad in enumerate(grads):
        for begin in range(0, max(grad.numel(), 1), CHUNK):
            part = grad[begin : begin + CHUNK]
            chunk = np.zeros(COLUMNS.value, np.int64)
            chunk[native.GRAD], chunk[native.SIZE] = part.data_ptr(), part.numel()
            chunk[GRAD_DTYPE.value] = native.DTYPES[str(grad.dtype).removeprefix("torch.")]
            chunk[ROW.value], chunk[BEGIN.value] = row, begin
            rows.append(chunk)
    chunks = torch.from_numpy(np.array(rows, np.int64).reshape(-1, COLUMNS.value)).to(DEVICE)
    chunks.grads = grads  # which are to live as long
    return chunks


def on_device(values: Any, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype).to(DEVICE)


def arguments(grads: list[Tensor], max_norm: float = math.inf, rows: int = 3) -> dict[str, Tensor]:
    return {
        "chunks": chunks_of(grads),
        "settings": on_device([max_norm, MARK], torch.float64),
        "hypers": on_device([[0.0] * sets.COLUMNS], torch.float64),
        "steps": on_device([5] * rows, torch.int64),
        "set_of": on_device([0] * rows, torch.int64),
        "placed": on_device([[1] * rows, [0] * rows], torch.int64),
        "coefficients": torch.full((rows, 13), MARK, dtype=torch.float64, device=DEVICE),
        "partials": torch.full((1024, 3), math.nan, dtype=torch.float64, device=DEVICE),
        "counter": on_device([0], torch.int32),
        "skip": on_device([MARK], torch.int32),
        "results": on_device([MARK, MARK], torch.float64),
        "last": on_device([MARK, MARK], torch.float64),
        "skipped": on_device([6], torch.int64),
    }


def launch(given: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    for name in ("grad_scale", "found_inf"):
        if isinstance(options.get(name), float):
            options[name] = on_device([options[name]], torch.float32)
    prepare.launch(Launcher(prepare.prepare), prepare.Tensors(**given), **options)
    assert given["counter"].item() == 0
    return {name: tensor.cpu() for name, tensor in given.items()}


def found_norm(grads: list[Tensor], multiprocessors: int = 0, **options: Any) -> float:
    done = launch(arguments(grads), norm=True, multiprocessors=multiprocessors, **options)
    assert done["skip"].item() == 0
    return float(done["results"][0])


def expected_norm(grads: list[Tensor], unscale: float = 1.0) -> float:
    arrays = [g.cpu().double() if g.dtype == torch.float64 else g.cpu().float() for g in grads]
    return math.sqrt(norm.squared_norm([a.numpy() for a in arrays], unscale))


def same(found: float, expected: float) -> bool:
    return found == expected or (math.isnan(found) and math.isnan(expected))


def random(n: int, dtype: str, low: int, high: int) -> Tensor:
    generator = np.random.default_rng(n)
    numbers = generator.standard_normal(n) * 2.0 ** generator.integers(low, high, n)
    return torch.from_numpy(numbers).to(DTYPES[dtype]).to(DEVICE)


def tensor(values: list[float], dtype: str = "float32") -> Tensor:
    return on_device(values, DTYPES[dtype])
