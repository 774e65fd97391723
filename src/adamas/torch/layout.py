"""Where tensors lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

# What the core computes each dtype in. It takes complex numbers as pairs of real ones.
COMPUTE = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "float32",
    torch.float16: "float32",
    torch.complex64: "float32",
    torch.complex128: "float64",
}


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor is one block without gaps, in whatever order of dimensions."""
    dense: object = torch.ops.aten.is_non_overlapping_and_dense(tensor)
    return tensor.layout == torch.strided and bool(dense)


def is_plain(tensor: Tensor) -> bool:
    """Whether the tensor is of a type that a table takes, and dense and aligned."""
    return (
        tensor.layout == torch.strided
        and tensor.dtype in COMPUTE
        and is_as_stored(tensor)
        and is_dense(tensor)
        and tensor.data_ptr() % tensor.element_size() == 0
    )


def is_wrapper(tensor: Tensor) -> bool:
    """Whether what is done to a tensor is done by its subclass, to others perhaps or to none."""
    dispatch: object = type(tensor).__torch_dispatch__
    return dispatch is not Tensor.__torch_dispatch__


def is_as_stored(tensor: Tensor) -> bool:
    """Whether a tensor is what its memory holds: no wrapper, nor lazily another or zeros."""
    lazily = tensor.is_conj() or tensor.is_neg() or tensor._is_zerotensor()
    return not (is_wrapper(tensor) or lazily)


def has_data(tensor: Tensor) -> bool:
    """Whether a tensor has elements at all: those on "meta", and fake ones, have but a shape."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def lies_like(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors of the same shape hold their elements in the same order."""
    if tensor.layout != other.layout or tensor.is_conj() or tensor.is_neg():
        return False
    return tensor.layout != torch.strided or sizes_and_strides(tensor) == sizes_and_strides(other)


def sizes_and_strides(tensor: Tensor) -> list[tuple[int, int]]:
    """Sizes and strides; a stride along a dimension of size 1 says nothing and counts as 1."""
    dims = zip(tensor.shape, tensor.stride(), strict=True)
    return [(size, stride if size > 1 else 1) for size, stride in dims]
