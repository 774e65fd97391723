"""Holds a build of the core's own test to the kept hashes: ``replay.py COMMAND...``.

The command is the test's executable, perhaps under an emulator of another processor.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from cases import CASES, SIZES, STEPS, Case, digest, hashes

from adamas import native, reference


def replay(command: list[str], case: Case, isa: str, threads: int, grain: int) -> str:
    """The hash of what the executable makes of a case."""
    hyper, dtype = case.hyper, np.dtype(case.dtype)
    head = np.array([len(SIZES), STEPS, 1, threads, grain], np.int64)
    rows = [[n, native.DTYPES[case.dtype], 0, hyper.amsgrad] for n in SIZES]
    data = [head.tobytes(), isa.encode().ljust(16, b"\0"), np.array(rows, np.int64).tobytes()]
    data += [param.tobytes() for param in case.params()]
    for step, grads in enumerate(case.grads(), 1):
        data.append(np.array(hyper.coefficients(step, case.dtype)).tobytes())
        data += [grad.tobytes() for grad in grads]
    run = subprocess.run([*command, "replay"], input=b"".join(data), capture_output=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{run.stderr.decode()}")
    out, at, results = run.stdout, 0, []
    for param in case.params():
        state = reference.initial_state(param, hyper)
        arrays = [param, *(a for key, a in state.items() if key != "step")]
        for array in arrays:
            array[...] = np.frombuffer(out, dtype, array.size, at)
            at += array.nbytes
        results.append((param, state))
    return digest(results)


def main() -> None:
    command = sys.argv[1:]
    isas = subprocess.run([*command, "isas"], capture_output=True, text=True, check=True)
    kept, passed = hashes(), 0
    for case in CASES:
        for isa in isas.stdout.split():
            for threads, grain in ((1, 1 << 20), (2, 777)):
                found = replay(command, case, isa, threads, grain)
                if found != kept[case.name]:
                    raise SystemExit(f"{case.name}, {isa}, {threads} threads: other bits")
                passed += 1
    print(f"{passed} passed, 0 failed ({', '.join(isas.stdout.split())})")


if __name__ == "__main__":
    main()
