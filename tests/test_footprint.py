"""Bytes that training keeps: by hand, and beside the states that the specification makes."""

from __future__ import annotations

import numpy as np
import pytest

from adamas import Hyper, reference
from adamas.footprint import Line, adamas_line, added_up, cells, choices, torch_line
from adamas.formats import FORMATS

# 1000 elements are 16 groups of scales, 6 bytes each; 65 are 2; a number is 1.
ONE = [((1000,), "float32")]
HALF = [((10, 100), "bfloat16")]
MIXED = [((5, 13), "bfloat16"), ((), "float16"), ((0, 7), "float32"), ((3,), "float64")]


@pytest.mark.parametrize(
    ("tensors", "options", "numbers"),
    [
        (ONE, {}, (1000, 4000, 0, 4000, 8000)),
        (ONE, {"amsgrad": True}, (1000, 4000, 0, 4000, 12000)),
        (ONE, {"master": True}, (1000, 4000, 0, 4000, 8000)),
        (HALF, {}, (1000, 2000, 0, 2000, 4000)),
        (HALF, {"amsgrad": True, "gradients": "float32"}, (1000, 2000, 0, 4000, 6000)),
        (HALF, {"master": True}, (1000, 2000, 4000, 2000, 8000)),
        (HALF, {"master": True, "amsgrad": True}, (1000, 2000, 4000, 2000, 12000)),
        (MIXED, {}, (69, 156, 0, 156, 312)),
        (MIXED, {"master": True}, (69, 156, 264, 156, 576)),
        ([], {}, (0, 0, 0, 0, 0)),
    ],
)
def test_torch(tensors: list, options: dict, numbers: tuple[int, ...]) -> None:
    assert torch_line(tensors, **options)[1:] == numbers


@pytest.mark.parametrize(
    ("tensors", "options", "numbers"),
    [
        (ONE, {}, (1000, 4000, 0, 4000, 8000)),
        (ONE, {"moments": "bfloat16"}, (1000, 4000, 0, 4000, 4000)),
        (ONE, {"moments": "int8"}, (1000, 4000, 0, 4000, 2096)),
        (ONE, {"moments": "int4"}, (1000, 4000, 0, 4000, 1096)),
        (ONE, {"moments": "int4", "amsgrad": True}, (1000, 4000, 0, 4000, 5096)),
        (ONE, {"moments": "int8", "gradients": "bfloat16"}, (1000, 4000, 0, 2000, 2096)),
        (HALF, {"moments": "int8"}, (1000, 2000, 2000, 2000, 2096)),
        (HALF, {"moments": "int4", "master_bits": 24}, (1000, 2000, 1000, 2000, 1096)),
        (HALF, {"moments": "int4", "master_bits": 16}, (1000, 2000, 0, 2000, 1096)),
        ([((1000,), "float16")], {}, (1000, 2000, 4000, 2000, 8000)),
        ([((1000,), "float64")], {}, (1000, 8000, 0, 8000, 16000)),
        (MIXED[:3], {"moments": "int8"}, (66, 132, 134, 132, 130 + 12 + 2 + 6)),
        (ONE * 2, {"moments": "int4"}, (2000, 8000, 0, 8000, 2192)),
    ],
)
def test_adamas(tensors: list, options: dict, numbers: tuple[int, ...]) -> None:
    assert adamas_line(tensors, **options)[1:] == numbers


@pytest.mark.parametrize("moments", FORMATS)
@pytest.mark.parametrize(("dtype", "master_bits"), [("float32", None), ("float16", 32)])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_states_of_the_specification_have_these_sizes(
    moments: str, dtype: str, master_bits: int | None, amsgrad: bool
) -> None:
    for shape in ((), (0,), (1,), (64,), (65,), (33, 7)):
        param = np.zeros(shape, dtype)
        state = reference.initial_state(param, Hyper(amsgrad=amsgrad), moments, master_bits)
        bytes_ = {k: a.nbytes for k, a in state.items() if isinstance(a, np.ndarray)}
        line = adamas_line([(shape, dtype)], moments, master_bits, amsgrad)
        assert line.master == bytes_.pop("master", 0)
        assert line.moments == sum(bytes_.values())


def test_choices() -> None:
    names = [line.name for line in choices(ONE).lines]
    assert names == ["torch", *(f"adamas {moments}" for moments in FORMATS)]
    found = choices(HALF, 24, True, "float32")
    assert [line.name for line in found.lines] == ["torch", "torch, master", *names[1:]]
    assert [line.total for line in found.lines] == [12000, 22000, 19000, 15000, 13096, 12096]
    assert found.baseline == found.lines[1]
    assert found.refused == {}


def test_choices_that_a_dtype_cannot_have() -> None:
    found = choices([*ONE, ((3,), "float64")])
    assert [line.name for line in found.lines] == ["torch", "adamas float32"]
    assert list(found.refused) == ["bfloat16", "int8", "int4"]
    assert "must be 'float32' for parameters of float64" in found.refused["int8"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([((1,), "int64")],), "weights must be of float32, .* got 'int64'"),
        ((ONE, None, False, "uint8"), "gradients must be of float32, .* got 'uint8'"),
        (([((1,), "float16")], 24), "master_bits=24 needs bfloat16"),
        ((HALF, 8), "master_bits must be one of 32, 24, 16"),
    ],
)
def test_bad_input(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choices(*arguments)


@pytest.mark.parametrize(
    ("elements", "texts"),
    [
        (0, ("in B", "0", "0", "0.00")),
        (62, ("in B", "248", "992", "16.00")),
        (63, ("in kB", "0.252", "1.008", "16.00")),
        (700_000, ("in MB", "2.80", "11.20", "16.00")),
        (7_000_000_000, ("in GB", "28.0", "112.0", "16.00")),
        (10**18, ("in EB", "4.00", "16.00", "16.00")),
        (10**21, ("in EB", "4,000.0", "16,000.0", "16.00")),
    ],
)
def test_cells(elements: int, texts: tuple[str, ...]) -> None:
    headings, row = cells([torch_line([((elements,), "float32")])])
    assert headings[1:] == (
        *("weights", "master", "gradients", "moments", "total"),
        "bytes a param",
    )
    assert (headings[0], row[1], row[5], row[6]) == texts


def test_added_up() -> None:
    lines = [Line("a", 1, 2, 3, 4, 5), Line("b", 10, 20, 30, 40, 50)]
    assert added_up("both", lines) == Line("both", 11, 22, 33, 44, 55)
    assert added_up("both", lines).total == 154
    assert added_up("both", lines).bytes_a_parameter == 14
    assert added_up("none", []) == Line("none")
    assert Line("none").bytes_a_parameter == 0
