"""Holds a build of the core's own test to the kept hashes: ``replay.py COMMAND...``.

The command is the test's executable, perhaps under an emulator of another processor.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from cases import ALL_CASES, SIZES, STEPS, Case, digest, hashes

from adamas import native, reference


def recorded(case: Case) -> bytes:
    """The arrays of a case, and the coefficients and gradients of its steps."""
    hyper = case.hyper
    rows, arrays = [], []
    for (param, state), grad in zip(case.initial(), next(case.grads()), strict=True):
        of_row = {native.PARAM: param, native.GRAD: grad}
        of_row |= {native.column(key, hyper.keys): a for key, a in state.items() if key != "step"}
        sizes = [of_row[k].nbytes if k in of_row else 0 for k in range(native.SIZE)]
        rows.append([param.size, 0, case.types, *sizes])
        arrays += [of_row[k].tobytes() for k in sorted(of_row)]
    data = [np.array(rows, np.int64).tobytes(), *arrays]
    compute = reference.compute_type(case.params()[0].dtype)
    for step, grads in enumerate(case.grads(), 1):
        data.append(np.array(hyper.coefficients(step, compute)).tobytes())
        data += [grad.tobytes() for grad in grads]
    return b"".join(data)


def replay(command: list[str], case: Case, data: bytes, isa: str, threads: int, grain: int) -> str:
    """The hash of what the executable makes of a recorded case."""
    head = np.array([len(SIZES), STEPS, 1, threads, grain], np.int64).tobytes()
    head += isa.encode().ljust(16, b"\0")
    run = subprocess.run([*command, "replay"], input=head + data, capture_output=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{run.stderr.decode()}")
    out, at, results, hyper = run.stdout, 0, case.initial(), case.hyper
    for param, state in results:
        of_row = {native.PARAM: param}
        of_row |= {native.column(key, hyper.keys): a for key, a in state.items() if key != "step"}
        for k in sorted(of_row):
            array = of_row[k]
            array[...] = np.frombuffer(out, array.dtype, array.size, at).reshape(array.shape)
            at += array.nbytes
    return digest(results)


def main() -> None:
    command = sys.argv[1:]
    isas = subprocess.run([*command, "isas"], capture_output=True, text=True, check=True)
    ways = [(isa, *of) for isa in isas.stdout.split() for of in ((1, 1 << 20), (2, 777))]
    kept, passed = hashes(), 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # of processes that are waited for
        for case in ALL_CASES:
            of_case = partial(replay, command, case, recorded(case))
            results = pool.map(of_case, *zip(*ways, strict=True))
            for (isa, threads, _), found in zip(ways, results, strict=True):
                if found != kept[case.name]:
                    raise SystemExit(f"{case.name}, {isa}, {threads} threads: other bits")
                passed += 1
    print(f"{passed} passed, 0 failed ({', '.join(isas.stdout.split())})")


if __name__ == "__main__":
    main()
