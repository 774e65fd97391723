"""What a step finds out on the device beforehand: whether to skip, what clips, its coefficients."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import (
    CHUNK,
    CLIP,
    DEVICE,
    DTYPES,
    MARK,
    UNSCALE,
    arguments,
    expected_norm,
    launch,
    on_device,
    random,
    same,
    tensor,
)
from torch import Tensor
from triton import language as tl

from adamas import Hyper, native, norm
from adamas.hyper import Coefficients, RMSpropHyper, Rule, SGDHyper, bias_correction
from adamas.torch.gpu import bias, sets
from adamas.torch.gpu.jit import jit
from adamas.torch.gpu.kernels import ROW

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_is_skipped_where_an_element_is_not_finite(dtype: str) -> None:
    grads = [random(5001, dtype, -2, 3), random(100, "float32", -2, 3)]
    options = {"skip_nonfinite": True, "device_steps": True, "multiprocessors": 1}
    done = launch(arguments(grads), **options)
    assert (done["skip"].item(), done["skipped"].item()) == (0, 6)
    assert done["steps"].tolist() == [6] * 3
    assert done["results"][0].item() == expected_norm(grads)
    for bad, place in product((math.inf, -math.inf, math.nan), (0, 4095, 5000)):
        with_bad = grads[0].clone()
        with_bad[place] = bad
        done = launch(arguments([with_bad, grads[1]]), **options)
        assert (done["skip"].item(), done["skipped"].item()) == (1, 7)
        assert done["steps"].tolist() == [5] * 3
        assert done["results"].tolist() == [MARK, MARK]


@pytest.mark.parametrize(
    ("value", "scale", "dtype", "skipped"),
    [
        (1e200, None, "float64", False),  # whose square overflows
        (1e38, 2.0**-8, "float32", True),  # which overflows when unscaled
        (1e38, 2.0**-8, "float64", False),
        (1.0, 0.0, "float32", True),
        (0.0, 0.0, "float32", True),
        (1.0, 1e-45, "bfloat16", True),
    ],
)
@pytest.mark.parametrize("count", [1, 4096])
def test_what_counts_is_the_unscaled_element(
    value: float, scale: float | None, dtype: str, skipped: bool, count: int
) -> None:
    grads = [tensor([value] * count, dtype)]
    done = launch(arguments(grads, max_norm=0.0), skip_nonfinite=True, grad_scale=scale)
    assert bool(done["skip"].item()) == skipped
    if not skipped:
        unscale = 1.0 if scale is None else 1 / scale
        assert done["results"].tolist() == [expected_norm(grads, unscale), 1.0]


@pytest.mark.parametrize("found_inf", [1.0, math.inf, math.nan])
@pytest.mark.parametrize("norm", [False, True])
def test_a_gradient_scaler_skips(found_inf: float, norm: bool) -> None:
    given = arguments([tensor([1.0])], 1.0)
    done = launch(given, found_inf=found_inf, grad_scale=2.0, norm=norm, device_steps=True)
    assert (done["skip"].item(), done["skipped"].item()) == (1, 7)
    assert done["steps"].tolist() == [5] * 3
    assert done["results"].tolist() == [MARK, MARK]
    done = launch(given, found_inf=0.0, grad_scale=2.0, norm=norm, device_steps=True)
    assert (done["skip"].item(), done["skipped"].item()) == (0, 7)
    assert done["steps"].tolist() == [6] * 3
    assert done["results"].tolist() == ([0.5, 1.0] if norm else [MARK, MARK])


@pytest.mark.parametrize("max_norm", [math.inf, 0.0, 0.3, 5.0, 5.000001, 5.000002, 1e-300, 3e38])
@pytest.mark.parametrize("grad", [[3.0, 4.0], [], [math.inf], [math.nan]])
def test_what_clips(grad: list[float], max_norm: float) -> None:
    grads = [tensor(grad)]
    done = launch(arguments(grads, max_norm), norm=True)
    found, clip = done["results"].tolist()
    assert same(found, expected_norm(grads))
    assert same(clip, norm.clip_factor(found, max_norm) if max_norm else 1.0)


@pytest.mark.parametrize(
    "options", [{}, {"found_inf": 1.0}, {"norm": True}, {"device_steps": True}]
)
@pytest.mark.parametrize("multiprocessors", [0, 1, 32])
def test_chunks_are_told_where_gradients_have_moved_to(
    options: dict[str, Any], multiprocessors: int
) -> None:
    """By as many programs as there are, also where the step is skipped."""
    grads = [random(5 * CHUNK + 3, "bfloat16", -2, 3), random(CHUNK + 1, "float64", -2, 3)]
    several = 140 if "norm" in options else 700  # more than programs; their sums take seconds
    grads += [tensor([float(i)]) for i in range(several)]
    given = arguments(grads, rows=len(grads))
    expected = given["chunks"].clone()
    rows = expected[:, ROW.value]
    absent = rows == 1
    expected[absent, native.GRAD] = 0
    expected[:, native.COEFFICIENTS] = 7 * rows
    given["chunks"][:, [native.GRAD, native.COEFFICIENTS]] = 8
    addresses = [0 if i == 1 else grad.data_ptr() for i, grad in enumerate(grads)]
    indices = [7 * i for i in range(len(grads))]
    given["placed"] = on_device([addresses, indices], torch.int64)
    done = launch(given, moved=True, multiprocessors=multiprocessors, **options)
    assert torch.equal(done["chunks"], expected.cpu())
    if "norm" in options:
        assert done["results"][0].item() == expected_norm([grads[0], *grads[2:]])


@pytest.mark.parametrize("measure", [False, True])
@pytest.mark.parametrize("scale", [None, 3.0, 65536.0, 0.1, 1e-40, 1e38, math.inf, 0.0, math.nan])
def test_of_sets_only_what_unscales_and_clips_is_written(
    measure: bool, scale: float | None
) -> None:
    given = arguments([tensor([3.0, 4.0])], 0.3, rows=200)
    given["coefficients"][:, [UNSCALE, CLIP]] = 1.0
    done = launch(given, norm=measure, grad_scale=scale)
    unscale = 1.0
    if scale is not None:
        unscale = torch.tensor([scale]).double().reciprocal().float().item()
    clip = done["results"][1].item() if measure else 1.0
    expected = torch.full((200, 13), MARK, dtype=torch.float64)
    expected[:, UNSCALE], expected[:, CLIP] = unscale, clip
    np.testing.assert_array_equal(done["coefficients"].numpy(), expected.numpy())
    assert done["steps"].tolist() == [5] * 200


def set_row(hyper: Rule, compute: str, tensors: list[Tensor | None] | None = None) -> Tensor:
    """A set's columns, where tensors of lr, beta1 and beta2 may hold the values instead."""
    held = tensors or [None] * 3
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in held]
    doubles = [i for i, t in enumerate(held) if t is not None and t.dtype == torch.float64]
    row = np.array(sets.set_row(hyper, compute, addresses, sum(1 << i for i in doubles)))
    row[:3][np.array(addresses) != 0] = math.nan
    return torch.from_numpy(row)


