"""DTensors: what of one this process holds, and tensors sharded like another."""

from __future__ import annotations

import sys
from math import prod
from typing import Any, NamedTuple

import torch
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
        # The part of an offloaded state is where the mesh's processes cannot exchange it.
        tensor = tensor.to(like.device_mesh.device_type).redistribute(
            like.device_mesh, like.placements
        )
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

    def gather(self, tensor: Tensor) -> Tensor:
        """What each of these processes has of a small CPU tensor, one after the other."""
        place = 0
        for dim in self.dims:
            place = place * self.mesh.size(dim) + self.mesh.get_local_rank(dim)
        every = tensor.new_zeros(self.size, *tensor.shape)
        every[place] = tensor
        return self.all_reduce(every)  # each number beside zeros, so without rounding

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


def sharded_like(part: Tensor, param: Any) -> Tensor:
    """A sharded tensor of these local parts, whose first dimensions are sharded as a parameter's.

    Args:
        part: of the parameter's local shape, with perhaps more dimensions behind.
        param: a DTensor.
    """
    from torch.distributed.tensor import DTensor

    shape = torch.Size([*param.shape, *part.shape[param.dim() :]])
    stride = torch.empty(shape, device="meta").stride()
    # From a part elsewhere, as that of an offloaded state, ``from_local`` would take a copy on the
    # mesh's device: it is wrapped as FSDP wraps offloaded parameters.
    there = part.device.type == param.device_mesh.device_type
    sharded: Any = DTensor
    made = sharded.from_local(
        part if there else part.to("meta"),
        param.device_mesh,
        param.placements,
        run_check=False,
        shape=shape,
        stride=stride,
    )
    wrapped: Tensor = made if there else sharded(part, made._spec, requires_grad=False)
    return wrapped


def place_in_whole(param: Any) -> tuple[int, int, int] | None:
    """Where the local elements lie in the whole flattened tensor; None where that is all of it.

    Returns:
        ``offset``, ``run`` and ``stride``: local element k is number
        ``offset + (k // run) * stride + k % run``.
    """
    if not is_sharded(param) or shards_of(param) is None:
        return None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sizes, starts = compute_local_shape_and_global_offset(
        param.shape, param.device_mesh, param.placements
    )
    cut = [
        i for i, (part, whole) in enumerate(zip(sizes, param.shape, strict=True)) if part != whole
    ]
    if not cut:
        return None
    last = cut[-1]
    inner = prod(param.shape[last + 1 :])
    strides = [prod(param.shape[i + 1 :]) for i in range(param.dim())]
    offset = sum(start * stride for start, stride in zip(starts, strides, strict=True))
    return offset, max(sizes[last] * inner, 1), param.shape[last] * inner
