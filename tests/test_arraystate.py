"""The state beside NumPy arrays in each of the formats: kept, converted, refused."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from cases import as_dtype, visible

from adamas import Adam, AdamW, arrays, formats, reference, rounding

SIZE = 150
WEIGHTS = [("float32", None), ("bfloat16", 32), ("bfloat16", 24), ("bfloat16", 16)]
WEIGHTS += [("float16", None), ("float16", 16)]


def weights(dtype: str, order: Any = "C") -> np.ndarray:
    return as_dtype(1, SIZE, dtype, -3, 1).reshape(3, SIZE // 3).copy(order)


def gradient(t: int, dtype: str = "float32") -> np.ndarray:
    return visible(as_dtype(100 + t, SIZE, dtype, -20, 7, sparse=True).reshape(3, SIZE // 3))


def optimizer(param: np.ndarray, moments: str, bits: int | None = None, **options: Any) -> Adam:
    return AdamW({"w": visible(param)}, lr=0.01, moments=moments, master_bits=bits, **options)


def run(stepped: Adam, first: int, last: int, dtype: str = "float32") -> None:
    for t in range(first, last):
        stepped.step({"w": gradient(t, dtype)})


def saved(stepped: Adam) -> Any:
    file = io.BytesIO()
    np.savez(file, **stepped.state_dict())
    file.seek(0)
    return np.load(file)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(one[k].tobytes() == other[k].tobytes() for k in one)


@pytest.mark.parametrize("moments", formats.FORMATS)
@pytest.mark.parametrize(("dtype", "bits"), WEIGHTS)
def test_the_core_steps(
    dtype: str, bits: int | None, moments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All arrays in C order; in Fortran order those in which no index counts."""
    monkeypatch.delattr(arrays.reference, "step")
    run(optimizer(weights(dtype), moments, bits), 0, 2)
    if moments == "float32" and bits in (None, 32):
        run(optimizer(weights(dtype, "F"), moments, bits), 0, 2)


