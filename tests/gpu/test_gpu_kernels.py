"""The kernels against the specification, by equality of weights and stored bytes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cases import ALL_CASES, as_dtype, digest, hashes
from devices import core  # noqa: F401  (skips all of this where there is no Triton)
from torch import Tensor

from adamas import formats, native, reference, rounding
from adamas.hyper import Hyper, Rule
from adamas.torch.gpu import kernels, launches
from adamas.torch.gpu.jit import Launcher
from adamas.torch.gpu.launches import Launches

pytestmark = pytest.mark.gpu

REALS = ("float32", "bfloat16", "float16")
WEIGHTS = [("float32", None), ("bfloat16", 32), ("bfloat16", 24), ("bfloat16", 16)]
WEIGHTS += [("float16", 32), ("float16", 16)]
KINDS = [("float64", None, "float32")]
KINDS += [(*kind, moments) for kind, moments in product(WEIGHTS, formats.FORMATS)]
each_kind = pytest.mark.parametrize(
    ("dtype", "master", "moments"), KINDS, ids=["-".join(map(str, kind)) for kind in KINDS]
)
DECAYS = Hyper(lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True)


class Row(NamedTuple):
    """A tensor to step, and where its elements lie in the whole one, if it is a part of that."""

    dtype: str
    grad: str
    moments: str
    master: int | None
    amsgrad: bool
    size: int
    place: tuple[int, int, int] | None = None
    ahead: int = 0  # elements before it in its memory, which misalign it
    infinite: int = 0  # elements that are, the first
    hyper: Rule | None = None  # its own

    def index(self) -> np.ndarray | None:
        if self.place is None:
            return None
        offset, run, stride = self.place
        k = np.arange(self.size)
        return offset + k // run * stride + k % run


class Held:
    """A row's arrays, in the device's memory, beside those of the specification."""

    def __init__(self, row: Row, hyper: Rule, step: int, seed: int, device: torch.device) -> None:
        self.row = row
        hyper = row.hyper or hyper
        self.hyper = replace(hyper, amsgrad=row.amsgrad) if isinstance(hyper, Hyper) else hyper
        self.param = as_dtype(seed, row.size, row.dtype, -3, 1)
        self.param[: row.infinite] = 0x7F80 if row.dtype == "bfloat16" else np.inf
        self.state = reference.initial_state(self.param, self.hyper, row.moments, row.master)
        self.state["step"] = max(step - 1, 0)
        if step:  # the one before, by the specification: from zeros on, states would be too simple
            grad = as_dtype(seed + 3, row.size, row.grad, -33, 7, sparse=True)
            arguments = grad, self.state, self.hyper, 1.0, 1.0, row.index()
            self.param, self.state = reference.step(self.param, *arguments)
        self.there = {k: self._put(v, device) for k, v in self.state.items() if k != "step"}
        self.there |= {"param": self._put(self.param, device)}
        self.grad = self.param

    def _put(self, array: np.ndarray, device: torch.device) -> Tensor:
        """Bytes on the device, behind some elements of another's."""
        ahead = self.row.ahead * array[:1].nbytes
        room = torch.zeros(ahead + array.nbytes, dtype=torch.uint8, device=device)
        room[ahead:] = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return room[ahead:]

    def fill(self, row: np.ndarray, grad: np.ndarray, device: torch.device) -> None:
        """A row of the table, with a gradient."""
        self.grad = grad
        self.there["grad"] = self._put(grad, device)
        beside = formats.master_beside(self.row.dtype, self.row.master)
        types = self.row.dtype, self.row.grad, self.row.moments, beside, self.hyper.rule
        row[native.TYPES] = native.types(*types)
        row[native.SIZE] = self.row.size
        if self.row.place:
            row[[native.OFFSET, native.RUN, native.STRIDE]] = self.row.place
        columns = {"param": native.PARAM, "grad": native.GRAD}
        columns |= {key: native.column(key, self.hyper.keys) for key in self.state if key != "step"}
        for key, tensor in self.there.items():
            row[columns[key]] = tensor.data_ptr()

    def differing(self, unscale: float, clip: float) -> list[str]:
        """Steps by the specification, and names what then differs from what the kernel left."""
        index = self.row.index()
        arguments = self.grad, self.state, self.hyper, unscale, clip, index
        self.param, self.state = reference.step(self.param, *arguments)
        found = []
        for key, array in (self.state | {"param": self.param}).items():
            if key != "step":
                bytes_there = self.there[key].cpu().numpy()
                if not np.array_equal(_plain(bytes_there, array), _plain(array, array)):
                    found.append(key)
        return found


