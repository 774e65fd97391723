"""What a step finds out on the device before it steps, without a wait; see ``prepare``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...hyper import Coefficients
from . import Outcome, Request, prepare
from .jit import Launcher
from .launches import Launches


class Guard:
    """The memory that finding it out takes, on the device of some launches.

    Args:
        launches: what steps.
        rows: of its table.
    """

    def __init__(self, launches: Launches, rows: int) -> None:
        self._launches = launches
        device = self._device = launches.device
        self.steps = torch.zeros(rows, dtype=torch.int64, device=device)
        self._set_of = torch.zeros(rows, dtype=torch.int64, device=device)
        self._hypers = torch.zeros(0, device=device)
        self._sent: NDArray[np.float64] = np.zeros(0)
        partials = prepare.MOST_PROGRAMS, prepare.PARTIAL_COLUMNS
        self._partials = torch.zeros(partials, dtype=torch.float64, device=device)
        self._prepare = Launcher(prepare.prepare)
        self._counter = torch.zeros(1, dtype=torch.int32, device=device)
        self._settings = torch.zeros(1, dtype=torch.float64, device=device)
        self._max_norm = 0.0
        self.skip = torch.zeros(1, dtype=torch.int32, device=device)
        self._multiprocessors = multiprocessors(device)

    def count(self, steps: Sequence[int | Tensor], set_of: NDArray[np.int64]) -> None:
        """Takes over the counts of steps, and of each row which set of hyperparameters it has."""
        together = _whole_of(steps)
        if together is not None:  # a graph may go on counting there, or another plan
            self.steps = together
        elif all(isinstance(step, Tensor) for step in steps):
            torch.stack([step.to(torch.int64) for step in steps], out=self.steps)  # type: ignore[union-attr]
        else:
            numbers = np.array([int(step) for step in steps], np.int64)
            self.steps = self._launches.sent(numbers, self.steps)
        self._set_of = self._launches.sent(set_of, self._set_of)
        self._launches.reserve()

    def after(self, launches: Launches) -> Guard:
        """Another one, with memory of its own but for the counts of steps."""
        guard = Guard(launches, len(self.steps))
        guard.steps, guard._set_of = self.steps, self._set_of
        launches.reserve()
        return guard

    def addresses(self) -> list[int]:
        """The addresses of the rows' counts of steps."""
        first, size = self.steps.data_ptr(), self.steps.element_size()
        return [first + i * size for i in range(len(self.steps))]

    def run(
        self,
        request: Request,
        outcome: Outcome,
        hypers: NDArray[np.float64] | None,
        capturing: bool,
    ) -> None:
        """Launches ``prepare``.

        Args:
            request: what is wanted.
            outcome: where it goes.
            hypers: (sets, 14) where the device counts the steps, which finds the coefficients by
                them; else None, and the coefficients are there.
            capturing: whether a graph is captured, which then sends all that it needs itself.
        """
        launches = self._launches
        max_norm = request.max_grad_norm or 0.0
        if max_norm != self._max_norm or capturing:
            self._settings = launches.sent(np.array([max_norm]), self._settings)
            self._max_norm = max_norm
        if hypers is not None:
            shape = len(self.steps), len(Coefficients._fields)
            if launches.coefficients.shape != shape:
                launches.coefficients = outcome.results.new_zeros(shape)
            same = np.array_equal(hypers.view(np.int64), self._sent.view(np.int64))
            if not same or capturing:
                self._hypers = launches.sent(hypers, self._hypers)
                self._sent = hypers
        tensors = prepare.Tensors(
            launches.chunks,
            self._settings,
            self._hypers,
            self.steps,
            self._set_of,
            launches.placed,
            launches.coefficients,
            self._partials,
            self._counter,
            self.skip,
            outcome.results,
            outcome.last,
            outcome.skipped,
        )
        prepare.launch(
            self._prepare,
            tensors,
            moved=launches.moved,
            grad_scale=self._here(request.grad_scale),
            found_inf=self._here(request.found_inf),
            norm=request.max_grad_norm is not None,
            skip_nonfinite=request.skip_nonfinite,
            device_steps=hypers is not None,
            alignment=16 if launches.aligned else 1,
            multiprocessors=self._multiprocessors,
        )
        launches.moved = False

    def _here(self, tensor: Tensor | None) -> Tensor | None:
        """What a gradient scaler keeps where the loss is, which may be another device."""
        return None if tensor is None else tensor.to(self._device, non_blocking=True)


def multiprocessors(device: torch.device) -> int:
    """Of a device, or what many have where it does not say."""
    if device.type != "cuda":
        return 128
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def _whole_of(steps: Sequence[int | Tensor]) -> Tensor | None:
    """The counts of another guard, if these are all of them in order, or one of them; else None."""
    first = steps[0]
    base = first._base if isinstance(first, Tensor) else None
    if base is None or not isinstance(first, Tensor):
        return None
    if len(steps) == 1:
        return first.reshape(1)
    in_order = base.shape == (len(steps),) and all(
        isinstance(step, Tensor) and step._base is base and step.storage_offset() == i
        for i, step in enumerate(steps)
    )
    return base if in_order else None
