"""What the processes of test_distributed.py run: ``workers.py FOLDER SCENARIOS``.

Each scenario steps a sharded model with the gradients of one whole model, which every process steps
beside it, and compares the bits.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo  # which the first optimizer would import
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import load, save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from adamas import native, norm
from adamas.torch import SGD, Adam, AdamW, RMSprop, gpu, gradnorm, step_in_backward
from adamas.torch.gpu import offload
from adamas.torch.sharding import local, sharded_like, shards_of

LONGEST = 240  # seconds until processes that wait for each other are killed
OPTIONS: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True}


class Model(nn.Module):
    """Dimensions that no number of processes divides."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(13, 5)
        self.up, self.down = nn.Linear(5, 11), nn.Linear(11, 5)
        self.scale = nn.Parameter(torch.ones(1))
        self.to(dtype)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        return (x + self.down(torch.tanh(self.up(x)))) * self.scale


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def give_grads(model: nn.Module, twin: nn.Module, step: int, poison: float = 0.0) -> None:
    """The same gradient to both, to each parameter of the first sharded as that is."""
    torch.manual_seed(1000 + step)
    for number, (p, q) in enumerate(zip(model.parameters(), twin.parameters(), strict=True)):
        grad = None if number == step % 5 else torch.randn_like(q)
        if grad is not None and poison:
            grad.view(-1)[-1] = poison
        q.grad = grad
        p.grad = None if isinstance(p, DTensor) else grad
        if isinstance(p, DTensor) and grad is not None:
            p.full_tensor().backward(grad)


def same(model: nn.Module, twin: nn.Module, one: Adam, other: Adam) -> None:
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(whole(p.detach()), q), name
        assert (p in one.state) == (q in other.state), name
        for key, value in one.state.get(p, {}).items():
            expected = other.state[q][key]
            assert value == expected if key == "step" else torch.equal(whole(value), expected), key


def follow(model: nn.Module, twin: nn.Module, rule: Any = AdamW, **options: Any) -> None:
    """Steps both; the table is kept, so nothing is paid twice."""
    options = (OPTIONS if rule in (Adam, AdamW) else {"lr": 0.05}) | options
    one, other = rule(model.parameters(), **options), rule(twin.parameters(), **options)
    for step in range(7):
        give_grads(model, twin, step, math.nan if step == 4 and one.skip_nonfinite else 0.0)
        one.step()
        other.step()
        same(model, twin, one, other)
        assert one.last_grad_norm == other.last_grad_norm
        if step == 5:
            plan = one._plan
    assert one._plan is plan
    assert one.skipped_steps == other.skipped_steps == int(one.skip_nonfinite)


def sharded(dtype: torch.dtype = torch.float32, **options: Any) -> Model:
    model = Model(dtype)
    for layer in (model.up, model.down):
        fully_shard(layer, **options)
    fully_shard(model, **options)
    return model


def fsdp2() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        follow(sharded(dtype), Model(dtype))


def fsdp2_dithers() -> None:
    """Which go by the place in the whole tensor."""
    follow(sharded(torch.bfloat16), Model(torch.bfloat16), SGD, momentum=0.9, master_bits=24)


def fsdp2_other_rules() -> None:
    follow(sharded(), Model(), SGD, momentum=0.9, master_bits=24)
    for dtype in (torch.float32, torch.bfloat16):
        follow(sharded(dtype), Model(dtype), RMSprop, momentum=0.9, moments="bfloat16")
    follow(sharded(), Model(), SGD, max_grad_norm=0.7, skip_nonfinite=True)
    follow(sharded(), Model(), RMSprop, centered=True)


def fsdp2_clipping() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        follow(sharded(dtype), Model(dtype), Adam, max_grad_norm=0.7, skip_nonfinite=True)


def fsdp2_memory() -> None:
    """What each process holds; together it is the whole."""
    model, twin = sharded(), Model()
    one, other = AdamW(model.parameters(), **OPTIONS), AdamW(twin.parameters(), **OPTIONS)
    give_grads(model, twin, 1)
    one.step()
    other.step()
    held = torch.tensor(one.memory().total[1:])
    parts = [p.to_local().numel() for p in model.parameters()]
    assert held[:2].tolist() == [sum(parts), 4 * sum(parts)]
    dist.all_reduce(held)
    assert held.tolist() == list(other.memory().total[1:])


