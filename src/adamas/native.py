"""The C++ core's face: the columns of its table, its settings, and one call a step."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from . import _core
except ImportError as error:
    raise ImportError(
        f"adamas's compiled core is missing or does not load ({error}): install the package with "
        "pip (`pip install .` in its source folder), which builds it with a C++17 compiler"
    ) from error

# The columns of a table's rows, one row a tensor, all int64; struct Row in src/core/table.hpp.
# They are called as Adam calls a rule's three averages; a codec's words and scales stand for the
# first two.
PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ, MASTER = range(6)
SIZE, COEFFICIENTS, TYPES, OFFSET, RUN, STRIDE = range(6, 12)
COLUMNS = 12
DTYPES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
MOMENTS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
RULES = {"adam": 0, "sgd": 1, "rmsprop": 2}

MEASURES = 7  # columns of what a step can be measured by; struct Measures there

# What ``Watch.look`` answers, in bits; src/core/watch.hpp says what each means.
MOVED, STRANGE, CHANGED, UNEVEN = 1, 2, 4, 8
Watch = _core.Watch
ArrayWatch = _core.ArrayWatch
Gate = _core.Gate  # lets a step's rows come while it runs: src/core/gate.hpp
identical = _core.identical
adopt = _core.adopt  # a framework's threads, and why: src/core/pool.hpp

_MOST_THREADS = 1 << 10
LONGEST = 1 << 62  # elements in a run: of a whole tensor; a multiple of 64, as the core likes it


def types(
    param: str,
    grad: str | None = None,
    moments: str = "float32",
    master: int = 0,
    rule: str = "adam",
) -> int:
    """What a row's TYPES says: struct Types in src/core/table.hpp.

    Args:
        param: the parameter's dtype, one of ``DTYPES``.
        grad: its gradient's; by default the same.
        moments: their format; "float32" stands for float64 beside parameters of that.
        master: bits beside the parameter: 0, 8 or 16 of a bfloat16 one's master weight, or 32, all
            of it.
        rule: one of ``RULES``.
    """
    kinds = DTYPES[param], DTYPES[grad or param], MOMENTS[moments], master, RULES[rule]
    return int.from_bytes(bytes((*kinds, 0, 0, 0)), sys.byteorder)


def table(tensors: int) -> NDArray[np.int64]:
    """Rows to fill in, of whole tensors: their elements' indices count from 0."""
    rows = np.zeros((tensors, COLUMNS), np.int64)
    rows[:, RUN] = LONGEST
    return rows


_BESIDE = {"words": EXP_AVG, "scales": EXP_AVG_SQ, "remainder": MASTER, "master": MASTER}


def column(key: str, keys: tuple[str, str, str]) -> int:
    """The column of an array of a state, of a rule that calls its averages so."""
    return _BESIDE[key] if key in _BESIDE else EXP_AVG + keys.index(key)


Counts = tuple[list[dict[str, Any]], NDArray[np.int64]]
NO_COUNTS: Counts = ([], np.zeros(0, np.int64))


