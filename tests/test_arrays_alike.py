"""Arrays whose gradients all lie like them are stepped at once, to the same bits and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import adamas
from adamas import native

Step = tuple[adamas.Adam, list[np.ndarray], list[Any]]
SHAPES = ((3, 4), (70,), (0,), (2, 3, 5), (4, 5))


def made(dtype: str = "float32", **options: Any) -> Step:
    """An optimizer, its arrays, of which one is in Fortran order, and gradients that lie so."""
    random = np.random.default_rng(0)
    params = [random.standard_normal(shape).astype(dtype) for shape in SHAPES]
    params[-1] = np.asfortranarray(params[-1])
    grads = [np.empty_like(p) for p in params]
    for grad in grads:
        grad[...] = random.standard_normal(grad.shape)
    return adamas.Adam(params, lr=0.1, **options), params, grads


def takes(optimizer: adamas.Adam, grads: Any) -> bool:
    """Steps by gradients that lie like their arrays; whether they do."""
    return optimizer._step_alike(grads)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("form", [list, tuple])
def test_the_bits_are_those_of_others(dtype: str, form: Callable[[list[Any]], Any]) -> None:
    (fast, params, grads), (slow, same, _) = made(dtype), made(dtype)
    slow._alike = None
    for t in range(1, 4):
        given = [grad / np.dtype(dtype).type(t) for grad in grads]
        assert takes(fast, form(given))
        slow.step(given)
    for one, other in zip(params, same, strict=True):
        assert one.tobytes() == other.tobytes()
    states, others = fast.state_dict(), slow.state_dict()
    assert {k: v.tobytes() for k, v in states.items()} == {
        k: v.tobytes() for k, v in others.items()
    }


def test_mappings_and_lone_arrays() -> None:
    params = {"w": np.ones(3), "b": np.ones(3)}
    grads = {"w": np.ones(3), "b": -np.ones(3)}
    optimizer = adamas.Adam(params)
    assert takes(optimizer, grads)
    assert not takes(optimizer, dict(reversed(grads.items())))  # the same, in another order
    assert not takes(optimizer, {"w": grads["w"]})
    assert takes(adamas.Adam(np.ones(3)), np.ones(3))


def test_what_a_loaded_state_holds_is_stepped() -> None:
    (one, params, grads), (other, same, _) = made(), made()
    one.step(grads)
    other.load_state_dict(one.state_dict())
    for p, q in zip(params, same, strict=True):
        q[...] = p
    for optimizer in (one, other):
        assert takes(optimizer, grads)
    assert all(map(np.array_equal, params, same))


def odd(array: np.ndarray) -> np.ndarray:
    """A copy at an odd address."""
    room = np.zeros(array.nbytes + 1, np.uint8)[1:]
    copy = room[: array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


OTHERS: dict[str, Callable[[np.ndarray], Any]] = {
    "missing": lambda grad: None,
    "narrow": lambda grad: grad.astype(np.float16),
    "in another order": np.asfortranarray,
    "with gaps": lambda grad: np.repeat(grad, 2, 1)[:, ::2],
    "of a subclass": lambda grad: grad.view(type("Own", (np.ndarray,), {})),
    "in the other byte order": lambda grad: grad.astype(">f4"),
    "at an odd address": odd,
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_gradients_that_lie_otherwise(change: Callable[[np.ndarray], Any]) -> None:
    (one, params, grads), (other, same, _) = made(), made()
    other._alike = None
    given = [change(grads[0]), *grads[1:]]
    assert not takes(one, given)
    for optimizer in (one, other):
        optimizer.step(given)
    assert all(map(np.array_equal, params, same))


def test_gradients_in_the_memory_of_arrays() -> None:
    (one, params, grads), (other, same, _) = made(), made()
    other._alike = None
    assert not takes(one, [params[0], *grads[1:]])
    one.step([params[0], *grads[1:]])
    other.step([same[0], *grads[1:]])
    assert all(map(np.array_equal, params, same))


def resize(p: np.ndarray) -> None:
    p.resize((2, 6), refcheck=False)


def regrow(p: np.ndarray) -> None:
    p.resize((40, 40), refcheck=False)


def shorten(p: np.ndarray) -> None:
    """Whose strides stay."""
    p.resize((2, 4), refcheck=False)


def lock(p: np.ndarray) -> None:
    p.flags.writeable = False


ERRORS: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "resized": (resize, "was resized"),
    "resized elsewhere": (regrow, "was resized"),
    "shortened": (shorten, "was resized"),
    "read-only": (lock, "is read-only"),
}


@pytest.mark.parametrize(("change", "message"), ERRORS.values(), ids=ERRORS)
def test_arrays_that_have_changed(change: Callable[[np.ndarray], Any], message: str) -> None:
    optimizer, params, grads = made()
    change(params[0])
    before = [p.copy() for p in params]
    grads[0] = np.zeros_like(params[0])
    with pytest.raises(ValueError, match=message):
        optimizer.step(grads)
    assert all(map(np.array_equal, params, before))


def test_a_gradient_that_is_shorter() -> None:
    """With its array's strides."""
    optimizer, params, grads = made()
    before = [p.copy() for p in params]
    grads[0] = grads[0][:2].copy()
    assert grads[0].strides == params[0].strides
    with pytest.raises(ValueError, match="must have its array's shape"):
        optimizer.step(grads)
    assert all(map(np.array_equal, params, before))


@pytest.mark.parametrize(
    "grads", [None, [], [np.ones(3)] * 4, 3, "grads", iter([np.ones(3)]), [1.0] * 5]
)
def test_what_is_no_gradients(grads: Any) -> None:
    optimizer, params, _ = made()
    before = [p.copy() for p in params]
    assert not takes(optimizer, grads)
    with pytest.raises((ValueError, TypeError)):
        optimizer.step(grads)
    assert all(map(np.array_equal, params, before))


@pytest.mark.parametrize("grads", [[np.ones(2)], np.ones(2), [np.ones(4)[::2]], np.ones(4)[::2]])
def test_gradients_of_a_mapping_have_names(grads: Any) -> None:
    """However they lie."""
    param = np.zeros(2)
    optimizer = adamas.Adam({"w": param})
    with pytest.raises(ValueError, match="pass them in the form of params"):
        optimizer.step(grads)
    assert not param.any()


def test_what_is_read_of_an_array_is_what_numpy_says() -> None:
    """Else nothing is ever stepped so."""
    array = np.zeros((3, 5), np.float64)[::2, 1:]
    address, *told = native.ArrayWatch.fields(array)
    assert address == array.__array_interface__["data"][0]
    assert told == [array.shape, array.strides, id(array.dtype), array.flags.num]
    assert made()[0]._alike is not None
    with pytest.raises(TypeError, match="only NumPy's arrays"):
        native.ArrayWatch([3], np.ndarray)  # type: ignore[list-item]


def test_arrays_that_the_core_does_not_step() -> None:
    optimizer = adamas.Adam([np.ones((4, 4))[:, ::2], np.ones(3)])
    assert optimizer._alike is None
    optimizer.step([np.ones((4, 2)), np.ones(3)])
