"""The watches for older torch do what the one for the newest does."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import test_bad_input
import test_optimizer
import test_regressions
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from adamas import native
from adamas.torch import Adam, watch
from adamas.torch.watch import PythonWatch


@pytest.fixture
def in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes from torch what older ones lack."""
    monkeypatch.setattr(watch, "_exports", lambda: None)


@pytest.fixture(params=["compiled", "python"])
def either(request: pytest.FixtureRequest) -> None:
    """Looks by the compiled watch, and then by the one in Python."""
    if request.param == "python":
        request.getfixturevalue("in_python")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SAME = [
    test_optimizer.test_tensors_that_move_between_steps,
    test_optimizer.test_gradients_that_lie_elsewhere_each_step,
    test_optimizer.test_a_gradient_that_is_the_parameter,
    test_optimizer.test_the_table_is_kept_while_nothing_moves,
    test_regressions.test_row_1_empty_tensors_in_the_list,
    test_regressions.test_row_8_each_parameter_has_its_own_step,
    test_regressions.test_row_20_amsgrad_keeps_its_maximum_by_group,
    test_regressions.test_row_20_amsgrad_switched_off_leaves_the_maximum_alone,
]


@pytest.mark.parametrize(("spoil", "error", "message"), test_bad_input.BAD_STEPS)
def test_a_bad_step_as_with_the_newest(
    spoil: Callable[[nn.Parameter, Adam], None],
    error: type[Exception],
    message: str,
    in_python: None,
) -> None:
    test_bad_input.test_a_bad_step_touches_nothing(spoil, error, message, torch.float32, 1)


@pytest.mark.parametrize("test", SAME, ids=lambda test: test.__name__)
def test_as_with_the_newest(test: object, in_python: None) -> None:
    test()  # type: ignore[operator]


def stepped() -> tuple[Adam, nn.Parameter, nn.Parameter]:
    """An optimizer that has stepped the first of two parameters."""
    one, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    one.grad = torch.ones(2)
    optimizer = Adam([one, other], lr=0.5)
    optimizer.step()
    return optimizer, one, other


def test_the_watch_that_steps(in_python: None) -> None:
    optimizer, one, _ = stepped()
    assert type(optimizer._plan._tables[0]._watch) is PythonWatch
    assert one.tolist() == [0.5, 0.5]


def test_this_torch_exports_what_the_compiled_watch_needs() -> None:
    """Which none of the tests above would miss."""
    assert type(stepped()[0]._plan._tables[0]._watch) is native.Watch


