"""The forms in which a saved tensor is kept until the backward pass, each with its bytes and its way back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from gact import kernels, masks
from gact.affine import AffineCodes
from gact.geometry import Geometry, flatten


class Form(ABC):
    """A saved tensor in some representation."""

    __slots__ = ("__weakref__",)

    name: str
    bits: float  # nominal, a stored number

    @abstractmethod
    def decode(self) -> Tensor:
        """Return the tensor that the backward pass shall see."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that this form keeps alive."""


@final
class Raw(Form):
    """The tensor itself, exact. Its version is checked as autograd does, which hooks would otherwise disable.

    Args:
        tensor: The tensor, detached.
        version: Its version when it was saved; the present one if None.
    """

    __slots__ = ("_tensor", "_version", "bits")
    name = "exact"

    def __init__(self, tensor: Tensor, version: int | None = None) -> None:
        self._tensor = tensor
        self._version = version_of(tensor) if version is None else version
        self.bits = 8.0 * tensor.element_size()

    def decode(self) -> Tensor:
        """Return the tensor.

        Raises:
            RuntimeError: If the tensor was changed in place since it was saved.
        """
        if self.changed:
            now = version_of(self._tensor)
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"{self._tensor.dtype} tensor of shape {tuple(self._tensor.shape)} was saved at version "
                f"{self._version} and is at version {now} now; replace the in-place operation, or clone before it"
            )
        return self._tensor

    @property
    def changed(self) -> bool:
        """Whether the tensor was changed in place since it was saved."""
        return version_of(self._tensor) != self._version

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's whole storage."""
        try:
            return self._tensor.untyped_storage().nbytes()
        except (RuntimeError, NotImplementedError):  # sparse, nested, wrappers: no one storage
            return self._tensor.numel() * self._tensor.element_size()


@final
class Copy(Form):
    """Numbers copied out of a storage that need not stay, exact."""

    __slots__ = ("_flat", "bits")
    name = "exact copy"

    def __init__(self, flat: Tensor) -> None:
        self._flat, self.bits = flat.clone(), 8.0 * flat.element_size()

    def decode(self) -> Tensor:
        """Return the numbers as a line."""
        return self._flat

    @property
    def nbytes(self) -> int:
        """Bytes of the copy."""
        return self._flat.numel() * self._flat.element_size()


class Coded(Form):
    """A form that can show codes of the per-group affine quantiser."""

    __slots__ = ()

    @abstractmethod
    def codes(self) -> AffineCodes:
        """Return the codes on the tensor's device."""


@final
class Affine(Coded):
    """Codes of the per-group affine quantiser."""

    __slots__ = ("_codes", "_fetch", "_kept", "bits")
    name = "affine"

    def __init__(self, codes: AffineCodes, keep: Callable[[Tensor], Any] | None = None) -> None:
        self.bits, self._kept = float(codes.bits), codes.nbytes
        if keep is None:
            self._codes, self._fetch = codes, None
        else:  # the buffer lives elsewhere; only its description stays
            self._fetch = keep(codes.buffer)
            self._codes = _describe(codes)

    def codes(self) -> AffineCodes:
        """Return the codes on the tensor's device."""
        return self._codes if self._fetch is None else _with_buffer(self._codes, self._fetch.get())

    def decode(self) -> Tensor:
        """Return the dequantised numbers as a line; `View` gives them their shape."""
        return kernels.dequantise(self.codes())

    @property
    def nbytes(self) -> int:
        """Bytes of codes and of the groups' ends."""
        return self._kept


@final
class Through(Coded):
    """Numbers kept as codes of a function of them, which is all that the backward formula takes.

    Args:
        inner: Codes of the function's values.
        back: Its inverse, for the backward formula to undo.
    """

    __slots__ = ("_back", "_inner", "bits")
    name = "affine"

    def __init__(self, inner: Coded, back: Callable[[Tensor], Tensor]) -> None:
        self._inner, self._back, self.bits = inner, back, inner.bits

    def codes(self) -> AffineCodes:
        """Return the codes of the function's values."""
        return self._inner.codes()

    def decode(self) -> Tensor:
        """Return numbers of which the function is what was stored, as a line."""
        return self._back(self._inner.decode())

    @property
    def nbytes(self) -> int:
        """Bytes of the codes."""
        return self._inner.nbytes


@final
class Branch(Coded):
    """A class a number, and codes of the numbers in the one class whose values count.

    Args:
        inner: Codes; of zero where the class says enough.
        classes: Booleans, or small integers as bytes.
        values: By class, what stands in for its numbers; None in the class whose codes count.
    """

    __slots__ = ("_inner", "_numel", "_packed", "_values", "bits")
    name = "affine"

    def __init__(self, inner: Coded, classes: Tensor, values: tuple[float | None, ...]) -> None:
        self._inner, self._values, self._numel, self.bits = inner, values, classes.numel(), inner.bits
        self._packed = kernels.pack_bits(classes) if len(values) == 2 else kernels.pack_fields(classes, 2)

    def codes(self) -> AffineCodes:
        """Return the codes of the class whose values count."""
        return self._inner.codes()

    def decode(self) -> Tensor:
        """Return the numbers or what stands in for them, as a line."""
        numbers = self._inner.decode()
        if len(self._values) == 2:
            classes = kernels.unpack_bits(self._packed, self._numel)
        else:
            classes = kernels.unpack_fields(self._packed, 2, self._numel)
        for place, value in enumerate(self._values):
            if value is not None:
                numbers = torch.where(classes == place, value, numbers)
        return numbers

    @property
    def nbytes(self) -> int:
        """Bytes of codes and classes."""
        return self._inner.nbytes + self._packed.numel()


