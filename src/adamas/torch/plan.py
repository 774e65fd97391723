"""Who steps what: the core's table, and plain torch operations for everything else."""

from __future__ import annotations

from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import native
from ..hyper import Rule
from ..interrupts import deferred
from . import copied, cpu, gpu, plain
from .entries import Groups, States, entries_of
from .gpu import Needs
from .gpu.offload import Offload
from .gpu.staging import is_capturing
from .gradnorm import divided, rows_of, squared_norm
from .home import offloads
from .hyperparameters import hyper_of, snapshot
from .kinds import Kind, kept, kind_of, ordered
from .layout import has_data, is_plain
from .options import Options
from .overlap import address, refuse_overlap
from .recode import trained
from .sharding import local, local_like, shards_of
from .state import (
    Entry,
    check_grad,
    check_inference,
    check_recordable,
    check_state,
    whole_step,
)
from .statistics import Found, Taken, columns_of
from .table import Table, see_each_other

if TYPE_CHECKING:
    from .gpu import Outcome, Request
    from .gpu.executor import Executor

NOTHING = Needs()
_PARAMS = itemgetter("params")
_NO_STEPS = np.zeros(0, np.int64)


class Plan:
    """What a step of these parameters does, made once and kept while it holds.

    Attributes:
        taken: what the last step went by.
        alone: what steps all of it and finds out what is needed, if that is one device.

    Args:
        groups: the parameter groups.
        states: the optimizer's states; one is made for each parameter that has a gradient.
        needs: what a step has to find out, on the GPU that steps all parameters if one does.

    Raises:
        RuntimeError, TypeError, ValueError: a parameter, gradient or state cannot be stepped. Then
            nothing was changed.
    """

    def __init__(self, groups: Groups, states: States, needs: Needs = NOTHING) -> None:
        kinds = [kind_of(group) for group in groups]
        entries = list(entries_of(groups, kinds, states, needs.counts))
        takes = [_taken_on(e.param, kinds[e.group]) for e in entries]
        # Shards add up what they find.
        apart = needs.norms and any(shards_of(e.param) for e in entries)
        alone = _on_one_gpu(takes) and not apart
        if needs.counts and not alone:  # what a device has counted comes back
            for entry in entries:
                entry.state["step"] = whole_step(entry.state["step"], entry.name)
        self._plain = [e for e, place in zip(entries, takes, strict=True) if place is None]
        self._tables: list[Table] = []
        for place in dict.fromkeys(takes):
            if place is not None:
                on_it = [e for e, taken in zip(entries, takes, strict=True) if taken == place]
                self._tables.append(Table(on_it, kinds))
        self._away = {table: Offload(table) for table in self._tables if _is_away(table)}
        clips = needs.norms and not alone
        self._on_gpu = {t: _executor(t, clips) for t in self._tables if _is_on_gpu(t)}
        self._adders = dict(self._on_gpu)
        self._fast = [entry for table in self._tables for entry in table.entries]
        # Each table has looked at its own; these may share memory with them, too, and tables of one
        # device with each other.
        beside = [on_it for on_it in self._by_device() if len(on_it) > 1]
        several = self._plain or len(self._tables) > 1
        written = [(e.name, _written(e, kinds[e.group])) for e in entries] if several else []
        if self._plain or beside:
            refuse_overlap(written)
        for tables in beside:
            see_each_other(tables)
        # One table's step would see it first, but not several's.
        self._made_to_infer = [
            name for name, tensors in written if any(t.is_inference() for t in tensors)
        ]
        self._places = [_places(e, kinds[e.group]) for e in self._plain]
        shards = [shards_of(e.param) for e in (*self._fast, *self._plain)]
        self._shards = list(dict.fromkeys(shards))
        self._part_of = np.array([self._shards.index(s) for s in shards], np.int64)
        self.alone = next(iter(self._on_gpu.values())) if alone else None
        self._needs = needs
        if needs.counts and self.alone:
            self.alone.count()
        for entry in entries:  # from here on nothing fails
            states[entry.param] = entry.state
        self._params = [list(group["params"]) for group in groups]
        self._states = list(states.values())
        taken = {id(entry.param) for entry in entries}
        self._waiting = [p for params in self._params for p in params if id(p) not in taken]
        self._kinds = kinds
        self._options = [Options(group, kind) for group, kind in zip(groups, kinds, strict=True)]
        self._grads: list[tuple[Entry, Tensor]] = []  # of the plain ones, of the last look
        self._with_grad: list[int] = []

    def holds(self, groups: Groups, states: States, needs: Needs) -> bool:
        """Whether the plan is still of these parameters and states, and such steps."""
        return (
            needs == self._needs
            and len(groups) == len(self._params)
            and all(map(native.identical, map(_PARAMS, groups), self._params))
            and native.identical(states, self._states)
            and all(param.grad is None for param in self._waiting)
            and all(map(Options.hold, self._options, groups))
        )

    def look(self, groups: Groups) -> bool:
        """Finds the gradients of the next step, or raises if one cannot be used.

        Returns:
            False if a tensor has moved since the plan was made, which then is of no more use.
        """
        if any(table.look() & native.MOVED for table in self._tables):
            return False
        for name in self._made_to_infer:
            check_inference(name)
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
        return True

    def forget(self) -> None:
        """Lets go of what the last look has copied of gradients."""
        self._grads = []
        for table in self._tables:
            table.forget()

    def squared_norm(self, unscale: float) -> float:
        """The sum of the squares of all gradients of the last look; see ``adamas.norm``."""
        self._refuse_capture()
        rows, copies = rows_of([grad for _, grad in self._grads])
        fast = len(self._fast)
        read = [(rows, self._part_of[[fast + i for i in self._with_grad]])]
        elsewhere: list[tuple[Executor, NDArray[np.int64]]] = []
        begin = 0
        for table in self._tables:
            there = table.steps >= 0
            part_of = self._part_of[begin : begin + len(there)]
            begin += len(there)
            if gpu.takes(local(table.params[0]).device):
                elsewhere.append((self._adder(table), part_of))
            elif table in self._away:
                rows, kept = rows_of([table.read(i) for i in np.flatnonzero(there).tolist()])
                copies += kept
                read.append((rows, part_of[there]))
            else:
                read.append((table.rows[there], part_of[there]))
        return squared_norm(divided(self._shards, read, elsewhere), unscale)

    def finite(self, unscale: float) -> bool:
        """Whether all gradients of the last look are, unscaled; their squares may not be."""
        grads = [local(e.param.grad) for e in self._fast if e.param.grad is not None]
        grads += [grad for _, grad in self._grads if has_data(grad)]
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
        self._refuse_capture()
        hypers = list(map(Options.hyper, self._options, groups))
        grads, self._grads = self._grads, []
        steps = [table.steps for table in self._tables]
        self.taken = Taken(
            self._fast,
            steps[0].copy() if len(steps) == 1 else np.concatenate(steps or [_NO_STEPS]),
            [entry for entry, _ in grads],
            hypers,
            unscale,
            clip,
        )
        if not grads:
            return self._step_tables(hypers, unscale, clip, measure)
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
            found = self._step_tables(hypers, unscale, clip, measure)
            for (entry, grad), values in zip(grads, pending, strict=True):
                before = trained(entry.param, entry.state).clone() if measure else None
                with torch.set_grad_enabled(_differentiable(groups, entry)):
                    for target, value in values:
                        target.copy_(value)
                entry.state["step"] += 1
                if before is not None:
                    found.append(Found(*entry, columns_of(entry, grad * unscale, before)))
        return found

    def step_guarded(
        self, groups: Groups, request: Request, outcome: Outcome, measure: bool
    ) -> list[Found] | None:
        """As ``step``, where all is ``alone``: see ``gpu.executor.Executor.step_guarded``."""
        assert self.alone is not None, "the caller has asked"
        table = self._tables[0]
        steps = table.steps.copy()
        done = self.alone.step_guarded(groups, request, outcome, measure)
        if done is None:
            return None
        # Not all numbers yet: some may be on the device, and reading them would wait for it.
        options = [snapshot(group) for group in groups]
        found, unscale = done
        clip = 1.0 if request.max_grad_norm is None else outcome.results[1]
        self.taken = Taken(self._fast, steps, [], options, unscale, clip)
        return found

    def everything(self, groups: Groups) -> Taken:
        """What a step of all that were ever stepped would have gone by."""
        entries = [e for e in (*self._fast, *self._plain) if int(e.state["step"])]
        return Taken([], _NO_STEPS, entries, [hyper_of(group) for group in groups])

    def _adder(self, table: Table) -> Executor:
        """What adds up the squares of a table's gradients where they are."""
        if table not in self._adders:
            self._adders[table] = _executor(table, clips=False)
        return self._adders[table]

    def _by_device(self) -> list[list[Table]]:
        on: dict[torch.device, list[Table]] = {}
        for table in self._tables:
            on.setdefault(local(table.params[0]).device, []).append(table)
        return list(on.values())

    def _refuse_capture(self) -> None:
        for away in self._away.values():
            away.refuse_capture()
        stepped = [entry for entry, _ in self._grads]
        for entry in (*stepped, *(table.entries[0] for table in self._on_gpu)):
            if is_capturing(local(entry.param).device):
                raise RuntimeError(
                    f"the step of {entry.name} cannot be captured in a graph, which would repeat "
                    "the numbers that the host has found for this one: give capturable=True, with "
                    "all parameters dense on one GPU and Triton installed, or step outside of it"
                )

    def _step_tables(
        self, hypers: list[Rule], unscale: float, clip: float, measure: bool
    ) -> list[Found]:
        wanted = [table.coefficients(hypers, unscale, clip) for table in self._tables]
        for away in self._away.values():
            away.prepare()
        pairs = list(zip(self._tables, wanted, strict=True))
        if len(pairs) == 1:  # the usual, whose executor is done as a whole by itself
            return self._step_table(*pairs[0], unscale, measure)
        for table, coefficients in pairs:
            if table in self._on_gpu:
                self._on_gpu[table].prepare(coefficients)
        found: dict[Table, list[Found]] = {}
        with deferred():
            # A GPU steps while the host does, if it is told first.
            for table, coefficients in sorted(pairs, key=lambda pair: pair[0] not in self._on_gpu):
                found[table] = self._step_table(table, coefficients, unscale, measure)
        return list(chain.from_iterable(found[table] for table in self._tables))

    def _step_table(
        self, table: Table, coefficients: NDArray[np.float64], unscale: float, measure: bool
    ) -> list[Found]:
        if table in self._away:
            return self._away[table].step(coefficients, measure)
        if table in self._on_gpu:
            return self._on_gpu[table].step(coefficients, unscale, measure)
        return cpu.step(table, coefficients, measure)


