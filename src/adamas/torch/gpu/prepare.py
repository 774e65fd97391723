"""What a step needs beforehand and only the device knows, as one Triton kernel, without a wait.

The scale of the gradients, their norm and what clips them, whether to skip the step, and where step
counts or hyperparameters are on the device, the coefficients.
"""

from __future__ import annotations

from typing import NamedTuple

import triton.language as tl
from torch import Tensor

from ...hyper import Coefficients
from . import sets
from .bias import bias_correction
from .jit import Launcher, jit, jit_with
from .kernels import place_gradients
from .rules import COEFFICIENTS
from .squares import rounded_sum, sum_share, total

MOST_PROGRAMS = 1024
PARTIAL_COLUMNS = 3
WARPS = 4
PER_MULTIPROCESSOR = 4  # programs: enough loads under way to keep the memory busy
_ROWS = 128

_SET_COLUMNS, _PARTIAL_COLUMNS = tl.constexpr(sets.COLUMNS), tl.constexpr(PARTIAL_COLUMNS)
_MOST_PROGRAMS, _ROW_BLOCK = tl.constexpr(MOST_PROGRAMS), tl.constexpr(_ROWS)
_LR, _BETA1, _BETA2 = (tl.constexpr(x) for x in (sets.LR, sets.BETA1, sets.BETA2))
_EPS, _WEIGHT_DECAY = tl.constexpr(sets.EPS), tl.constexpr(sets.WEIGHT_DECAY)
_DECOUPLED, _MAXIMIZE = tl.constexpr(sets.DECOUPLED), tl.constexpr(sets.MAXIMIZE)
_IS_FLOAT64, _CORRECTED = tl.constexpr(sets.IS_FLOAT64), tl.constexpr(sets.CORRECTED)
_ONE_MINUS_BETA1 = tl.constexpr(sets.ONE_MINUS_BETA1)
_LR_AT, _WIDE = tl.constexpr(sets.LR_AT), tl.constexpr(sets.WIDE)
_UNSCALE = tl.constexpr(Coefficients._fields.index("unscale"))
_CLIP = tl.constexpr(Coefficients._fields.index("clip"))
_STEP = tl.constexpr(Coefficients._fields.index("step"))
_SMALLEST_FLOAT32, _SMALLEST_FLOAT64 = tl.constexpr(2.0**-149), tl.constexpr(2.0**-1074)


class Tensors(NamedTuple):
    """What ``prepare`` reads and writes on the device."""

    chunks: Tensor
    """(chunks, 16) int64, as ``kernels.step_chunk``'s; placed here where ``launch`` is told so."""
    settings: Tensor
    """float64, the norm to clip to, not above 0 for no clipping; inf measures only."""
    hypers: Tensor
    """(sets, 14) float64, with the columns of ``sets``."""
    steps: Tensor
    """(rows,) int64, how many each row of the table has made; counted here."""
    set_of: Tensor
    """(rows,) int64, its set."""
    placed: Tensor
    """(2, rows) int64, its gradient's address, 0 for none, and its coefficients' index; see
    ``kernels.place_gradients``."""
    coefficients: Tensor
    """(rows, 13) float64, of each row with DEVICE_STEPS, those of a step to be skipped or of rows
    without gradient meaningless. Else of sets, of which only what unscales and what clips is
    written here."""
    partials: Tensor
    """(1024, 3) float64 of scratch."""
    counter: Tensor
    """int32 of scratch: 0 before, and after."""
    skip: Tensor
    """int32, set to 1 where the step is to be skipped, else 0."""
    results: Tensor
    """(2,) float64, the norm and what clips to it, of the last step not skipped."""
    last: Tensor
    """The same of the step before, for where this one is skipped."""
    skipped: Tensor
    """int64, how many steps were; counted here."""


