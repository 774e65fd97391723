"""torch's threads, which the core's calls run on."""

from __future__ import annotations

import ctypes
import os
from functools import cache

import torch

from .. import native


def threads() -> int:
    """How many threads torch computes with, for a call of the core, which they now run."""
    _adopt()
    return torch.get_num_threads()


@cache
def _adopt() -> None:
    """Has the core run on torch's threads, where torch computes by OpenMP; ``adopt`` says why."""
    if "parallel backend: OpenMP" not in torch.__config__.parallel_info():
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