def held(plan: Plan | None, groups: Groups, states: States, needs: Needs = NOTHING) -> Plan:
    """The plan as long as it holds, else a new one."""
    holds = plan is not None and plan.holds(groups, states, needs)
    return plan if plan and holds else Plan(groups, states, needs)


def ready(plan: Plan | None, groups: Groups, states: States, needs: Needs = NOTHING) -> Plan:
    """The plan as long as it holds and nothing has moved, else a new one: it has looked.

    Raises:
        RuntimeError, TypeError, ValueError: as ``Plan`` and ``Plan.look``.
    """
    plan = held(plan, groups, states, needs)
    if not plan.look(groups):
        plan = Plan(groups, states, needs)
        if not plan.look(groups):
            raise RuntimeError("a parameter or its state was moved while it was stepped")
    return plan


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


def _taken_on(param: Tensor, kind: Kind) -> tuple[torch.device, bool] | None:
    """Where a parameter is that a table takes as it lies, and whether its state is away from it."""
    part, away = local(param), offloads(param, kind)
    fast = away or part.device.type == "cpu" or gpu.takes(part.device)
    # A gradient that a property of a subclass makes may live no longer than the look at it.
    its_own = type(param).grad is Tensor.grad
    if not fast or kind.differentiable or not its_own or not is_plain(part):
        return None
    return (part.device, away) if part.is_contiguous() or not ordered(param, kind) else None


def _on_one_gpu(takes: list[tuple[torch.device, bool] | None]) -> bool:
    """Whether kernels on one device step everything."""
    places = set(takes)
    place = places.pop() if len(places) == 1 else None
    return place is not None and not place[1] and gpu.takes(place[0])


def _is_away(table: Table) -> bool:
    return offloads(table.params[0], table.kinds[0])


def _is_on_gpu(table: Table) -> bool:
    return not _is_away(table) and gpu.takes(local(table.params[0]).device)


def _executor(table: Table, clips: bool) -> Executor:
    from .gpu.executor import Executor  # with Triton, which takes long to import

    return Executor(table, clips)


def _recorded(group: dict[str, Any]) -> bool:
    """Whether autograd shall see the hyperparameters too."""
    return group["differentiable"] and any(
        isinstance(value, Tensor) and value.requires_grad
        for value in (*group.values(), *group.get("betas", ()))
    )


def _differentiable(groups: Groups, entry: Entry) -> bool:
    return bool(groups[entry.group]["differentiable"])
