"""Who steps what: the core's table, and plain torch operations for everything else."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from itertools import compress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import native
from ..hyper import Coefficients, Hyper
from ..interrupts import deferred
from . import copied, plain
from .gradnorm import Part, rows_of, squared_norm
from .hyperparameters import hyper_of
from .kinds import Kind, kept, kind_of, ordered
from .layout import COMPUTE, is_dense_on_cpu
from .overlap import address, refuse_overlap
from .recode import State, trained
from .sharding import local, local_like, shards_of
from .state import (
    Entry,
    check_grad,
    check_param,
    check_recordable,
    check_state,
    zero_states,
)
from .statistics import Found, Taken, columns_of
from .table import Table

Groups = list[dict[str, Any]]  # torch's param_groups
States = MutableMapping[Tensor, State]


class Plan:
    """What a step of these parameters does, made once and kept while it holds.

    Attributes:
        taken: what the last step went by.

    Args:
        groups: the parameter groups.
        states: the optimizer's states; one is made for each parameter that has a gradient.

    Raises:
        RuntimeError, TypeError, ValueError: a parameter, gradient or state cannot be stepped. Then
            nothing was changed.
    """

    def __init__(self, groups: Groups, states: States) -> None:
        kinds = [kind_of(group) for group in groups]
        entries = list(_entries(groups, kinds, states))
        takes = [_core_takes(e.param, kinds[e.group]) for e in entries]
        self._fast = fast = list(compress(entries, takes))
        self._plain = list(compress(entries, (not taken for taken in takes)))
        sets = [(e.group, COMPUTE[e.param.dtype]) for e in fast]
        self._sets = list(dict.fromkeys(sets))
        self._table = Table(
            [e.param for e in fast],
            [e.state for e in fast],
            [kinds[e.group] for e in fast],
            [self._sets.index(s) for s in sets],
            [e.name for e in fast],
        )
        # The table has looked at its own; these may share memory with them, too.
        if self._plain:
            written = [_written(e, kinds[e.group]) for e in entries]
            refuse_overlap([e.name for e in entries], written)
        self._places = [_places(e, kinds[e.group]) for e in self._plain]
        shards = [shards_of(e.param) for e in (*fast, *self._plain)]
        self._shards = list(dict.fromkeys(shards))
        self._part_of = np.array([self._shards.index(s) for s in shards], np.int64)
        for entry in entries:  # from here on nothing fails
            states[entry.param] = entry.state
        self._params = params = _params(groups)
        self._states = list(states.values())
        self._waiting = [param for param in params if param not in states]
        self._kinds = kinds
        self._even = True  # and the gradients of the plain ones: of the last look
        self._grads: list[tuple[Entry, Tensor]] = []
        self._with_grad: list[int] = []

    def holds(self, groups: Groups, states: States) -> bool:
        """Whether the plan is still of these parameters and states."""
        return (
            native.identical(_params(groups), self._params)
            and native.identical(list(states.values()), self._states)
            and all(param.grad is None for param in self._waiting)
            and all(map(_is_of, groups, self._kinds))
        )

    def look(self, groups: Groups) -> bool:
        """Finds the gradients of the next step, or raises if one cannot be used.

        Returns:
            False if a tensor has moved since the plan was made, which then is of no more use.
        """
        answer = self._table.look()
        self._even = not answer & native.UNEVEN
        self._grads, self._with_grad = [], []
        for i, entry in enumerate(self._plain):
            kind = self._kinds[entry.group]
            if entry.param.grad is not None:
                check_grad(entry.param, entry.param.grad, entry.name)
                if kind.differentiable:
                    check_recordable(entry.param, entry.state, entry.name)
                if check_state(entry.param, entry.state, kind, entry.name) is not entry.state:
                    return False
                self._grads.append((entry, local_like(entry.param.grad, entry.param)))
                self._with_grad.append(i)
            if _places(entry, kind) != self._places[i]:
                return False
        return not answer & native.MOVED

    def forget(self) -> None:
        """Lets go of what the last look has copied of gradients."""
        self._grads = []
        self._table.forget()

    def squared_norm(self, unscale: float) -> float:
        """The sum of the squares of all gradients of the last look; see ``adamas.norm``."""
        plain_rows, copies = rows_of([grad for _, grad in self._grads])
        rows = np.concatenate([self._table.rows, plain_rows])
        present = np.concatenate([self._table.steps >= 0, np.ones(len(copies), np.bool_)])
        table = len(self._table.params)
        part_of = self._part_of[[*range(table), *(table + i for i in self._with_grad)]]
        parts = [
            Part(shards, rows[present & (part_of == i)]) for i, shards in enumerate(self._shards)
        ]
        return squared_norm(parts, unscale)

    def finite(self, unscale: float) -> bool:
        """Whether all gradients of the last look are, unscaled; their squares may not be."""
        grads = [local(p.grad) for p in self._table.params if p.grad is not None]
        grads += [grad for _, grad in self._grads]
        answer = torch.tensor(all(bool(torch.isfinite(grad * unscale).all()) for grad in grads))
        for shards in self._shards:
            answer = shards.all_reduce(answer.int(), least=True) if shards else answer
        return bool(answer)

    def step(
        self, groups: Groups, unscale: float = 1.0, clip: float = 1.0, measure: bool = False
    ) -> list[Found]:
        """Steps every parameter that had a gradient at the last look, or raises and touches none.

        Args:
            groups: the parameter groups.
            unscale: what the gradients are multiplied with first,
            clip: and then.
            measure: whether to find out what the step does.

        Returns:
            What was found, if so.
        """
        hypers = [hyper_of(group) for group in groups]
        grads, self._grads = self._grads, []
        plain_ones = [entry for entry, _ in grads]
        self.taken = Taken(self._fast, self._table.steps.copy(), plain_ones, hypers, unscale)
        if not grads:
            return self._step_table(hypers, unscale, clip, measure)
        with native.default_floating_point(), deferred():
            pending = []
            for entry, grad in grads:
                state = {key: local(value) for key, value in entry.state.items()}
                hyper, kind = hypers[entry.group], self._kinds[entry.group]
                with torch.set_grad_enabled(_differentiable(groups, entry)):
                    tensors = groups[entry.group] if _recorded(groups[entry.group]) else None
                    param = local(entry.param)
                    if copied.needed(entry.param, kind):
                        pairs = copied.step(entry.param, grad, state, kind, hyper, unscale, clip)
                    else:
                        pairs = plain.step(param, grad, state, hyper, unscale, clip, tensors)
                    pending.append(list(pairs))
            found = self._step_table(hypers, unscale, clip, measure)
            for (entry, grad), values in zip(grads, pending, strict=True):
                before = trained(entry.param, entry.state).clone() if measure else None
                with torch.set_grad_enabled(_differentiable(groups, entry)):
                    for target, value in values:
                        target.copy_(value)
                entry.state["step"] += 1
                if before is not None:
                    found.append(Found(*entry, columns_of(entry, grad * unscale, before)))
        return found

    def everything(self, groups: Groups) -> Taken:
        """What a step of all that were ever stepped would have gone by."""
        entries = [e for e in (*self._fast, *self._plain) if e.state["step"]]
        return Taken([], np.zeros(0, np.int64), entries, [hyper_of(group) for group in groups])

    def _step_table(
        self, hypers: list[Hyper], unscale: float, clip: float, measure: bool
    ) -> list[Found]:
        table = self._table
        params, rows, steps = table.params, table.rows, table.steps
        if not params:
            return []
        if self._even:
            kinds = [[number, int(steps[0])] for number in range(len(self._sets))]
        else:
            present = np.flatnonzero(steps >= 0)
            params, rows = [params[i] for i in present], rows[present]
            pairs = np.stack([table.sets, steps], 1)[present]
            distinct, inverse = np.unique(pairs, axis=0, return_inverse=True)
            rows[:, native.COEFFICIENTS] = inverse.reshape(-1)
            kinds = distinct.tolist()
        coefficients = []
        for number, step in kinds:
            group, compute = self._sets[number]
            coefficients.append(hypers[group].coefficients(step + 1, compute, unscale, clip))
        table_of_them = np.array(coefficients, np.float64).reshape(-1, len(Coefficients._fields))
        # The core writes behind autograd's back: a graph that saved a parameter must not use it.
        # This goes first, while what it touches is still in the caches.
        torch.autograd.graph.increment_version(params)
        measures = np.zeros((len(rows), native.MEASURES)) if measure else None
        threads, counts = torch.get_num_threads(), (table.states, steps)
        native.step(rows, table_of_them, threads, counts=counts, measures=measures)
        if measures is None:
            return []
        entries = compress(self._fast, steps >= 0)
        return [Found(*entry, row) for entry, row in zip(entries, measures, strict=True)]


def held(plan: Plan | None, groups: Groups, states: States) -> Plan:
    """The plan as long as it holds, else a new one."""
    return plan if plan and plan.holds(groups, states) else Plan(groups, states)


def ready(plan: Plan | None, groups: Groups, states: States) -> Plan:
    """The plan as long as it holds and nothing has moved, else a new one: it has looked.

    Raises:
        RuntimeError, TypeError, ValueError: as ``Plan`` and ``Plan.look``.
    """
    plan = held(plan, groups, states)
    if not plan.look(groups):
        plan = Plan(groups, states)
        if not plan.look(groups):
            raise RuntimeError("a parameter or its state was moved while it was stepped")
    return plan


def name_of(group: dict[str, Any], number: int, i: int) -> str:
    """What errors and statistics call the parameter i of the group of this number."""
    names = group.get("param_names")
    return str(names[i]) if names else f"parameter {i} of group {number}"


def _params(groups: Groups) -> list[Tensor]:
    return [param for group in groups for param in group["params"]]


def _entries(groups: Groups, kinds: list[Kind], states: States) -> Iterator[Entry]:
    """Each parameter once that has a gradient or a state, with the state it needs."""
    found: dict[Tensor, tuple[str, int]] = {}
    for number, group in enumerate(groups):
        for i, param in enumerate(group["params"]):
            if param not in found and (param.grad is not None or param in states):
                found[param] = name_of(group, number, i), number
    new = [
        (param, kinds[number])
        for param, (_, number) in found.items()
        if not states.get(param) and is_dense_on_cpu(param)
    ]
    made = dict(zip((param for param, _ in new), zero_states(new), strict=True))
    for param, (name, number) in found.items():
        check_param(param, name)
        if param.grad is not None:
            check_grad(param, param.grad, name)
            if kinds[number].differentiable:
                check_recordable(param, states.get(param, {}), name)
        given = made[param] if param in made else states.get(param, {})
        yield Entry(name, number, param, check_state(param, given, kinds[number], name))


def _written(entry: Entry, kind: Kind) -> list[Tensor]:
    """What a step of an entry writes, as far as this process holds it."""
    tensors = (entry.param, *(entry.state[key] for key in kept(entry.param, kind)))
    return [local(tensor) for tensor in tensors]


def _places(entry: Entry, kind: Kind) -> list[tuple[Any, ...]]:
    """Where that lies, so that a move shows."""
    if not entry.state.keys() >= kept(entry.param, kind).keys():
        return []
    tensors = _written(entry, kind)
    return [(address(t), t.shape, t.stride() if address(t) else ()) for t in tensors]


def _core_takes(param: Tensor, kind: Kind) -> bool:
    """Whether a parameter is stepped where it lies."""
    part = local(param)
    if kind.differentiable or not is_dense_on_cpu(part):
        return False
    return part.is_contiguous() or not ordered(param, kind)


def _is_of(group: dict[str, Any], kind: Kind) -> bool:
    """Whether a group still has these formats, without checking them."""
    found = group.get("moments", "float32"), group.get("master_bits"), group["amsgrad"]
    return (*found, group["differentiable"]) == kind


def _recorded(group: dict[str, Any]) -> bool:
    """Whether autograd shall see the hyperparameters too."""
    values = (group["lr"], *group["betas"], group["weight_decay"])
    return group["differentiable"] and any(
        isinstance(value, Tensor) and value.requires_grad for value in values
    )


def _differentiable(groups: Groups, entry: Entry) -> bool:
    return bool(groups[entry.group]["differentiable"])
