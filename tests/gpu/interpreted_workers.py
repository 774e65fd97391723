"""The processes of ``tests/torch/workers.py``, whose parameters the interpreted kernels step."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "torch"))

import workers

from adamas.torch import cpu, gpu

if __name__ == "__main__":
    np.seterr(all="ignore")  # overflow and NaN are ordinary results on a device
    gpu.DEVICES.add("cpu")
    del cpu.native  # the core does not step any of them
    workers.main(Path(sys.argv[1]), json.loads(sys.argv[2]))
