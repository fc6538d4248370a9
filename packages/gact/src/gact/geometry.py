"""How a tensor lies in memory, so that its numbers can be stored as a flat line and put back as they were."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Geometry:
    """Shape of a saved tensor over the flat line of its distinct numbers.

    Args:
        size: Shape of the saved tensor.
        kept_size: Shape without repetition: expanded dimensions (stride 0) have length 1.
        kept_stride: Strides of `kept_size` over the flat line.
    """

    size: tuple[int, ...]
    kept_size: tuple[int, ...]
    kept_stride: tuple[int, ...]

    def restore(self, flat: Tensor) -> Tensor:
        """Return the tensor whose distinct numbers are the `numel` elements of `flat`."""
        return flat.as_strided(self.kept_size, self.kept_stride).expand(self.size)


def flatten(tensor: Tensor) -> tuple[Tensor, Geometry]:
    """Return the distinct numbers of a strided tensor in memory order, and how to put them back.

    Dense tensors in any order of dimensions (transposed, channels last) are read where they lie, without a copy;
    tensors with gaps (slices) are copied. Numbers repeated by ``expand`` are taken once.

    Args:
        tensor: A strided tensor; not differentiated through.

    Returns:
        A 1-D contiguous tensor and the geometry.
    """
    size = tuple(tensor.size())
    repeated = [d for d, stride in enumerate(tensor.stride()) if stride == 0 and size[d] > 1]
    for dim in repeated:
        tensor = tensor.narrow(dim, 0, 1)
    if not is_dense(tensor):
        tensor = tensor.contiguous()
    flat = tensor.as_strided((tensor.numel(),), (1,))
    return flat, Geometry(size, tuple(tensor.size()), tuple(tensor.stride()))


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, each once, in some order of the dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.size(), strict=True)):
        if length == 1:
            continue
        if stride != expected:
            return False
        expected *= length
    return tensor.numel() > 0


def owners(storage: int) -> int:
    """How many tensors share a storage.

    Args:
        storage: Address of its implementation, ``_cdata``, to which somebody holds at least a weak reference.
    """
    return torch._C._storage_Use_Count(storage) - _COUNTING_ITSELF


def _counting_itself() -> int:
    """What torch's count adds while it counts."""
    tensor = torch.empty(1, device="cpu")
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) - 1


_COUNTING_ITSELF = _counting_itself()