def a_norm_in_doubt() -> None:
    """Where the estimate cannot round the norm, all processes go on to the exact sum."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    values = torch.tensor([1.0, 2.0**-16, 2.0**-30, 0.0])
    p = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    p.grad = distribute_tensor(values, mesh, [Shard(0)])
    optimizer = Adam([p], max_grad_norm=math.inf)
    optimizer.step()
    assert optimizer.last_grad_norm == math.sqrt(norm.squared_norm([values.numpy()]))


def a_norm_in_doubt_for_one_process() -> None:
    """Beside a parameter that each has whole, and may have added up otherwise: all go on."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    p.grad = distribute_tensor(torch.full((4,), 2.0), mesh, [Shard(0)])
    own = nn.Parameter(torch.ones(3))
    own.grad = torch.full((3,), 4.0)
    optimizer = Adam([p, own], max_grad_norm=math.inf)
    estimate, exactly = gradnorm.rounded_estimate, native.exact_square_sum
    passes = []
    if dist.get_rank() == 0:
        gradnorm.rounded_estimate = lambda value, error: None
    native.exact_square_sum = lambda *given: passes.append(0) or exactly(*given)
    try:
        optimizer.step()
    finally:
        gradnorm.rounded_estimate, native.exact_square_sum = estimate, exactly
    assert len(passes) == 2, "one for each part"
    assert optimizer.last_grad_norm == 8.0


def fsdp2_training() -> None:
    """Real gradients: one process with the whole batch follows within rounding."""
    model, twin = sharded(), Model()
    one, other = AdamW(model.parameters(), lr=0.01), AdamW(twin.parameters(), lr=0.01)
    for step in range(5):
        torch.manual_seed(step)
        tokens = torch.randint(13, (dist.get_world_size(), 4, 6))
        model(tokens[dist.get_rank()]).square().mean().backward()
        twin(tokens.flatten(0, 1)).square().mean().backward()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(whole(p.grad), q.grad, atol=1e-6)
            q.grad = whole(p.grad).clone()
        for optimizer in (one, other):
            optimizer.step()
            optimizer.zero_grad()
        same(model, twin, one, other)


def fsdp2_in_backward() -> None:
    model, twin = sharded(), sharded()
    one, other = AdamW(model.parameters(), lr=0.01), AdamW(twin.parameters(), lr=0.01)
    step_in_backward(one)
    for step in range(3):
        torch.manual_seed(step)
        tokens = torch.randint(13, (4, 6))
        model(tokens).square().mean().backward()
        twin(tokens).square().mean().backward()
        assert all(p.grad is None for p in model.parameters())
        one.step()
        other.step()
        other.zero_grad()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(whole(p), whole(q))


def fsdp2_statistics() -> None:
    """Of the whole parameters, measured in the step and worked out after it."""
    for dtype in (torch.float32, torch.bfloat16):
        model, twin = sharded(dtype), Model(dtype)
        optimizers = [AdamW(m.named_parameters(), **OPTIONS) for m in (model, twin)]
        for step in range(4):
            give_grads(model, twin, step)
            for optimizer in optimizers:
                if step < 2:
                    optimizer.measure_next_step()
                optimizer.step()
            found, expected = (
                (*s.parameters, *s.groups) for s in (o.statistics() for o in optimizers)
            )
            for mine, others in zip(found, expected, strict=True):
                assert mine[:3] == others[:3]
                assert np.allclose(mine[3:8], others[3:8], rtol=1e-12, atol=0, equal_nan=True)
                assert mine[8:] == others[8:]


