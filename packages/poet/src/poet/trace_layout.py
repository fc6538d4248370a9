"""Where the numbers of a tensor lie in its storage: a tensor is a storage and a layout, and so is every view of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor reads its storage.

    Attributes:
        shape: Length of each dimension.
        stride: Step of each dimension, in elements.
        offset: First element.
        dtype: Type of the elements.
        device: Where the storage lies.
        conj: Whether elements are read conjugated.
        neg: Whether elements are read negated.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    conj: bool = False
    neg: bool = False

    @staticmethod
    def of(tensor: Tensor) -> "Layout":
        """The layout of a tensor."""
        return Layout(
            tuple(tensor.shape),
            tuple(tensor.stride()),
            int(tensor.storage_offset()),
            tensor.dtype,
            tensor.device,
            tensor.is_conj(),
            tensor.is_neg(),
        )

    def fits(self, tensor: Tensor) -> bool:
        """Whether a tensor lies as this layout says (the device's index apart)."""
        return (
            tensor.stride() == self.stride
            and tensor.shape == self.shape
            and tensor.dtype is self.dtype
            and tensor.device.type == self.device.type
            and int(tensor.storage_offset()) == self.offset
        )

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.numel * self.dtype.itemsize

    @property
    def dense(self) -> bool:
        """Whether the elements fill one gapless span without overlap, in whatever order of the dimensions."""
        expected = 1
        for stride, length in sorted((s, n) for s, n in zip(self.stride, self.shape, strict=True) if n != 1):
            if stride != expected and length > 0:
                return False
            expected *= length
        return True

    def whole(self, nbytes: int) -> bool:
        """Whether the elements are all that a storage of `nbytes` bytes holds."""
        return self.offset == 0 and self.nbytes == nbytes and self.dense and not (self.conj or self.neg)

    def __str__(self) -> str:
        """For messages."""
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)} with strides {list(self.stride)}"


def flat(tensor: Tensor) -> Tensor:
    """The whole storage of a tensor, as one dimension of its type."""
    storage = tensor.untyped_storage()
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(storage, 0, (storage.nbytes() // tensor.element_size(),), (1,))


def reader(layout: Layout, base: Layout) -> Callable[[Tensor], Tensor] | None:
    """How to get a tensor of one layout from a tensor of another on the same storage; nothing is copied.

    Args:
        layout: The layout wanted.
        base: The layout of the tensors that will be given; their storages may begin further ahead.

    Returns:
        A function of the given tensor; None if that is the wanted one already.
    """
    if layout == base:
        return None
    shape, stride = layout.shape, layout.stride
    bits = base.conj or base.neg
    if layout.dtype is base.dtype and not bits:
        ahead = layout.offset - base.offset

        def seen(tensor: Tensor) -> Tensor:
            return tensor.as_strided(shape, stride, tensor.storage_offset() + ahead)

    else:
        size, unit = layout.dtype.itemsize, base.dtype.itemsize
        dtype, ahead = layout.dtype, layout.offset * layout.dtype.itemsize - base.offset * unit

        def seen(tensor: Tensor) -> Tensor:
            offset = (tensor.storage_offset() * unit + ahead) // size
            empty = torch.empty(0, dtype=dtype, device=tensor.device)
            return empty.set_(tensor.untyped_storage(), offset, shape, stride)

    if not (layout.conj or layout.neg):
        return seen
    return lambda tensor: _with_bits(seen(tensor), layout)


def _with_bits(tensor: Tensor, layout: Layout) -> Tensor:
    tensor = tensor.conj() if layout.conj else tensor
    return torch._neg_view(tensor) if layout.neg else tensor


def kept(layout: Layout, nbytes: int) -> Layout:
    """The layout by which a storage is kept: that of its first tensor if this is all of it, else one dimension."""
    if layout.whole(nbytes):
        return layout
    return Layout((nbytes // layout.dtype.itemsize,), (1,), 0, layout.dtype, layout.device)