MODES: dict[str, Callable[[], Any]] = {
    "meta": lambda: torch.device("meta"),
    "fake": FakeTensorMode,
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


@pytest.mark.parametrize("mode", MODES)
def test_whatever_torch_makes_by_default(mode: str) -> None:
    """Which is of the first step alone, but what is found then stays."""
    with MODES[mode]():
        assert watch._exports.__wrapped__() is not None


def test_a_step_shows_in_the_versions_of_what_it_writes(either: None) -> None:
    optimizer, one, other = stepped()
    other.grad = torch.ones(2)
    optimizer.step()
    before = one._version, other._version
    one.grad = None
    optimizer.step()
    assert (one._version, other._version) == (before[0], before[1] + 1)


@pytest.mark.parametrize("shape", [(3, 3), (1, 1, 1, 1, 1, 1, 3, 3)])
def test_a_moment_that_is_turned_in_its_place(shape: tuple[int, ...], either: None) -> None:
    """Its address is what it was, and its elements are in another order."""
    params = [nn.Parameter(torch.ones(shape)) for _ in range(2)]
    one, other = (i for i, size in enumerate(shape) if size == 3)
    optimizers = [Adam(params[:1], lr=0.1), torch.optim.Adam(params[1:], lr=0.1)]
    for step in range(3):
        for p, optimizer in zip(params, optimizers, strict=True):
            if step:
                optimizer.state[p]["exp_avg"].transpose_(one, other)
            p.grad = torch.arange(9.0).reshape(shape) - 3.5
            optimizer.step()
    torch.testing.assert_close(params[0], params[1], rtol=0, atol=2e-6)
    optimizers[0].state[params[0]]["exp_avg"].resize_(3)
    wanted = ", ".join(map(str, shape))
    with pytest.raises(ValueError, match=rf"have exp_avg of shape \({wanted}\), got \(3,\)"):
        optimizers[0].step()


def test_a_moment_that_becomes_of_another_type_in_its_place(either: None) -> None:
    """Its numbers are then what is read, as of any state in another type than is kept."""
    optimizer, one, _ = stepped()
    moment = optimizer.state[one]["exp_avg"]
    moment.data = moment.view(torch.int32)
    number = moment[0].item()
    optimizer.step()
    found = optimizer.state[one]["exp_avg"]
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([0.9 * number + 0.1] * 2)


@pytest.mark.parametrize("place", ["_SIZES", "_STRIDES", "_OFFSET", "_TYPE"])
def test_a_torch_whose_tensors_describe_themselves_otherwise(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not asked by a watch that would read something else."""
    monkeypatch.setattr(watch, place, 2)
    assert watch._exports.__wrapped__() is None


def test_tensors_swapped_between_steps() -> None:
    """The parameter is then what the other was; a watch must neither refuse that nor miss it."""
    optimizer, one, _ = stepped()
    new = nn.Parameter(torch.full((2,), 3.0))
    torch.utils.swap_tensors(one, new)
    one.grad = torch.ones(2)
    optimizer.step()
    assert one.tolist() == [2.5, 2.5]
    assert new.tolist() == [0.5, 0.5]


def test_a_gradient_of_a_class_that_has_its_own() -> None:
    class Doubled(nn.Parameter):
        @property
        def grad(self) -> torch.Tensor:  # type: ignore[override]
            return torch.full((2,), 2.0)

    one = Doubled(torch.ones(2))
    optimizer = Adam([one], lr=0.5, eps=1.0)
    optimizer.step()
    twin = nn.Parameter(torch.ones(2))
    twin.grad = torch.full((2,), 2.0)
    Adam([twin], lr=0.5, eps=1.0).step()
    assert torch.equal(one.detach(), twin.detach())


def test_moments_are_given_back() -> None:
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = Adam([p])
    optimizer.step()
    moment = weakref.ref(optimizer.state[p]["exp_avg"])
    del optimizer
    gc.collect()
    assert moment() is None


def test_pairs_of_bytes_at_an_odd_address_are_copied_to_an_even_one() -> None:
    """A GPU reads both bytes at once, which an odd address does not allow."""
    optimizer, twin = (Adam([nn.Parameter(torch.ones(70))], moments="int8") for _ in range(2))
    for one in (optimizer, twin):
        one.param_groups[0]["params"][0].grad = torch.linspace(-1, 1, 70)
        one.step()
    (state,) = optimizer.state.values()
    words = torch.zeros(141, dtype=torch.uint8)[1:].view(70, 2)
    state["words"] = words.copy_(state["words"])
    optimizer.step()
    twin.step()
    (state,), (expected,) = optimizer.state.values(), twin.state.values()
    assert state["words"].data_ptr() % 2 == 0
    assert torch.equal(state["words"], expected["words"])


@pytest.mark.parametrize("gap", [1, 2], ids=["core", "plain"])
def test_all_or_none_is_stepped_beside_one_made_in_inference_mode(gap: int) -> None:
    with torch.inference_mode():
        inferred = nn.Parameter(torch.ones(4, 4)[:, ::gap])
    params = [nn.Parameter(torch.ones(3)), inferred, nn.Parameter(torch.ones(8)[::2])]
    with torch.inference_mode():
        for p in params:
            p.grad = torch.ones(p.shape)
    optimizer = Adam(params, lr=0.5)
    with pytest.raises(RuntimeError, match="parameter 1 of group 0 or its state was made in infer"):
        optimizer.step()
    assert all(p.eq(1).all() and not optimizer.state[p].get("step") for p in params)
    with torch.inference_mode():
        optimizer.step()
    assert all(p.eq(0.5).all() and optimizer.state[p]["step"] == 1 for p in params)


def test_parameters_made_in_inference_mode_are_stepped_there_only() -> None:
    with torch.inference_mode():
        p = nn.Parameter(torch.ones(2))
        p.grad = torch.ones(2)
        optimizer = Adam([p], lr=0.5)
        optimizer.step()
    with pytest.raises(RuntimeError, match=r"^Inplace update to inference tensor") as caught:
        optimizer.step()
    assert "\n" not in str(caught.value)
    assert p.tolist() == [0.5, 0.5]
    assert optimizer.state[p]["step"] == 1