def tensor_parallel() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = parallelize_module(Model(), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    follow(model, Model(), max_grad_norm=0.7)


def offloaded_shards() -> None:
    """In chunks that cut runs of the whole tensor; the CPU stands for a GPU."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "DEVICES", {"cpu"})
        patch.setattr(gpu, "_has_triton", lambda: False)
        patch.setattr(offload, "CHUNK", 4096)
        for dtype, moments in ((torch.bfloat16, "float32"), (torch.bfloat16, "int8")):
            found = []
            for where in (None, "cpu"):
                torch.manual_seed(0)
                shapes = [((37, 300), 1), ((3, 5001), 1), ((70, 33), 0)]
                params = [
                    nn.Parameter(distribute_tensor(torch.randn(s).to(dtype), mesh, [Shard(dim)]))
                    for s, dim in shapes
                ]
                options: dict[str, Any] = {"master_bits": 24, "moments": moments}
                optimizer = AdamW(params, lr=0.05, max_grad_norm=0.7, offload=where, **options)
                for step in range(4):
                    for number, p in enumerate(params):
                        torch.manual_seed(10 * step + number)
                        grad = torch.randn(p.shape).to(dtype)
                        p.grad = distribute_tensor(grad, mesh, p.placements)
                    optimizer.step()
                    if step == 1:
                        optimizer.load_state_dict(optimizer.state_dict())
                plan = optimizer._plan
                assert bool(plan and plan._away) == bool(where)
                states = [local(v) for p in params for v in optimizer.state[p].values()]
                found.append([local(p.detach()) for p in params] + states)
            for one, other in zip(*found, strict=True):
                assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    # From elsewhere than the mesh's devices a part stays where it is.
    p = distribute_tensor(torch.ones(7, 3), mesh, [Shard(0)])
    away = sharded_like(local(p).to("meta"), p)
    assert local(away).is_meta
    assert (away.shape, away.placements) == (p.shape, p.placements)


def gradients_sharded_otherwise() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = nn.Parameter(distribute_tensor(torch.ones(7, 3), mesh, [Shard(0)]))
    q = nn.Parameter(torch.ones(7, 3))
    one, other = AdamW([p], **OPTIONS), AdamW([q], **OPTIONS)
    for placement in (Shard(1), Replicate(), Shard(0)):
        q.grad = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
        p.grad = distribute_tensor(q.grad, mesh, [placement])
        one.step()
        other.step()
        assert torch.equal(whole(p), q)


def gradients_to_be_added_up() -> None:
    """As those of a weight that all processes have, of which each sees a part of the data."""
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    p = nn.Parameter(distribute_tensor(torch.ones(7), mesh, [Replicate()]))
    q = nn.Parameter(torch.ones(7))
    one, other = AdamW([p], **OPTIONS), AdamW([q], **OPTIONS)
    for step in range(3):
        mine = torch.arange(7) - 3.0 * dist.get_rank() - step
        p.grad = DTensor.from_local(mine, mesh, [Partial()])
        q.grad = whole(p.grad)
        assert not torch.equal(q.grad, mine)
        one.step()
        other.step()
        assert torch.equal(whole(p), q)


def local_tensors_that_move() -> None:
    """As FSDP2 lets them, where a model is moved or its weights are loaded."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    p = nn.Parameter(distribute_tensor(torch.ones(7, 3), mesh, [Shard(0)]))
    q = nn.Parameter(torch.ones(7, 3))
    one, other = AdamW([p], **OPTIONS), AdamW([q], **OPTIONS)
    for step in range(3):
        q.grad = torch.randn(7, 3, generator=torch.Generator().manual_seed(step))
        p.grad = distribute_tensor(q.grad, mesh, [Shard(0)])
        one.step()
        other.step()
        assert torch.equal(whole(p), q)
        p._local_tensor = p._local_tensor.detach().clone()


def two_dimensions() -> None:
    """Sharded over one dimension of the mesh and over both."""
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "tensor"))
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    model = parallelize_module(Model(), mesh["tensor"], plan)
    fully_shard(model, mesh=mesh["data"])
    follow(model, Model(), max_grad_norm=0.7)
    both = distribute_tensor(
        torch.ones(4, 4), init_device_mesh("cpu", (2, 2)), [Shard(0), Shard(1)]
    )
    shards = shards_of(both)
    assert shards
    every = shards.gather(torch.tensor([dist.get_rank() + 0.1, 1.0], dtype=torch.float64))
    assert every.tolist() == [[rank + 0.1, 1.0] for rank in range(4)], "each its own, unrounded"


def ddp() -> None:
    model, twin = nn.parallel.DistributedDataParallel(Model()), Model()
    one, other = AdamW(model.parameters(), **OPTIONS), AdamW(twin.parameters(), **OPTIONS)
    for step in range(4):
        torch.manual_seed(10 * step + dist.get_rank())
        model(torch.randint(13, (4, 6))).square().mean().backward()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            q.grad = p.grad.clone()
        for optimizer in (one, other):
            optimizer.step()
            optimizer.zero_grad()
        same(model.module, twin, one, other)
        for p in model.parameters():
            copies = [torch.empty_like(p) for _ in range(dist.get_world_size())]
            dist.all_gather(copies, p.detach())
            assert all(torch.equal(copy, p) for copy in copies)


def ddp_in_backward() -> None:
    """It adds gradients up after they were stepped: the step at the end says so."""
    model = nn.parallel.DistributedDataParallel(Model())
    optimizer = AdamW(model.parameters())
    step_in_backward(optimizer)
    model(torch.randint(13, (4, 6))).square().mean().backward()
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        optimizer.step()


def zero_redundancy() -> None:
    model, twin = Model(), Model()
    one = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=AdamW, **OPTIONS)
    other = AdamW(twin.parameters(), **OPTIONS)
    for step in range(4):
        give_grads(model, twin, 5 * step + 4)
        one.step()
        other.step()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(p, q)
    one.consolidate_state_dict(to=0)
    if dist.get_rank() == 0:
        state, expected = one.state_dict()["state"], other.state_dict()["state"]
        for number in expected:
            for key, value in expected[number].items():
                assert torch.equal(state[number][key], value), key


def checkpoints(folder: Path) -> Iterator[tuple[bool, Path]]:
    for flat in (False, True):
        yield flat, folder / f"flat={flat}"


