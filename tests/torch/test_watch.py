"""The watches for older torch do what the one for the newest does."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import test_bad_input
import test_optimizer
import test_regressions
import torch
from torch import nn

from adamas import native
from adamas.torch import Adam, watch
from adamas.torch.watch import PythonWatch


@pytest.fixture(params=["no C shim", "no exchange API"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """Takes from torch what older ones lack."""
    if request.param == "no C shim":
        monkeypatch.setattr(watch, "_shim", lambda: None)
        return native.Watch
    monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    return PythonWatch


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
    kind: type,
) -> None:
    test_bad_input.test_a_bad_step_touches_nothing(spoil, error, message, torch.float32, 1)


@pytest.mark.parametrize("test", SAME, ids=lambda test: test.__name__)
def test_as_with_the_newest(test: object, kind: type) -> None:
    test()  # type: ignore[operator]


def test_the_watch_that_steps(kind: type) -> None:
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = Adam([p], lr=0.5)
    optimizer.step()
    assert type(optimizer._plan._tables[0]._watch) is kind
    assert p.tolist() == [0.5, 0.5]


def test_this_torch_has_the_shim() -> None:
    """Which none of the tests above would miss."""
    assert watch._shim() is not None
    assert hasattr(torch.Tensor, "__dlpack_c_exchange_api__")


def test_moments_are_given_back() -> None:
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = Adam([p])
    optimizer.step()
    moment = weakref.ref(optimizer.state[p]["exp_avg"])
    del optimizer
    gc.collect()
    assert moment() is None