def found_coefficients(
    rows: list[Tensor], set_of: list[int], steps: list[int], **options: Any
) -> np.ndarray:
    given = arguments([tensor([3.0, 4.0])], 0.25, rows=len(steps))
    given["hypers"] = torch.stack(rows).to(DEVICE)
    given["set_of"] = on_device(set_of, torch.int64)
    given["steps"] = on_device([step - 1 for step in steps], torch.int64)
    done = launch(given, device_steps=True, **options)
    assert done["steps"].tolist() == steps
    return done["coefficients"].numpy()


BETAS = (
    0.0,
    2.0**-1074,
    1e-300,
    2.0**-64,
    2.0**-65,
    3e-4,
    1e-3,
    0.5,
    0.9,
    0.95,
    0.98,
    0.999,
    0.9999,
    1 - 2**-24,
    1 - 2**-53,
    float(np.float32(0.9)),
    float(np.float32(0.999)),
)
STEPS = (*range(1, 101), 255, 256, 1000, 4097, 65535, 10**6, 2**24 + 1, 2**31, 2**33 - 1, 2**40)


@jit
def multiply(numbers: tl.tensor, product: tl.tensor) -> None:
    at = tl.arange(0, 4)
    a_high = tl.load(numbers + at).to(tl.uint64, bitcast=True)
    a_low = tl.load(numbers + 4 + at).to(tl.uint64, bitcast=True)
    b_high = tl.load(numbers + 8 + at).to(tl.uint64, bitcast=True)
    b_low = tl.load(numbers + 12 + at).to(tl.uint64, bitcast=True)
    high, low = bias._multiply(a_high, a_low, b_high, b_low)
    tl.store(product + at, high.to(tl.int64, bitcast=True))
    tl.store(product + 4 + at, low.to(tl.int64, bitcast=True))