def step(
    rows: NDArray[np.int64],
    coefficients: NDArray[np.float64],
    threads: int | None = None,
    *,
    counts: Counts = NO_COUNTS,
    measures: NDArray[np.float64] | None = None,
    grain: int = 0,
    isa: str | None = None,
    gate: Gate | None = None,
) -> None:
    """Steps every tensor of a table in place by its rule, without the interpreter lock.

    Neither ``measures`` nor ``threads`` nor ``grain`` nor ``isa`` shows in the result.

    Args:
        rows: (tensors, 12) int64: the addresses of param, grad, the rule's three averages and the
            master weights, 0 for those that there are none of, the number of elements, the
            index of the coefficients, the types, and where the elements lie in the whole tensor:
            number k is ``offset + (k // run) * stride + k % run`` of it. The caller vouches that
            the tensors are dense, aligned, alive, and do not overlap, but for gradients among
            themselves.
        coefficients: (sets, 13) float64, each row a ``hyper.Coefficients``.
        threads: at most so many, the caller's among them; by default ``default_threads()``.
        counts: states, and their step counts before this step, -1 for one that is not stepped: its
            ``step`` is set to one more, so that no interrupt can part a step from its count.
        measures: (tensors, 7) float64 zeros, where the step is to be measured while it runs. It
            gets the sums of the squares of the gradient (unscaled), the rule's first and second
            average (0 without), the update and the parameter after it; the largest update relative
            to its weight; how many weights stayed as they were although Adam's first moment, or the
            momentum, or else the gradient is not zero. Sums are right to rounding.
        grain: elements that a thread takes at a time; 0: what suits the table.
        isa: one of ``isas()``; by default the environment's ``ADAMAS_ISA``, else the first.
        gate: what knows where parts of the rows end, in elements of all of them, and is told when
            one has come: the step waits for each, and returns when all are stepped or it is closed.
            A part ends where a row does, or at a multiple of 64 of its elements.

    Raises:
        ValueError: a row or a setting is out of its range.
    """
    workers = threads or default_threads()
    _core.step(rows, coefficients, workers, grain, _isa_index(isa), *counts, measures, gate)


def square_sum(
    rows: NDArray[np.int64],
    scale: float = 1.0,
    threads: int | None = None,
    *,
    grain: int = 0,
    isa: str | None = None,
) -> tuple[float, float]:
    """An estimate of the sum of the squares of a table's gradients, and how far off it can be.

    Args:
        rows: as ``step``'s; only gradients, sizes and dtypes are looked at.
        scale: what each gradient is multiplied with first, in its own type.
        threads: as ``step``'s, and the same of ``grain`` and ``isa``: they may show in the
            estimate, but not beyond its error.
        grain: elements that a thread takes at a time.
        isa: one of ``isas()``.

    Returns:
        The sum in float64, not finite if a gradient is not, and the error's bound.
    """
    workers = threads or default_threads()
    return _core.square_sum(rows, scale, workers, grain, _isa_index(isa))


def exact_square_sum(
    rows: NDArray[np.int64], scale: float = 1.0, threads: int | None = None, *, grain: int = 0
) -> NDArray[np.int64]:
    """That sum, exact, of finite gradients, whose squares are rounded to float64.

    Returns:
        Digits: the sum of ``digits[k] * 2**(32 * k - 1074)``. Those of two tables may be added.
    """
    digits = _core.exact_square_sum(rows, scale, threads or default_threads(), grain)
    return np.array(digits, np.int64)


@contextmanager
def default_floating_point() -> Iterator[None]:
    """Lets the thread compute with denormals, whatever mode torch or a library has set it to."""
    environment = _core.default_floating_point()
    try:
        yield
    finally:
        _core.restore_floating_point(environment)


def isas() -> list[str]:
    """The instruction sets that the core has code for and this processor runs, the best first."""
    return list(_core.isas())


def default_threads() -> int:
    """Threads for NumPy arrays: from the environment, else the processors this process may use.

    The environment's ``ADAMAS_NUM_THREADS`` goes before ``OMP_NUM_THREADS``.

    Raises:
        ValueError: the environment's is not a whole number of at least 1.
    """
    for name in ("ADAMAS_NUM_THREADS", "OMP_NUM_THREADS"):
        # OpenMP's may list a number for each level, and OpenMP ignores what is none.
        value = os.environ.get(name, "").split(",")[0].strip()
        if value.isdecimal() and int(value) >= 1:
            return min(int(value), _MOST_THREADS)
        if value and name.startswith("ADAMAS"):
            raise ValueError(
                f"{name} must be a whole number of at least 1, got {value!r}: unset it"
            )
    return _processors()


@lru_cache(maxsize=1)
def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _isa_index(isa: str | None) -> int:
    return _index_of(isa or _core.environment("ADAMAS_ISA"))


@lru_cache(maxsize=16)
def _index_of(name: str | None) -> int:
    if not name:
        return 0
    if name not in isas():
        raise ValueError(
            f"ADAMAS_ISA must be one of {', '.join(isas())} on this processor, got {name!r}"
        )
    return isas().index(name)
