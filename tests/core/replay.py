"""Holds a build of the core's own test to the kept hashes: ``replay.py COMMAND...``.

The command is the test's executable, perhaps under an emulator of another processor.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from cases import ALL_CASES, SIZES, STEPS, Case, digest, hashes

from adamas import native, reference
from adamas.reference import Array


def columns(case: Case, param: Array, state: dict[str, Any]) -> dict[int, Array]:
    """The arrays of a parameter, by their columns in the core's rows."""
    of_keys = {native.column(key, case.hyper.keys): a for key, a in state.items() if key != "step"}
    return {native.PARAM: param, **of_keys}


def recorded(case: Case) -> bytes:
    """The arrays of a case, and the coefficients and gradients of its steps."""
    rows, arrays = [], []
    for (param, state), grad in zip(case.initial(), next(case.grads()), strict=True):
        of_row = columns(case, param, state) | {native.GRAD: grad}
        sizes = [of_row[k].nbytes if k in of_row else 0 for k in range(native.SIZE)]
        rows.append([param.size, 0, case.types, *sizes])
        arrays += [of_row[k].tobytes() for k in sorted(of_row)]
    data = [np.array(rows, np.int64).tobytes(), *arrays]
    compute = reference.compute_type(case.params()[0].dtype)
    for step, grads in enumerate(case.grads(), 1):
        data.append(np.array(case.hyper.coefficients(step, compute)).tobytes())
        data += [grad.tobytes() for grad in grads]
    return b"".join(data)


def replay(command: list[str], ways: list[tuple[str, int, int]], case: Case) -> list[str]:
    """The hashes of what the executable makes of a case: by instruction set, threads, grain."""
    head = np.array([len(SIZES), STEPS, 1, len(ways)], np.int64).tobytes()
    for isa, *of in ways:
        head += isa.encode().ljust(16, b"\0") + np.array(of, np.int64).tobytes()
    run = subprocess.run([*command, "replay"], input=head + recorded(case), capture_output=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{run.stderr.decode()}")
    return [digest(results) for results in read(BytesIO(run.stdout), case, len(ways))]


def read(out: BytesIO, case: Case, times: int) -> Iterator[list[tuple[Any, Any]]]:
    """What a case has come to, some times one behind the other."""
    for _ in range(times):
        results = case.initial()
        for param, state in results:
            for _, array in sorted(columns(case, param, state).items()):
                data = out.read(array.nbytes)
                array[...] = np.frombuffer(data, array.dtype).reshape(array.shape)
        yield results


def main() -> None:
    command = sys.argv[1:]
    isas = subprocess.run([*command, "isas"], capture_output=True, text=True, check=True)
    ways = [(isa, *of) for isa in isas.stdout.split() for of in ((1, 1 << 20), (2, 777))]
    kept, passed = hashes(), 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # of processes that are waited for
        results = pool.map(partial(replay, command, ways), ALL_CASES)
        for case, found in zip(ALL_CASES, results, strict=True):
            for (isa, threads, _), of_way in zip(ways, found, strict=True):
                if of_way != kept[case.name]:
                    raise SystemExit(f"{case.name}, {isa}, {threads} threads: other bits")
                passed += 1
    print(f"{passed} passed, 0 failed ({', '.join(isas.stdout.split())})")


if __name__ == "__main__":
    main()
