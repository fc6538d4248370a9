"""The one place that chooses between the kernels in PyTorch and those in Triton, which make the same bytes."""

import contextlib
import functools
import importlib
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, UInt8

from gact import affine, masks
from gact.affine import AffineCodes

Backend = Literal["auto", "torch", "triton"]
_CHOICE = threading.local()


@contextlib.contextmanager
def use(backend: Backend) -> Iterator[None]:
    """Choose the kernels for this thread, within a block.

    Args:
        backend: "auto" takes Triton for tensors on a CUDA device where Triton is installed, PyTorch otherwise;
            "torch" and "triton" take what they say.

    Yields:
        Nothing.

    Raises:
        ValueError: If the backend is another one.
        ImportError: If "triton" is chosen and cannot be imported.

    Example:
        >>> with use("torch"):
        ...     backend_of(torch.zeros(3))
        'torch'
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend={backend!r}: the choices are {get_args(Backend)}")
    if backend == "triton" and not has_triton():
        raise ImportError("Triton cannot be imported: install gact[triton], or choose 'torch'")
    before = _chosen()
    _CHOICE.backend = backend
    try:
        yield
    finally:
        _CHOICE.backend = before


@functools.cache
def has_triton() -> bool:
    """Whether Triton can be imported.

    Returns:
        True if it can.
    """
    try:
        importlib.import_module("triton")
    except ImportError:
        return False
    return True


def backend_of(tensor: torch.Tensor) -> Literal["torch", "triton"]:
    """Which kernels a tensor gets in this thread.

    Args:
        tensor: The tensor.

    Returns:
        "torch" or "triton".
    """
    chosen = _chosen()
    if chosen == "auto":
        return "triton" if tensor.is_cuda and has_triton() else "torch"
    return chosen


def quantise(
    x: Float[torch.Tensor, " n"],
    bits: int,
    *,
    key: int,
    group_size: int = 256,
    out: UInt8[torch.Tensor, " m"] | None = None,
    of: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> AffineCodes:
    """Store a tensor at `bits` bits a number.

    Args:
        x: As for `affine.quantise`.
        bits: Likewise.
        key: Likewise.
        group_size: Likewise.
        out: Likewise.
        of: Likewise; a kernel that cannot do it piece by piece gets the whole.

    Returns:
        The codes.

    Raises:
        TypeError: As there.
        ValueError: As there.

    Example:
        >>> quantise(torch.ones(100), 2, key=7).nbytes
        72
    """
    module = _affine(x)
    if module is affine:
        return affine.quantise(x, bits, key=key, group_size=group_size, out=out, of=of)
    return module.quantise(x if of is None else of(x), bits, key=key, group_size=group_size, out=out)


def dequantise(
    codes: AffineCodes, *, dtype: torch.dtype | None = None, out: Float[torch.Tensor, " n"] | None = None
) -> Float[torch.Tensor, " n"]:
    """The numbers that the codes stand for.

    Args:
        codes: From `quantise`.
        dtype: As for `affine.dequantise`.
        out: Likewise.

    Returns:
        Numbers, shape [n].

    Raises:
        TypeError: As there.
        ValueError: As there.

    Example:
        >>> dequantise(quantise(torch.ones(3), 2, key=7))
        tensor([1., 1., 1.])
    """
    return _affine(codes.buffer).dequantise(codes, dtype=dtype, out=out)


def pack_bits(mask: Bool[torch.Tensor, " n"]) -> UInt8[torch.Tensor, " m"]:
    """A mask at one bit an element.

    Args:
        mask: As for `masks.pack_bits`.

    Returns:
        Bytes, shape [⌈n/8⌉].

    Raises:
        TypeError: If `mask` is not boolean.
    """
    return _masks(mask).pack_bits(mask)


def unpack_bits(packed: UInt8[torch.Tensor, " m"], numel: int) -> Bool[torch.Tensor, " {numel}"]:
    """The mask that `pack_bits` packed.

    Args:
        packed: Bytes, shape [⌈n/8⌉].
        numel: n.

    Returns:
        Booleans, shape [n].

    Raises:
        ValueError: If `packed` has another length than ⌈n/8⌉.
    """
    return _masks(packed).unpack_bits(packed, numel)


def pack_fields(values: UInt8[torch.Tensor, " n"], width: int) -> UInt8[torch.Tensor, " m"]:
    """Integers below 2^width at `width` bits each.

    Args:
        values: As for `masks.pack_fields`.
        width: 1, 2 or 4 bits.

    Returns:
        Bytes, shape [⌈n·width/8⌉].

    Raises:
        TypeError: As there.
        ValueError: As there.
    """
    return _masks(values).pack_fields(values, width)


def unpack_fields(packed: UInt8[torch.Tensor, " m"], width: int, numel: int) -> UInt8[torch.Tensor, " {numel}"]:
    """The integers that `pack_fields` packed.

    Args:
        packed: Bytes, shape [⌈n·width/8⌉].
        width: 1, 2 or 4 bits.
        numel: n.

    Returns:
        Bytes, shape [n].

    Raises:
        TypeError: As there.
        ValueError: As there.
    """
    return _masks(packed).unpack_fields(packed, width, numel)


def _chosen() -> Backend:
    return getattr(_CHOICE, "backend", "auto")


def _affine(tensor: torch.Tensor) -> ModuleType:
    return importlib.import_module("gact.affine_triton") if backend_of(tensor) == "triton" else affine


def _masks(tensor: torch.Tensor) -> ModuleType:
    return importlib.import_module("gact.masks_triton") if backend_of(tensor) == "triton" else masks
