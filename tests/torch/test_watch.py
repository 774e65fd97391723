"""The watch for torch before 2.10 does what the compiled one does."""

from __future__ import annotations

import pytest
import test_optimizer
import test_regressions
import torch
from torch import nn

from adamas.torch import Adam, table
from adamas.torch.watch import PythonWatch


@pytest.fixture(autouse=True)
def _python_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "watch", PythonWatch)


SAME = [
    test_optimizer.test_tensors_that_move_between_steps,
    test_optimizer.test_gradients_that_lie_elsewhere_each_step,
    test_optimizer.test_a_gradient_that_is_the_parameter,
    test_optimizer.test_the_table_is_kept_while_nothing_moves,
    test_regressions.test_row_1_empty_tensors_in_the_list,
    test_regressions.test_row_8_each_parameter_has_its_own_step,
    test_regressions.test_row_20_amsgrad_keeps_its_maximum_by_group,
]


@pytest.mark.parametrize("test", SAME, ids=lambda test: test.__name__)
def test_as_with_the_compiled_watch(test: object) -> None:
    test()  # type: ignore[operator]


def test_it_is_the_python_watch_that_steps() -> None:
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = Adam([p], lr=0.5)
    optimizer.step()
    assert isinstance(optimizer._plan._table._watch, PythonWatch)
    assert p.tolist() == [0.5, 0.5]