def _plain(array: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The bits of numbers, among which all NaNs are one."""
    numbers = np.ascontiguousarray(array).reshape(-1).view(like.dtype).copy()
    if numbers.dtype.kind == "f":
        numbers[np.isnan(numbers)] = np.nan
    return numbers.view(np.uint8)


def compare(
    rows: list[Row],
    device: torch.device,
    hyper: Rule = DECAYS,
    *,
    steps: int = 1,
    before: int = 1,
    unscale: float = 1.0,
    clip: float = 1.0,
    spoil: Any = lambda grad, t: grad,
) -> None:
    """Steps rows in one table, and each by the specification."""
    held = [Held(row, hyper, before, 7 * i + 1, device) for i, row in enumerate(rows)]
    table = native.table(len(rows))
    table[:, native.COEFFICIENTS] = range(len(rows))
    stepping = Launches(table, device)
    for t in range(before + 1, before + steps + 1):
        for i, (one, row) in enumerate(zip(held, table, strict=True)):
            grad = as_dtype(100 * (t - before) + i, one.row.size, one.row.grad, -33, 7, sparse=True)
            one.fill(row, spoil(grad, t), device)
        kinds = [reference.compute_type(one.param.dtype) for one in held]
        pairs = zip(held, kinds, strict=True)
        sets = [one.hyper.coefficients(t, kind, unscale, clip) for one, kind in pairs]
        stepping.step(np.array(sets))
        wrong = [(one.row, names) for one in held if (names := one.differing(unscale, clip))]
        assert not wrong, (t, wrong)


def block_of(dtype: str, moments: str, device: torch.device) -> int:
    """The elements that a program steps at a time."""
    kinds = native.DTYPES[dtype], native.DTYPES[dtype], native.MOMENTS[moments]
    tile = launches._tile(launches.Alike(*kinds, 0, 0, 3, True, 16), device)
    return tile.groups * formats.GROUP


def grads_of(dtype: str) -> tuple[str, ...]:
    return ("float64",) if dtype == "float64" else REALS


@each_kind
def test_every_type_with_every_other(
    dtype: str, master: int | None, moments: str, device: torch.device
) -> None:
    """Each gradient's dtype, with and without AMSGrad, in one table: a block, or a tail."""
    block = block_of(dtype, moments, device)
    sizes = {False: block, True: block // 2 - 62}
    rows = [
        Row(dtype, grad, moments, master, amsgrad, sizes[amsgrad])
        for grad, amsgrad in product(grads_of(dtype), sizes)
    ]
    compare(rows, device)


@pytest.mark.parametrize("moments", formats.FORMATS)
def test_sizes_around_groups_blocks_and_chunks(
    moments: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REGRESSIONS 3: in chunks of two blocks, of which the last ends anywhere."""
    dtypes = [("float32", None), ("bfloat16", 24)]
    blocks = [block_of(dtype, moments, device) for dtype, _ in dtypes]
    for name in ("CHUNK", "CODED_CHUNK"):
        monkeypatch.setattr(launches, name, 2 * max(blocks))
    rows = []
    for (dtype, master), block in zip(dtypes, blocks, strict=True):
        sizes = [block - 1, block, block + 1, 2 * max(blocks) + 1]
        sizes += [1, 63, 64, 65] if block == min(blocks) else []
        rows += [Row(dtype, "float32", moments, master, False, size) for size in sizes]
    compare(rows, device)


HYPERS = {
    "maximize": Hyper(maximize=True, weight_decay=0.1, decoupled_weight_decay=True),
    "coupled decay": Hyper(weight_decay=0.1),
    "coupled decay, maximize": Hyper(weight_decay=0.1, maximize=True, lr=0.1),
    "no eps": Hyper(eps=0.0),
    "a denormal eps": Hyper(eps=1e-42),
    "no lr": Hyper(lr=0.0, weight_decay=0.1, decoupled_weight_decay=True),
    "a large lr": Hyper(lr=1e30, weight_decay=0.1, decoupled_weight_decay=True),
    "no betas": Hyper(betas=(0.0, 0.0)),
    "betas near one": Hyper(betas=(1 - 2**-53, 1 - 2**-53)),
}
ONE_OF_EACH = [
    Row("float32", "bfloat16", "float32", None, False, 70),
    Row("float64", "float64", "float32", None, True, 70),
    Row("bfloat16", "float16", "int8", 24, True, 70),
    Row("float16", "float16", "int4", 32, False, 70),
    Row("bfloat16", "bfloat16", "bfloat16", 16, False, 70),
]


@pytest.mark.parametrize("name", HYPERS)
def test_options(name: str, device: torch.device) -> None:
    compare(ONE_OF_EACH, device, HYPERS[name])


def test_the_first_steps(device: torch.device) -> None:
    """From zeros on."""
    compare(ONE_OF_EACH, device, before=0, steps=3)


@pytest.mark.parametrize(
    ("unscale", "clip"),
    [(1 / 1024, 1.0), (1 / 3, 0.37), (1.0, 0.0), (2.0**-140, 1.0), (1.0, np.nan), (np.inf, 1.0)],
)
def test_gradients_scaled_and_clipped(unscale: float, clip: float, device: torch.device) -> None:
    """Twice, each with its own rounding."""
    compare(ONE_OF_EACH, device, unscale=float(np.float32(unscale)), clip=clip)


@pytest.mark.parametrize("before", [2**24, 2**31 + 4, 2**32 - 1])
def test_many_steps(before: int, device: torch.device) -> None:
    """REGRESSIONS 10: beyond what a float32 counts, and what an int32 and a uint32 do."""
    compare(ONE_OF_EACH, device, before=before)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_gradients_that_are_not_finite(value: float, device: torch.device) -> None:
    """Then others: where v is infinite or NaN once, nobody reads what is left of it."""

    def spoil(grad: np.ndarray, t: int) -> np.ndarray:
        if t == 1:
            spoiled = as_dtype(0, 1, "float32", 0, 1) * 0 + np.float32(value)
            half = rounding.to_bfloat16(spoiled, np.zeros(1, np.uint32), 0)
            grad[[3, 40]] = half[0] if grad.dtype == np.uint16 else value
        return grad

    compare(ONE_OF_EACH, device, spoil=spoil, before=0, steps=2)


@pytest.mark.parametrize("unscale", [1.0, 0.5])
def test_weights_that_are_not_finite(unscale: float, device: torch.device) -> None:
    """They do not spoil gradients where no decay is coupled."""
    rows = [row._replace(infinite=3) for row in ONE_OF_EACH]
    compare(rows, device, Hyper(lr=0.1), unscale=unscale)


@pytest.mark.parametrize("kind", ["zeros", "denormals", "largest"])
def test_gradients_at_the_ends_of_their_range(kind: str, device: torch.device) -> None:
    def spoil(grad: np.ndarray, t: int) -> np.ndarray:
        ends = {"zeros": 0, "denormals": 1, "largest": {2: 0x7BFF, 4: 0x7F7FFFFF}}
        size = grad.dtype.itemsize
        whole = grad.view(f"u{size}")
        end = ends[kind]
        sign = np.arange(whole.size) % 2 << (8 * size - 1)
        if isinstance(end, dict):
            end = 0x7F7F if grad.dtype == np.uint16 else end.get(size, 0x7FEFFFFFFFFFFFFF)
        whole[::2] = end
        whole[1::2] |= sign[1::2].astype(whole.dtype)
        return grad

    compare(ONE_OF_EACH, device, spoil=spoil)


@pytest.mark.parametrize("moments", formats.FORMATS)
def test_parts_of_a_tensor_round_as_the_whole(
    moments: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REGRESSIONS 29: rows of a sharded tensor, columns of one, and parts of groups."""
    block = block_of("bfloat16", moments, device)
    for name in ("CHUNK", "CODED_CHUNK"):
        monkeypatch.setattr(launches, name, 2 * block)
    rows = [
        Row("bfloat16", "bfloat16", moments, master, False, 2 * block + size, place)
        for size, place, master in (
            (100, (6400, 2**40, 1), 24),  # whole groups on
            (100, (6401, 2**40, 1), 16),  # in the middle of a group
            (105, (5, 7, 30), 16),  # columns
            (64, (64, 64, 256), 24),  # columns of whole groups
            (100, (2**32 - 70, 2**40, 1), 16),
            (100, (2**33 + 64, 2**40, 1), 24),
        )
    ]
    compare(rows, device)


@pytest.mark.parametrize("ahead", [1, 3, 8])
def test_addresses_that_are_not_aligned(ahead: int, device: torch.device) -> None:
    """Beside others that are."""
    rows = [row._replace(size=n) for row in ONE_OF_EACH for n in (65,)]
    compare([row._replace(ahead=ahead) for row in rows] + rows[:2], device)


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="60 steps of 15 tensors take minutes without a GPU"
)
@pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.name)
def test_kept_hashes(case: Any, device: torch.device) -> None:
    rows = [
        Row(
            case.dtype,
            case.grad_dtype or case.dtype,
            case.moments,
            case.master_bits,
            getattr(case.hyper, "amsgrad", False),
            array.size,
        )
        for array in case.params()
    ]
    held = [Held(row, case.hyper, 0, 1000 + i, device) for i, row in enumerate(rows)]
    table = native.table(len(rows))
    stepping = Launches(table, device)
    kind = reference.compute_type(held[0].param.dtype)
    for t, grads in enumerate(case.grads(), 1):
        for one, row, grad in zip(held, table, grads, strict=True):
            one.fill(row, grad, device)
        stepping.step(np.array([case.hyper.coefficients(t, kind)]))
    results = []
    for one in held:
        found = {k: v.cpu().numpy() for k, v in one.there.items() if k != "grad"}
        arrays = {k: found[k].view(v.dtype) for k, v in one.state.items() if k != "step"}
        results.append((found["param"].view(one.param.dtype), {"step": 60} | arrays))
    assert digest(results) == hashes()[case.name]


def test_row_5_where_chunks_lie_beyond_2_to_the_32_elements(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REGRESSIONS 5: addresses and positions, of memory that need not be there."""
    monkeypatch.setattr(Launcher, "__call__", lambda *_, **__: None)
    rows, size = native.table(1), 2**32 + 1
    columns = [native.PARAM, native.GRAD, native.EXP_AVG, native.EXP_AVG_SQ]
    begin = np.array([1 << 40, 1 << 41, 1 << 42, 1 << 43])
    rows[0, columns], rows[0, native.SIZE] = begin, size
    rows[0, native.TYPES] = native.types("bfloat16", "bfloat16", "int4")
    there = Launches(rows, device)
    there.place()
    last = there.chunks[-1].cpu().numpy()
    bytes_before = np.array([2 * 2**32, 2 * 2**32, 2**32, 2**32 // 64 * 6])
    assert last[columns].tolist() == (begin + bytes_before).tolist()
    assert last[native.SIZE] == 1
    assert last[kernels.FIRST.value] == last[kernels.BEGIN.value] == 2**32
