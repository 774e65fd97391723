"""torch's threads, which the core's calls run on."""

from __future__ import annotations

import ctypes
import os
import re
from functools import cache
from pathlib import Path

import torch

from .. import native


def threads() -> int:
    """How many threads torch computes with, for a call of the core, which they now run."""
    _adopt()
    return torch.get_num_threads()


_STACK = 1 << 18  # bytes that a thread of the core's needs at most


@cache
def _adopt() -> None:
    """Has the core run on torch's threads, where torch computes by OpenMP; ``adopt`` says why."""
    openmp = "parallel backend: OpenMP" in torch.__config__.parallel_info()
    if not openmp or _is_forked() or _stack() < _STACK:
        return
    # In the order in which torch itself finds OpenMP: one that was loaded before goes first.
    for library in (None, torch._C.__file__):
        try:
            functions = ctypes.CDLL(library, os.RTLD_NOLOAD)
            most = functions.omp_get_max_threads
            parallel = functions.GOMP_parallel
        except (AttributeError, OSError, TypeError):
            continue
        if torch.get_num_threads() == most():  # in this order: torch may set it when it is asked
            native.adopt(*(ctypes.cast(f, ctypes.c_void_p).value or 0 for f in (parallel, most)))
        return


def _is_forked() -> bool:
    """Whether this process began as another's copy, without its threads, but with OpenMP's list.

    Of forks after the core was loaded it knows by itself.
    """
    try:
        flags = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[6]
    except (OSError, IndexError):
        return False
    return bool(int(flags) & 0x40)  # Linux's PF_FORKNOEXEC


def _stack() -> float:
    """Bytes of stack that the environment gives OpenMP's threads, if it says so."""
    found = [float("inf")]
    for name in ("OMP_STACKSIZE", "GOMP_STACKSIZE"):
        given = re.fullmatch(r"\s*(\d+)\s*([bkmg]?)\s*", os.environ.get(name, "").lower())
        if given:
            found.append(int(given[1]) * 1024.0 ** ("bkmg".index(given[2] or "k")))
    return min(found)