@final
class View(Form):
    """One tensor's view of a form that several may share.

    Args:
        source: The shared form, a line of numbers.
        geometry: Shape of this tensor.
        item: Name of the form's first user.
    """

    __slots__ = ("bits", "geometry", "item", "name", "source")

    def __init__(self, source: Form, geometry: Geometry, item: str = "") -> None:
        self.source, self.geometry, self.item = source, geometry, item
        self.name, self.bits = source.name, source.bits

    def decode(self) -> Tensor:
        """Return the tensor in its own shape and strides."""
        return self.geometry.restore(self.source.decode())

    @property
    def nbytes(self) -> int:
        """Bytes of the shared form."""
        return self.source.nbytes


@final
class Levels(Form):
    """A tensor of which the backward pass only asks into which of two or three classes each number falls.

    Stored as 1 or 2 bits a number; read back as one representative value a class, on which the backward formula gives
    exactly what it gives on the number itself.
    """

    __slots__ = ("_dtype", "_numel", "_packed", "_values", "bits", "name")

    def __init__(self, name: str, classes: Tensor, values: tuple[float, ...], dtype: torch.dtype) -> None:
        self.name, self._values, self._dtype, self._numel = name, values, dtype, classes.numel()
        self.bits = 1.0 if len(values) == 2 else 2.0
        self._packed = kernels.pack_bits(classes) if len(values) == 2 else kernels.pack_fields(classes, 2)

    def decode(self) -> Tensor:
        """Return the representatives as a line."""
        if len(self._values) == 2:
            mask = kernels.unpack_bits(self._packed, self._numel)
            if self._dtype == torch.bool:
                return mask
            if self._values == (0.0, 1.0):
                return mask.to(self._dtype)
            low, high = (torch.tensor(v, dtype=self._dtype, device=mask.device) for v in self._values)
            return torch.where(mask, high, low)
        table = torch.tensor(self._values, dtype=self._dtype, device=self._packed.device)
        return table[kernels.unpack_fields(self._packed, 2, self._numel).int()]

    @property
    def nbytes(self) -> int:
        """Bytes of the packed classes."""
        return self._packed.numel()


@final
class Noise(Form):
    """A tensor of two values, zero and one other: the scaled mask that dropout leaves on the CPU."""

    __slots__ = ("_numel", "_packed", "_scale")
    name, bits = "two values", 1.0

    def __init__(self, mask: Tensor, scale: Tensor) -> None:
        self._packed, self._scale, self._numel = kernels.pack_bits(mask), scale, mask.numel()

    def decode(self) -> Tensor:
        """Return the noise as a line, bit for bit."""
        mask = kernels.unpack_bits(self._packed, self._numel)
        return torch.where(mask, self._scale, torch.zeros_like(self._scale))

    @property
    def nbytes(self) -> int:
        """Bytes of the mask and of the one value."""
        return self._packed.numel() + self._scale.element_size()


@final
class Offsets(Form):
    """Indices of a max-pooling as offsets in their windows."""

    __slots__ = ("_numel", "_packed", "_shape", "_width", "_window", "bits")
    name = "window offsets"

    def __init__(self, indices: Tensor, window: Mapping[str, Any], cells: int) -> None:
        offsets = masks.pool_offsets(indices, **window).flatten()
        self._shape, self._numel, self._window = tuple(indices.shape), offsets.numel(), window
        self._width = next((w for w in (1, 2, 4) if cells <= 2**w), 8)
        self.bits = float(self._width)
        self._packed = offsets if self._width == 8 else kernels.pack_fields(offsets, self._width)

    def decode(self) -> Tensor:
        """Return the indices, exact."""
        packed = self._packed
        offsets = packed if self._width == 8 else kernels.unpack_fields(packed, self._width, self._numel)
        return masks.pool_indices(offsets, self._shape, **self._window)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed offsets."""
        return self._packed.numel()


@final
class Shape(Form):
    """A tensor of which the backward pass only reads shape and strides; its numbers are not kept."""

    __slots__ = ("_device", "_dtype", "_size", "_stride")
    name, bits = "shape only", 0.0

    def __init__(self, tensor: Tensor) -> None:
        self._size, self._stride = tuple(tensor.size()), tuple(tensor.stride())
        self._dtype, self._device = tensor.dtype, tensor.device

    def decode(self) -> Tensor:
        """Return zeros of that shape."""
        return torch.empty_strided(self._size, self._stride, dtype=self._dtype, device=self._device).zero_()

    @property
    def nbytes(self) -> int:
        """Nothing is kept."""
        return 0


def two_values(tensor: Tensor) -> Form | None:
    """The form of a tensor that holds zero and at most one other value, else None; looks at every number."""
    flat, geometry = flatten(tensor)
    if flat.numel() == 0:
        return None
    scale = flat[flat.abs().argmax()]  # the one value that is not zero, if it is one
    mask = flat != 0
    if not torch.isfinite(scale) or not bool(((flat == scale) | ~mask).all()):
        return None
    return View(Noise(mask, scale.clone()), geometry)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 for inference tensors, which do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _describe(codes: AffineCodes) -> AffineCodes:
    return _with_buffer(codes, codes.buffer.new_empty(0))


def _with_buffer(codes: AffineCodes, buffer: Tensor) -> AffineCodes:
    return AffineCodes(buffer, codes.numel, codes.bits, codes.group_size, codes.dtype)