HALVES = st.sampled_from([0, 1, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)


@settings(deadline=None, max_examples=60)
@given(st.lists(HALVES, min_size=16, max_size=16))
def test_products_of_128_bits(halves: list[int]) -> None:
    """Which bias corrections do not show to the last bit."""
    numbers = torch.from_numpy(np.array(halves, np.uint64).view(np.int64)).to(DEVICE)
    product = torch.zeros(8, dtype=torch.int64, device=DEVICE)
    multiply[(1,)](numbers, product)
    found = product.cpu().numpy().view(np.uint64).tolist()
    for i in range(4):
        a, b = (halves[i + k] << 64 | halves[i + k + 4] for k in (0, 8))
        assert found[i] << 64 | found[i + 4] == a * b >> 128


@pytest.mark.parametrize("beta", BETAS)
def test_bias_corrections_are_rounded_once(beta: float) -> None:
    other = 1 - 2**-53 if beta != 1 - 2**-53 else 0.0
    row = set_row(Hyper(1.0, (beta, other)), "float64")
    found = found_coefficients([row], [0] * len(STEPS), list(STEPS))
    for step, (size, scale) in zip(STEPS, found[:, 4:6].tolist(), strict=True):
        assert size == 1 / bias_correction(beta, step)
        assert scale == 1 / math.sqrt(bias_correction(other, step))


@settings(deadline=None, max_examples=25)
@given(
    betas=st.tuples(*[st.floats(0, 1, exclude_max=True) | st.floats(0.8, 1, exclude_max=True)] * 2),
    lr=st.floats(0, 1e22),  # beyond it, a step size may leave float32, which is refused
    eps=st.sampled_from([0.0, 1e-300, 2.0**-149, 2.0**-150, 1e-40, 1e-8]),
    weight_decay=st.floats(0, 10),
    flags=st.tuples(st.booleans(), st.booleans()),
    compute=st.sampled_from(["float32", "float64"]),
    step=st.integers(1, 2**20) | st.integers(1, 300),
)
def test_coefficients(
    betas: tuple[float, float],
    lr: float,
    eps: float,
    weight_decay: float,
    flags: tuple[bool, bool],
    compute: str,
    step: int,
) -> None:
    maximize, decoupled = flags
    hyper = Hyper(lr, betas, eps, weight_decay, False, maximize, decoupled)
    with np.errstate(all="ignore"):
        found = found_coefficients(
            [set_row(hyper, compute)], [0], [step], norm=True, grad_scale=3.0
        )
        rounded = found.astype(compute)[0].tolist()
    unscale = float(np.float32(1 / 3.0))
    norm_found = expected_norm([tensor([3.0, 4.0])], unscale)
    clip = norm.clip_factor(norm_found, 0.25)
    assert (*rounded[:-1], int(found[0, -1])) == hyper.coefficients(step, compute, unscale, clip)


@pytest.mark.parametrize(("skip_nonfinite", "multiprocessors"), [(False, 0), (False, 1), (True, 1)])
def test_rows_have_steps_and_sets_of_their_own(skip_nonfinite: bool, multiprocessors: int) -> None:
    hypers = [
        (Hyper(0.1 * k, (0.9, 1 - 2.0**-k), weight_decay=0.1 * k), compute)
        for k in range(1, 8)
        for compute in ("float32", "float64")
    ]
    rows = [set_row(*hyper) for hyper in hypers]
    count = 300
    set_of, steps = [i % len(rows) for i in range(count)], [1 + i * i for i in range(count)]
    given = arguments([tensor([1.0] * 9000)] * 3, rows=count)
    given["hypers"] = torch.stack(rows).to(DEVICE)
    given["set_of"] = on_device(set_of, torch.int64)
    given["steps"] = on_device([step - 1 for step in steps], torch.int64)
    absent = set(range(0, count, 7))
    given["placed"][0] = on_device([0 if i in absent else 8 for i in range(count)], torch.int64)
    options = {"skip_nonfinite": skip_nonfinite, "multiprocessors": multiprocessors}
    done = launch(given, device_steps=True, **options)
    for i in range(count):
        found = done["coefficients"][i].tolist()
        assert done["steps"][i].item() == steps[i] - (i in absent)
        if i in absent:
            assert found == [MARK] * 13
        else:
            hyper, _ = hypers[set_of[i]]
            # Before they are rounded to float32, which this eps shows in neither type.
            assert tuple(found) == hyper.coefficients(steps[i], "float64")


@pytest.mark.parametrize("compute", ["float32", "float64"])
@pytest.mark.parametrize("held", [False, True])
def test_coefficients_of_other_rules(compute: str, held: bool) -> None:
    """Of a first step and of others, with a learning rate in the table or in a tensor."""
    hypers = [
        SGDHyper(0.1, weight_decay=0.2),
        SGDHyper(0.1, 0.9, 0.3, maximize=True),
        SGDHyper(0.1, 1.5, nesterov=True),
        RMSpropHyper(0.1, 0.97, 0.0, 0.2),
        RMSpropHyper(0.1, 0.9, 1e-6, momentum=2.0, centered=True),
        Hyper(0.1, (0.8, 0.9)),
    ]
    lr = on_device([0.1], torch.float64) if held else None
    rows = [set_row(hyper, compute, [lr, None, None]) for hyper in hypers]
    counts = [(i, step) for i in range(len(hypers)) for step in (1, 2, 1000)]
    found = found_coefficients(
        rows, *map(list, zip(*counts, strict=True)), norm=True, grad_scale=3.0
    )
    unused = {"sgd": ["one_minus_beta2", "denom_scale", "eps"], "rmsprop": ["denom_scale"]}
    clip = norm.clip_factor(expected_norm([tensor([3.0, 4.0])], float(np.float32(1 / 3))), 0.25)
    for (i, step), row in zip(counts, found.astype(compute).tolist(), strict=True):
        hyper = hypers[i]
        expected = hyper.coefficients(step, compute, float(np.float32(1 / 3)), clip)
        left_out = dict.fromkeys(unused.get(hyper.rule, []), 0.0)
        assert Coefficients(*row)._replace(**left_out) == expected._replace(**left_out)


@pytest.mark.parametrize("held", [(0, 1, 2), (0,), (2,), (0, 2), ()])
def test_hyperparameters_that_tensors_hold(held: tuple[int, ...]) -> None:
    values = (1e-3, 0.9, 0.999)
    for dtypes in ((torch.float32,) * 3, (torch.float64, torch.float32, torch.float64)):
        tensors = [
            on_device([value], dtype) if i in held else None
            for i, (value, dtype) in enumerate(zip(values, dtypes, strict=True))
        ]
        lr, *betas = (v if t is None else t.item() for v, t in zip(values, tensors, strict=True))
        rows = [
            set_row(Hyper(*[values[0], values[1:]]), "float32", tensors),
            set_row(Hyper(), "float32"),
        ]
        found = found_coefficients(rows, [1, 0, 0], [3, 1, 12])
        hyper = Hyper(lr, (betas[0], betas[1]))
        expected = [
            Hyper().coefficients(3, "float64"),
            hyper.coefficients(1, "float64"),
            hyper.coefficients(12, "float64"),
        ]
        assert [tuple(row) for row in found.tolist()] == expected
