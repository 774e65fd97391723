"""DTensors: what of one this process holds, and tensors sharded like another."""

from __future__ import annotations

import sys
from math import prod
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor


def dtensor() -> type | None:
    """Torch's class of sharded tensors, None while nobody has imported it."""
    module = sys.modules.get("torch.distributed.tensor")
    return getattr(module, "DTensor", None)


def is_sharded(tensor: object) -> bool:
    """Whether a tensor is a DTensor."""
    kind = dtensor()
    return kind is not None and isinstance(tensor, kind)


def local(tensor: Any) -> Tensor:
    """The part of a tensor that this process holds, in the same memory; all of a plain one."""
    part: Tensor = tensor._local_tensor if is_sharded(tensor) else tensor
    return part


def alike(one: Any, other: Any) -> bool:
    """Whether two tensors are sharded alike, or both are plain."""
    if is_sharded(one) and is_sharded(other):
        return bool(one.device_mesh == other.device_mesh and one.placements == other.placements)
    return not (is_sharded(one) or is_sharded(other))


def local_like(tensor: Any, like: Any) -> Tensor:
    """The part of a tensor that this process holds once it is sharded as another is.

    Processes of the mesh must all ask: where the sharding differs, they exchange elements.
    """
    if not is_sharded(like):
        whole: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
        return whole
    if not is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        tensor = distribute_tensor(tensor, like.device_mesh, like.placements)
    elif not alike(tensor, like):
        tensor = tensor.redistribute(like.device_mesh, like.placements)
    part: Tensor = tensor.to_local()
    return part


class Shards(NamedTuple):
    """The processes between which the elements of a tensor are divided."""

    mesh: Any  # torch.distributed.device_mesh.DeviceMesh
    dims: tuple[int, ...]  # of the mesh

    def all_reduce(self, tensor: Tensor, least: bool = False) -> Tensor:
        """Adds a small CPU tensor up over these processes, or takes the least, in place."""
        op = dist.ReduceOp.MIN if least else dist.ReduceOp.SUM
        device = tensor.to(self.mesh.device_type)
        for dim in self.dims:
            dist.all_reduce(device, op, group=self.mesh.get_group(dim))
        return tensor.copy_(device)

    @property
    def size(self) -> int:
        """How many processes they are."""
        return prod(self.mesh.size(dim) for dim in self.dims)


def shards_of(tensor: Any) -> Shards | None:
    """Between whom a tensor's elements are divided; None where each process has them all."""
    if not is_sharded(tensor):
        return None
    # Not is_shard(), which is false of the strided shards of FSDP over tensor parallelism.
    dims = tuple(i for i, placement in enumerate(tensor.placements) if not placement.is_replicate())
    return Shards(tensor.device_mesh, dims) if dims else None
