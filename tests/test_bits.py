"""The same bits from the reference, the core and both front ends, kept as hashes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    CASES,
    FORMAT_CASES,
    RULE_CASES,
    RULE_FORMAT_CASES,
    Case,
    digest,
    hashes,
    run_reference,
    visible,
)

import adamas
import adamas.torch
from adamas import native, reference

KEPT = hashes()
Results = list[tuple[np.ndarray, dict[str, Any]]]


def run_core(case: Case, isa: str, threads: int, grain: int) -> Results:
    results = case.initial()
    rows = native.table(len(results))
    for row, (param, state) in zip(rows, results, strict=True):
        row[native.PARAM] = param.ctypes.data
        for key in state.keys() - {"step"}:
            row[native.column(key, case.hyper.keys)] = state[key].ctypes.data
        row[native.SIZE], row[native.TYPES] = param.size, case.types
    compute = reference.compute_type(results[0][0].dtype)
    for step, grads in enumerate(case.grads(), 1):
        rows[:, native.GRAD] = [grad.ctypes.data for grad in grads]
        coefficients = np.array([case.hyper.coefficients(step, compute)])
        native.step(rows, coefficients, threads, grain=grain, isa=isa)
    return results


def options(case: Case) -> dict[str, Any]:
    return {k: v for k, v in case.options.items() if k != "decoupled_weight_decay"}


def run_arrays(case: Case) -> Results:
    params = case.params()
    rule = getattr(adamas, case.hyper.name)
    formats = {"moments": case.moments, "master_bits": case.master_bits}
    optimizer = rule([visible(p) for p in params], **options(case), **formats)
    for grads in case.grads():
        optimizer.step([visible(g) for g in grads])
    saved = optimizer.state_dict()
    keys = reference.initial_state(params[0], case.hyper, *formats.values())
    return [(p, {k: saved[f"state/{i}/{k}"] for k in keys}) for i, p in enumerate(params)]


def run_torch(case: Case, plain: bool) -> Results:
    """In plain torch operations if asked: ``differentiable`` leaves the core aside."""
    params = [torch.from_numpy(p).requires_grad_(not plain) for p in case.params()]
    rule = getattr(adamas.torch, case.hyper.name)
    wrapped = [torch.nn.Parameter(p, requires_grad=not plain) for p in params]
    optimizer = rule(wrapped, **options(case), differentiable=plain)
    for grads in case.grads():
        for param, grad in zip(wrapped, grads, strict=True):
            param.grad = torch.from_numpy(grad)
        optimizer.step()
    names = list(reference.initial_state(np.zeros(1), case.hyper))[1:]
    return [
        (p.detach().numpy(), {k: optimizer.state[p][k].detach().numpy() for k in names})
        for p in wrapped
    ]


def tensor(array: np.ndarray) -> torch.Tensor:
    """Of an array's memory; uint16 is of bfloat16's bits."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def run_torch_formats(case: Case) -> Results:
    params = [torch.nn.Parameter(tensor(p)) for p in case.params()]
    rule = getattr(adamas.torch, case.hyper.name)
    formats = {"moments": case.moments, "master_bits": case.master_bits}
    optimizer = rule(params, **options(case), **formats)
    for grads in case.grads():
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.zeros_like(param)
            param.grad.data = tensor(grad)  # torch would refuse one of another type
        optimizer.step()
    results = []
    for (_, state), p in zip(case.initial(), params, strict=True):
        for key in state.keys() - {"step"}:
            value = optimizer.state[p][key].flatten()
            flat = torch.empty(value.shape, dtype=value.dtype).copy_(value)  # of stride 1
            state[key] = flat.view(torch.uint8).numpy().view(state[key].dtype)
        kept = p.detach().view(torch.int16).numpy().view(np.uint16) if p.itemsize == 2 else None
        results.append((p.detach().numpy() if kept is None else kept, state))
    return results


@pytest.mark.parametrize("case", [*CASES, *RULE_CASES], ids=lambda case: case.name)
class TestHashes:
    """Each backend on each case."""

    def test_reference(self, case: Case) -> None:
        assert digest(run_reference(case)) == KEPT[case.name]

    @pytest.mark.parametrize(("threads", "grain"), [(1, 0), (2, 777)])
    @pytest.mark.parametrize("isa", native.isas())
    def test_core(self, case: Case, isa: str, threads: int, grain: int) -> None:
        assert digest(run_core(case, isa, threads, grain)) == KEPT[case.name]

    def test_arrays(self, case: Case) -> None:
        assert digest(run_arrays(case)) == KEPT[case.name]

    @pytest.mark.parametrize("plain", [False, True], ids=["core", "plain"])
    def test_torch(self, case: Case, plain: bool) -> None:
        assert digest(run_torch(case, plain)) == KEPT[case.name]


@pytest.mark.parametrize("case", [*FORMAT_CASES, *RULE_FORMAT_CASES], ids=lambda case: case.name)
class TestFormats:
    """Each backend on each moment format and kind of weights."""

    def test_reference(self, case: Case) -> None:
        assert digest(run_reference(case)) == KEPT[case.name]

    @pytest.mark.parametrize(("threads", "grain"), [(1, 0), (2, 777)])
    @pytest.mark.parametrize("isa", native.isas())
    def test_core(self, case: Case, isa: str, threads: int, grain: int) -> None:
        assert digest(run_core(case, isa, threads, grain)) == KEPT[case.name]

    def test_torch(self, case: Case) -> None:
        assert digest(run_torch_formats(case)) == KEPT[case.name]

    def test_arrays(self, case: Case) -> None:
        assert digest(run_arrays(case)) == KEPT[case.name]


def test_the_cases_differ() -> None:
    """But for Adam and AdamW, which are one where there is no decay."""
    older = [KEPT[case.name] for case in CASES]
    assert len(set(older)) == len(older) * 3 // 4
    others = [*FORMAT_CASES, *RULE_CASES, *RULE_FORMAT_CASES]
    assert len(set(KEPT.values()) - set(older)) == len(others)