@pytest.mark.parametrize(
    ("dtype", "kind"), list(product(["float32", "bfloat16", "float16"], repeat=2))
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_gradients_of_other_types(dtype: str, kind: str, order: str) -> None:
    param, expected = weights(dtype, order), weights(dtype)
    stepped = optimizer(param, "float32")
    state = reference.initial_state(expected, stepped.hyper)
    for t in range(4):
        grad = as_dtype(t, SIZE, kind, -9, 3).reshape(param.shape)
        stepped.step({"w": visible(grad.astype(grad.dtype.newbyteorder()) if t % 2 else grad)})
        expected, state = reference.step(expected, grad, state, stepped.hyper)
    assert np.array_equal(param, expected)


@pytest.mark.parametrize("moments", formats.FORMATS)
@pytest.mark.parametrize(("dtype", "bits"), WEIGHTS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_continues_bit_for_bit(
    dtype: str, bits: int | None, moments: str, order: str
) -> None:
    straight, halted = weights(dtype, order), weights(dtype, order)
    one, two = (optimizer(p, moments, bits, amsgrad=True) for p in (straight, halted))
    run(one, 0, 9, dtype)
    run(two, 0, 5, dtype)
    three = optimizer(halted, moments, bits)
    with saved(two) as state:
        three.load_state_dict(state)
    assert same(three.state_dict(), two.state_dict())
    run(three, 5, 9, dtype)
    assert np.array_equal(straight, halted)
    assert same(one.state_dict(), three.state_dict())


def test_a_file_of_compact_moments_is_small() -> None:
    def nbytes(moments: str) -> int:
        state = Adam(np.zeros(1 << 16, "f4"), moments=moments).state_dict()
        return sum(array.nbytes for array in state.values())

    assert nbytes("int8") < 0.27 * nbytes("float32")
    assert nbytes("int4") < 0.14 * nbytes("float32")


def moments_of(state: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Decoded by hand."""
    moments = str(state["moments"])
    if moments in formats.CODECS:
        words = state["state/w/words"].reshape(-1)
        words = words.view("<u2") if moments == "int8" else words
        return formats.CODECS[moments].decode(words, state["state/w/scales"])
    kept = [state[f"state/w/{key}"].reshape(-1) for key in ("exp_avg", "exp_avg_sq")]
    return tuple(rounding.from_bfloat16(a) if moments == "bfloat16" else a for a in kept)


@pytest.mark.parametrize(("before", "after"), list(product(formats.FORMATS, repeat=2)))
@pytest.mark.parametrize("order", ["C", "F"])
def test_formats_are_converted(before: str, after: str, order: str) -> None:
    first = optimizer(weights("float32", order), before, amsgrad=True)
    run(first, 0, 7)
    second = optimizer(weights("float32", order), after)
    second.load_state_dict(saved(first))
    old, new = first.state_dict(), second.state_dict()
    assert new["moments"] == after
    for key in ("format", "state/w/step", "state/w/max_exp_avg_sq", "hyper/amsgrad"):
        assert np.array_equal(old[key], new[key])
    m, v = moments_of(old)
    if before != after and after != "float32":
        index = np.arange(SIZE, dtype=np.uint32)
        if after == "bfloat16":
            m = rounding.from_bfloat16(rounding.to_bfloat16(m, index, 7, other=True))
            v = rounding.from_bfloat16(rounding.to_bfloat16(v, index, 7))
        else:
            codec = formats.CODECS[after]
            m, v = codec.decode(*codec.encode(m, v, np.ones(SIZE, bool), index, 7))
    for found, expected in zip(moments_of(new), (m, v), strict=True):
        assert found.tobytes() == expected.tobytes()
    run(second, 7, 9)


def test_an_older_file_is_of_float32() -> None:
    first = optimizer(weights("float32"), "float32")
    run(first, 0, 3)
    older = first.state_dict()
    for key in ("format", "moments", "master_bits"):
        del older[key]
    second = optimizer(weights("float32"), "float32")
    second.load_state_dict(older)
    assert same(second.state_dict(), first.state_dict())
    third = optimizer(weights("float32"), "int4")
    third.load_state_dict(older)
    assert third.state_dict()["state/w/step"] == 3
    assert third.state_dict()["state/w/words"].any()


def master(param: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """That of a bfloat16 array."""
    rest = state["state/w/remainder"]
    rest = rest.view("<u2")[..., 0] if rest.ndim > param.ndim else rest
    return rounding.join(param, rest)


def test_master_weights_of_other_bits() -> None:
    param = weights("bfloat16")
    first = optimizer(param, "int8", 32)
    run(first, 0, 5)
    exact = master(param, first.state_dict())
    found = {}
    for bits, before in ((24, first), (32, first), (16, first)):
        other = optimizer(param, "float32", bits)
        other.load_state_dict(before.state_dict())
        found[bits] = other
    assert np.array_equal(master(param, found[32].state_dict()), exact)
    cut = master(param, found[24].state_dict())
    assert np.array_equal(cut.view(np.uint32), exact.view(np.uint32) & 0xFFFFFF00)
    assert "state/w/remainder" not in found[16].state_dict()
    found[32].load_state_dict(found[24].state_dict())
    assert np.array_equal(master(param, found[32].state_dict()), cut)
    found[32].load_state_dict(found[16].state_dict())
    assert np.array_equal(master(param, found[32].state_dict()), rounding.from_bfloat16(param))


def test_an_array_that_is_not_its_master_weights_rounding_is_what_counts() -> None:
    param = weights("float16")
    first = optimizer(param, "float32")
    assert np.array_equal(first.state_dict()["state/w/master"], param)
    run(first, 0, 5)
    state = first.state_dict()
    assert not np.array_equal(state["state/w/master"], param)
    same_array, another = param.copy(), param.copy()
    another[0] = 7
    second, third = optimizer(same_array, "float32"), optimizer(another, "float32")
    second.load_state_dict(state)
    third.load_state_dict(state)
    for one in (first, second, third):
        run(one, 5, 6)
    assert np.array_equal(param, same_array)
    assert np.array_equal(param[1:], another[1:])
    assert (abs(another[0] - 7) < 0.5).all()
    del state["state/w/master"]
    second.load_state_dict(state)
    assert np.array_equal(second.state_dict()["state/w/master"], same_array)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize(
    ("dtype", "bits", "moments"),
    [
        ("bfloat16", 32, "float32"),
        ("bfloat16", 24, "int8"),
        ("float16", 32, "float32"),
        ("float32", None, "int4"),
    ],
)
@pytest.mark.parametrize("cut", [slice(None), slice(None, None, 2)])
def test_copies_in_another_memory_order(
    copied: Callable[[Adam], Adam], dtype: str, bits: int | None, moments: str, cut: slice
) -> None:
    """A copy of a view has no gaps, and may be in Fortran order where the state is not."""
    param = weights(dtype, "F")[cut]
    first = optimizer(param, moments, bits)
    for t in range(3):
        first.step({"w": gradient(t)[cut]})
    second = copied(first)
    for t in range(3, 6):
        first.step({"w": gradient(t)[cut]})
        second.step({"w": gradient(t)[cut]})
    assert same(first.state_dict(), second.state_dict())
    assert np.array_equal(visible(param), second._params["w"])


BAD_FORMATS: list[tuple[str, dict[str, Any], str]] = [
    ("float32", {"moments": "int2"}, "moments must be one of float32, .*, got 'int2'"),
    ("float32", {"moments": None}, "moments must be one of float32, .*, got None"),
    ("float32", {"master_bits": 8}, "master_bits must be one of 32, 24, 16, .* got 8"),
    ("float64", {"moments": "int8"}, "moments must be 'float32' for parameters of float64"),
    ("float64", {"moments": "bfloat16"}, "got 'bfloat16': set it so"),
    ("float16", {"master_bits": 24}, "master_bits=24 needs bfloat16 parameters"),
]


@pytest.mark.parametrize(("dtype", "options", "message"), BAD_FORMATS)
def test_bad_formats(dtype: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adam([np.ones(3, "f4"), np.ones(3, dtype)], **options)


def with_scales(*group: int) -> np.ndarray:
    scales = np.tile(np.array([0x3000, 0x3F80, 0x3F80], np.uint16), (3, 1))
    scales[1] = group
    return scales


BAD_STATES: list[tuple[dict[str, Any], str]] = [
    ({"format": 2}, "the state's format must be 1, got 2: load it with the version"),
    ({"format": "x"}, "the state's format must be 1, got 'x'"),
    ({"moments": "int2"}, "moments must be one of .*, got 'int2': the state is damaged"),
    ({"moments": None}, "it has no 'moments'"),
    ({"master_bits": 8}, "master_bits must be one of .* got 8: the state is damaged"),
    ({"master_bits": None}, "it has no 'master_bits'"),
    ({"moments": "float32"}, "it lacks 'state/w/exp_avg', .* has 'state/w/scales', 'state/w/words"),
    ({"state/w/words": None}, "it lacks 'state/w/words' and has none beyond"),
    ({"state/w/master": np.ones((3, 50), "f4")}, "has 'state/w/master' beyond"),
    ({"moments": "int4"}, r"words of array 'w' must be uint8 of shape \(3, 50\), got uint8 of"),
    ({"state/w/words": np.ones((3, 50), "u1")}, r"must be uint8 of shape \(3, 50, 2\)"),
    ({"state/w/words": np.ones((3, 50, 2), "u2")}, "words of array 'w' must be uint8, got uint16"),
    ({"state/w/scales": np.ones((2, 3), "u2")}, r"scales of array 'w' must be .* shape \(3, 3\)"),
    ({"state/w/scales": np.ones((3, 3), "f4")}, "must be uint16 of shape .* got float32"),
    ({"state/w/scales": with_scales(2, 1, 0)}, "got 0x0002, 0x0001, 0x0000 for group 1: the"),
    ({"state/w/scales": with_scales(0, 0x7F80, 0)}, "a largest v from there to 0x7f7f"),
    ({"state/w/scales": with_scales(0xFFFF, 0xFFFF, 0)}, "scales of array .w. must be a smallest"),
    ({"state/w/scales": with_scales(0, 1, 0x7F80)}, "largest .u. not infinite or negative"),
    ({"state/w/scales": with_scales(0, 1, 0x8000)}, "got 0x0000, 0x0001, 0x8000 for group 1"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_STATES)
@pytest.mark.parametrize("moments", ["int8", "float32"])
def test_a_bad_state_changes_nothing(changes: dict[str, Any], message: str, moments: str) -> None:
    source = optimizer(weights("float32"), "int8")
    run(source, 0, 3)
    changed = source.state_dict() | changes
    state = {key: np.array(value) for key, value in changed.items() if value is not None}
    param = weights("float32")
    loading = optimizer(param, moments)
    run(loading, 0, 2)
    before, bytes_before = loading.state_dict(), param.tobytes()
    with pytest.raises(ValueError, match=message):
        loading.load_state_dict(state)
    assert same(loading.state_dict(), before)
    assert param.tobytes() == bytes_before


def test_states_of_arrays_of_another_type() -> None:
    compact = Adam({"w": np.ones(3, "f4")}, moments="int8").state_dict()
    with pytest.raises(ValueError, match="of another type than array 'w': moments must be 'float"):
        Adam({"w": np.ones(3)}).load_state_dict(compact)
    negative = Adam({"w": np.ones(3, "f4")}).state_dict()
    negative["state/w/exp_avg_sq"] = np.array([1, -0.5, 0], "f4")
    for moments in ("float32", "bfloat16", "int8"):
        optimizer = Adam({"w": np.ones(3, "f4")}, moments=moments)
        with pytest.raises(ValueError, match=r"exp_avg_sq of array 'w' must be at least 0, got -0"):
            optimizer.load_state_dict(negative)
    with_master = Adam({"w": np.ones(3, "f2")}).state_dict()
    with pytest.raises(ValueError, match="has 'state/w/master' beyond them"):
        Adam({"w": np.ones(3, "f4")}).load_state_dict(with_master)


def test_a_negative_zero_is_converted_as_zero() -> None:
    state = Adam({"w": np.ones(3, "f4")}).state_dict()
    state["state/w/exp_avg_sq"] = np.array([1, -0.0, 0], "f4")
    loading = Adam({"w": np.ones(3, "f4")}, moments="int8")
    loading.load_state_dict(state)
    assert moments_of(loading.state_dict())[1].tolist() == [1, 0, 0]


def test_an_older_pickle_knows_no_formats() -> None:
    param = weights("float16")
    first = optimizer(param, "float32")
    kept = first.__getstate__()
    del kept["_format"]
    del kept["_state"]["w"]["master"]
    second = AdamW.__new__(AdamW)
    second.__setstate__(kept)
    assert np.array_equal(second.state_dict()["state/w/master"], param)