def launch(
    launcher: Launcher,
    tensors: Tensors,
    *,
    moved: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    norm: bool = False,
    skip_nonfinite: bool = False,
    device_steps: bool = False,
    alignment: int = 1,
    multiprocessors: int = 132,
) -> None:
    """Launches ``prepare`` on the current stream.

    Args:
        launcher: of ``prepare``.
        tensors: what it reads and writes.
        moved: whether ``placed`` is new to the chunks.
        grad_scale: float32, what the gradients are multiplied with; None for 1.
        found_inf: float32, not 0 where the step is to be skipped; None for 0.
        norm: measure the norm, and clip to it.
        skip_nonfinite: skip the step where an element is not finite; measures the norm too.
        device_steps: count steps and find the coefficients on the device.
        alignment: of all gradients' addresses, in bytes.
        multiprocessors: of the device. Does not show in the results.
    """
    measure = norm or skip_nonfinite
    chunks, rows = len(tensors.chunks), len(tensors.steps)
    n_moved, n_placed = chunks if moved else 0, tensors.placed.shape[1]
    few = max(n_moved, rows if device_steps else 0)
    work = max(chunks if measure else 0, -(-few // _ROWS))
    programs = max(1, min(work, PER_MULTIPROCESSOR * multiprocessors, MOST_PROGRAMS))
    scaler = (tensors.settings if t is None else t for t in (grad_scale, found_inf))
    arguments = *tensors, *scaler, chunks, n_moved, n_placed, len(tensors.coefficients)
    scaled = grad_scale is not None, found_inf is not None
    constants = measure, skip_nonfinite, *scaled, device_steps, alignment
    launcher(programs, arguments, constants, num_warps=WARPS)


@jit_with(
    do_not_specialize=["n_chunks", "n_moved", "n_placed", "n_rows"],
    do_not_specialize_on_alignment=[
        "grad_scale",
        "found_inf",
        "settings",
        "hypers",
        "steps",
        "results",
        "last",
    ],
)
def prepare(
    chunks: tl.tensor,
    settings: tl.tensor,
    hypers: tl.tensor,
    steps: tl.tensor,
    set_of: tl.tensor,
    placed: tl.tensor,
    coefficients: tl.tensor,
    partials: tl.tensor,
    counter: tl.tensor,
    skip: tl.tensor,
    results: tl.tensor,
    last: tl.tensor,
    skipped: tl.tensor,
    grad_scale: tl.tensor,
    found_inf: tl.tensor,
    n_chunks: tl.tensor,
    n_moved: tl.tensor,
    n_placed: tl.tensor,
    n_rows: tl.tensor,
    NORM: tl.constexpr,
    SKIP_NONFINITE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_FOUND: tl.constexpr,
    DEVICE_STEPS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
) -> None:
    """Finds out what the step needs. Every program does a share, the last one to be done the rest.

    Beside ``Tensors``, it takes the numbers of chunks, of those to place, and of rows of ``placed``
    and of coefficients, and is compiled for what ``launch`` is asked for. With SKIP_NONFINITE goes
    NORM, without HAS_SCALE and HAS_FOUND anything stands for ``grad_scale`` and ``found_inf``.
    """
    programs = tl.num_programs(0)
    unscale, found = _scaler(grad_scale, found_inf, HAS_SCALE, HAS_FOUND)
    if n_moved > 0:  # also where the step is skipped, for chunks are told once
        place_gradients(chunks, placed, n_moved, n_placed, _ROW_BLOCK)
        tl.debug_barrier()  # what one thread has stored, all of the program load
    if found == 0:
        if DEVICE_STEPS:
            for first in range(tl.program_id(0) * _ROW_BLOCK, n_rows, programs * _ROW_BLOCK):
                _find_coefficients(hypers, steps, set_of, placed, coefficients, first, n_rows)
        if NORM:
            _sum_up(chunks, n_chunks, unscale, partials, SKIP_NONFINITE, ALIGNMENT)
    # One thread has stored and one counts: the barrier makes what every thread of the program has
    # done happen before the count, which releases it to the program that counts last.
    tl.debug_barrier()
    before = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
    if before == programs - 1:
        tl.store(counter, 0)
        found, norm, clip = _conclude(
            chunks, n_chunks, settings, partials, programs, unscale, found, NORM, SKIP_NONFINITE
        )
        tl.store(skip, found)
        if found != 0:
            tl.store(skipped, tl.load(skipped) + 1)
            if NORM:
                tl.store(results, tl.load(last))
                tl.store(results + 1, tl.load(last + 1))
        else:
            if NORM:
                tl.store(results, norm)
                tl.store(results + 1, clip)
            _write_factors(steps, placed, coefficients, n_rows, unscale, clip, DEVICE_STEPS)


@jit
def _scaler(
    grad_scale: tl.tensor,
    found_inf: tl.tensor,
    HAS_SCALE: tl.constexpr,
    HAS_FOUND: tl.constexpr,
) -> tl.tuple:
    """What unscales the gradients, and whether the scaler has found some that are not finite."""
    unscale = tl.full((), 1.0, tl.float32)
    if HAS_SCALE:
        unscale = (1.0 / tl.load(grad_scale).to(tl.float64)).to(tl.float32)
    found = tl.full((), 0, tl.int32)
    if HAS_FOUND:
        found = (tl.load(found_inf) != 0).to(tl.int32)
    return unscale, found


@jit
def _sum_up(
    chunks: tl.tensor,
    n_chunks: tl.tensor,
    unscale: tl.tensor,
    partials: tl.tensor,
    LOOK: tl.constexpr,
    ALIGNMENT: tl.constexpr,
) -> None:
    """Writes down the sum of this program's share of the squares."""
    high, low, strange = sum_share(chunks, n_chunks, unscale, LOOK, ALIGNMENT)
    mine = partials + tl.program_id(0) * _PARTIAL_COLUMNS
    tl.store(mine, high)
    tl.store(mine + 1, low)
    tl.store(mine + 2, strange.to(tl.float64))


@jit
def _conclude(
    chunks: tl.tensor,
    n_chunks: tl.tensor,
    settings: tl.tensor,
    partials: tl.tensor,
    programs: tl.tensor,
    unscale: tl.tensor,
    found: tl.tensor,
    NORM: tl.constexpr,
    SKIP_NONFINITE: tl.constexpr,
) -> tl.tuple:
    """Whether to skip the step, the norm and what clips to it, of what all programs have found."""
    norm = tl.full((), 0.0, tl.float64)
    clip = tl.full((), 1.0, tl.float64)
    if NORM:  # noqa: SIM102 (one of a constant, one of a number)
        if found == 0:
            high, low, strange = _total_of_programs(partials, programs)
            norm = tl.sqrt(rounded_sum(chunks, n_chunks, unscale, high, low))
            clip = _clip_factor(norm, tl.load(settings))
            if SKIP_NONFINITE:
                found = strange
    return found, norm, clip


@jit
def _total_of_programs(partials: tl.tensor, programs: tl.tensor) -> tl.tuple:
    index = tl.arange(0, _MOST_PROGRAMS)
    theirs = partials + index * _PARTIAL_COLUMNS
    there = index < programs
    # From the level of the cache that programs share.
    high = tl.load(theirs, there, other=0.0, cache_modifier=".cg")
    low = tl.load(theirs + 1, there, other=0.0, cache_modifier=".cg")
    strange = tl.load(theirs + 2, there, other=0.0, cache_modifier=".cg")
    total_high, total_low = total(high, low)
    return total_high, total_low, tl.max((strange != 0).to(tl.int32), 0)


@jit
def _clip_factor(norm: tl.tensor, max_norm: tl.tensor) -> tl.tensor:
    """``adamas.norm.clip_factor``."""
    factor = max_norm / (norm + 1e-6)
    return tl.where((factor > 1) | (max_norm <= 0), 1.0, factor)


@jit
def _write_factors(
    steps: tl.tensor,
    placed: tl.tensor,
    coefficients: tl.tensor,
    n_rows: tl.tensor,
    unscale: tl.tensor,
    clip: tl.tensor,
    DEVICE_STEPS: tl.constexpr,
) -> None:
    """Completes the coefficients, and counts the steps."""
    for first in range(0, n_rows, _ROW_BLOCK):
        at = first + tl.arange(0, _ROW_BLOCK)
        there = at < n_rows
        if DEVICE_STEPS:
            there = there & (tl.load(placed + at, there, other=0) != 0)
            tl.store(steps + at, tl.load(steps + at, there, other=0) + 1, there)
        row = coefficients + at * COEFFICIENTS
        tl.store(row + _UNSCALE, unscale.to(tl.float64), there)
        tl.store(row + _CLIP, clip, there)


@jit
def _find_coefficients(
    hypers: tl.tensor,
    steps: tl.tensor,
    set_of: tl.tensor,
    placed: tl.tensor,
    coefficients: tl.tensor,
    first: tl.tensor,
    n_rows: tl.tensor,
) -> None:
    """``adamas.hyper.Rule.coefficients`` of the next step of some rows, in float64.

    But for what unscales and clips, and what the rule does not use. The step rounds them to the
    type that it computes in.
    """
    at = first + tl.arange(0, _ROW_BLOCK)
    there = at < n_rows
    there = there & (tl.load(placed + at, there, other=0) != 0)
    step = tl.load(steps + at, there, other=0) + 1
    of_set = hypers + tl.load(set_of + at, there, other=0) * _SET_COLUMNS
    lr = _hyper(of_set, _LR, there)
    beta1 = _hyper(of_set, _BETA1, there)
    beta2 = _hyper(of_set, _BETA2, there)
    eps = tl.load(of_set + _EPS, there, other=1.0)
    is_float64 = tl.load(of_set + _IS_FLOAT64, there, other=0.0) != 0
    smallest = tl.where(is_float64, _SMALLEST_FLOAT64, _SMALLEST_FLOAT32)
    weight_decay = tl.load(of_set + _WEIGHT_DECAY, there, other=0.0)
    decoupled = tl.load(of_set + _DECOUPLED, there, other=0.0) != 0
    corrected = tl.load(of_set + _CORRECTED, there, other=0.0) != 0
    after_first = tl.load(of_set + _ONE_MINUS_BETA1, there, other=0.0)
    one_minus_beta1 = tl.where(step == 1, 1.0, after_first)

    betas = tl.join(beta1, beta2)
    correction1, correction2 = tl.split(bias_correction(betas, tl.join(step, step)))
    row = coefficients + at * COEFFICIENTS
    tl.store(row, beta1, there)
    tl.store(row + 1, tl.where(corrected, 1.0 - beta1, one_minus_beta1), there)
    tl.store(row + 2, beta2, there)
    tl.store(row + 3, 1.0 - beta2, there)
    tl.store(row + 4, tl.where(corrected, lr / correction1, lr), there)
    tl.store(row + 5, 1.0 / tl.sqrt(correction2), there)
    tl.store(row + 6, tl.where(eps > smallest, eps, smallest), there)
    tl.store(row + 7, tl.where(decoupled, lr * weight_decay, 0.0), there)
    tl.store(row + 8, tl.where(decoupled, 0.0, weight_decay), there)
    tl.store(row + 9, tl.load(of_set + _MAXIMIZE, there, other=0.0), there)
    tl.store(row + _STEP, step.to(tl.float64), there)


@jit
def _hyper(of_set: tl.tensor, COLUMN: tl.constexpr, there: tl.tensor) -> tl.tensor:
    """The learning rate or a beta of each row, from the table or from the tensor that holds it."""
    value = tl.load(of_set + COLUMN, there, other=0.0)
    address = tl.load(of_set + (_LR_AT + COLUMN), there, other=0.0).to(tl.int64, bitcast=True)
    wide = tl.load(of_set + _WIDE, there, other=0.0).to(tl.int64, bitcast=True)
    elsewhere = there & (address != 0)
    is_wide = ((wide >> COLUMN) & 1) != 0
    doubles = address.to(tl.pointer_type(tl.float64))
    floats = address.to(tl.pointer_type(tl.float32))
    double = tl.load(doubles, elsewhere & is_wide, other=0.0)
    single = tl.load(floats, elsewhere & (is_wide == 0), other=0.0).to(tl.float64)
    return tl.where(elsewhere, tl.where(is_wide, double, single), value)