def as_saved(model: Model, optimizer: Adam, flat: bool) -> dict[str, Any]:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }


def save_checkpoint(folder: Path) -> None:
    for flat, path in checkpoints(folder):
        model, twin = sharded(), Model()
        one, other = AdamW(model.parameters(), **OPTIONS), AdamW(twin.parameters(), **OPTIONS)
        for step in range(6):
            give_grads(model, twin, step)
            one.step()
            other.step()
        save(as_saved(model, one, flat), checkpoint_id=path)


def load_checkpoint(folder: Path) -> None:
    """In as many processes as there are now; then both go on, with the same bits."""
    for flat, path in checkpoints(folder):
        model, twin = sharded(), Model()
        one, other = AdamW(model.parameters(), **OPTIONS), AdamW(twin.parameters(), **OPTIONS)
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        found = as_saved(model, one, flat)
        load(found, checkpoint_id=path)
        set_model_state_dict(model, found["model"])
        set_optimizer_state_dict(model, one, found["optimizer"], options=options)
        for step in range(9):
            if step < 6:
                give_grads(twin, twin, step)
            else:
                give_grads(model, twin, step)
                one.step()
            other.step()
        same(model, twin, one, other)


def compact(moments: str) -> tuple[nn.Module, Adam]:
    """A model in shards of whole groups, and others that no group fits; some weights in 16 bits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 9), nn.Linear(9, 11), nn.Linear(11, 128).bfloat16())
    fully_shard(model[0])
    fully_shard(model[1:])
    return model, AdamW(model.parameters(), lr=0.05, moments=moments, master_bits=24)


def give_own_grads(model: nn.Module, step: int) -> None:
    for number, p in enumerate(model.parameters()):
        torch.manual_seed(1000 * step + number)
        grad = torch.randn(p.shape).to(p.dtype)
        p.grad = None
        p.full_tensor().backward(grad)


def save_compact_checkpoint(folder: Path) -> None:
    """And where the run goes on to from there."""
    for moments in ("bfloat16", "int8", "int4"):
        model, optimizer = compact(moments)
        for step in range(9):
            give_own_grads(model, step)
            optimizer.step()
            if step == 5:
                saved = as_saved(model, optimizer, flat=False)
                save(saved, checkpoint_id=folder / moments)
        final = [whole(p.detach()) for p in model.parameters()]
        if dist.get_rank() == 0:
            torch.save(final, folder / f"{moments}.pt")
    dist.barrier()


def load_compact_checkpoint(folder: Path) -> None:
    """REGRESSIONS 29, 41: as many processes as have saved it go on with the same bits.

    Others do within the codec's precision; groups that no cut crosses have the same bits too.
    """
    for moments, near in (("bfloat16", 0.02), ("int8", 0.03), ("int4", 0.3)):
        model, optimizer = compact(moments)
        found = as_saved(model, optimizer, flat=False)
        load(found, checkpoint_id=folder / moments)
        set_model_state_dict(model, found["model"])
        set_optimizer_state_dict(model, optimizer, found["optimizer"])
        before = [whole(p.detach()).clone() for p in model.parameters()]
        for step in range(6, 9):
            give_own_grads(model, step)
            optimizer.step()
        expected = torch.load(folder / f"{moments}.pt")
        for p, old, new in zip(model.parameters(), before, expected, strict=True):
            if dist.get_world_size() == 2 or p.shape[1:] == (64,):
                assert torch.equal(whole(p.detach()), new), moments
            moved = (new.float() - old.float()).norm()
            assert (whole(p.detach()).float() - new.float()).norm() <= near * moved, moments


def work(rank: int, world: int, folder: Path, names: list[str]) -> None:
    """One of so many processes: goes through the scenarios, and writes what became of them."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{world}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    results = {}
    for name in names:
        scenario = globals()[name]
        try:
            scenario(folder) if name.endswith("checkpoint") else scenario()
            results[name] = "ok"
        except Exception:
            results[name] = traceback.format_exc()
            if world > 1:
                break  # the processes are no longer at the same place
    (folder / f"{world}-{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def main(folder: Path, scenarios: dict[str, list[str]]) -> None:
    """Goes through the scenarios of each number of processes.

    This process has only imported by then, so that one that it forks has what a new process would
    have after the same imports, and need not take seconds for them; see ``killed.py``.
    """
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    for world, names in scenarios.items():
        count = int(world)
        processes = [
            context.Process(target=work, args=(rank, count, folder, names)) for rank in range(count)
        ]
        for process in processes:
            process.start()
        last = time.monotonic() + LONGEST
        for process in processes:
            process.join(max(0, last - time.monotonic()))
            process.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
