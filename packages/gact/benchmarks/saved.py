"""Saved-tensor hooks that encode every large floating-point activation, as the peers' formats would.

The formats here round to nearest. So that the formats are compared and not the wrapping, tensors that share memory are
encoded once, parameters and buffers are left alone, and so is everything small: more than a plain hook would do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

MIN_BYTES = 16384
Encode = Callable[[Tensor], Any]
Decode = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Codec:
    """A format: `encode` gives anything, of which `decode` makes a tensor of the same shape and type again."""

    name: str
    encode: Encode
    decode: Decode


@dataclass(frozen=True, eq=False)
class _Held:
    """What is kept instead of a tensor."""

    content: Any
    shape: torch.Size
    dtype: torch.dtype


@contextmanager
def encoded(codec: Codec, model: nn.Module, min_bytes: int = MIN_BYTES) -> Iterator[None]:
    """Keep what autograd saves inside this block in the form of a codec.

    Args:
        codec: The format.
        model: Its parameters and buffers are left alone, views of them too.
        min_bytes: Smaller tensors are left alone.
    """
    static = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    known: dict[tuple[object, ...], tuple[StorageWeakRef, _Held]] = {}

    def pack(x: Tensor) -> Tensor | _Held:
        storage = x.untyped_storage()
        if not x.is_floating_point() or x.nbytes < min_bytes or storage._cdata in static:
            return x.detach()
        key = (storage._cdata, x._version, x.storage_offset(), x.shape, x.stride())
        if key in known and not known[key][0].expired():  # the weak reference keeps the address from being used again
            return known[key][1]
        held = _Held(codec.encode(x.detach()), x.shape, x.dtype)
        known[key] = StorageWeakRef(storage), held
        return held

    def unpack(held: Tensor | _Held) -> Tensor:
        if isinstance(held, Tensor):
            return held
        return codec.decode(held.content).view(held.shape).to(held.dtype)

    with saved_tensors_hooks(pack, unpack):
        yield


def identity() -> Codec:
    """Keeps a copy: lossless, and no smaller."""
    return Codec("copy", lambda x: x.clone(), lambda x: x)


def fp8(dtype: torch.dtype, rows: bool) -> Codec:
    """Eight-bit floating point with a scale to the format's largest number.

    Args:
        dtype: ``torch.float8_e4m3fn`` or ``torch.float8_e5m2``.
        rows: One scale for each row of the last dimension, as Inductor's pass has it; else one for the tensor.
    """
    largest = torch.finfo(dtype).max

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        amax = x.abs().amax(-1, keepdim=True) if rows and x.ndim else x.abs().amax()
        scale = largest / amax.float().clamp_min(1e-12)
        return (x * scale).clamp_(-largest, largest).to(dtype), scale

    def decode(content: tuple[Tensor, Tensor]) -> Tensor:
        codes, scale = content
        return codes.float() / scale

    short = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}[dtype]
    return Codec(f"fp8 {short}, a scale per {'row' if rows else 'tensor'}", encode, decode)


def bitsandbytes(form: str) -> Codec:
    """The block formats of bitsandbytes.

    Args:
        form: ``"int8"`` (dynamic 8-bit codes, blocks of 256) or ``"nf4"`` (blocks of 64).
    """
    library: Any = import_module("bitsandbytes.functional")

    def encode8(x: Tensor) -> Any:
        return library.quantize_blockwise(x.contiguous(), blocksize=256)

    def encode4(x: Tensor) -> Any:
        return library.quantize_4bit(x.contiguous(), blocksize=64, quant_type="nf4")

    if form == "int8":
        return Codec("bitsandbytes 8-bit", encode8, lambda content: library.dequantize_blockwise(*content))
    if form == "nf4":
        return Codec("bitsandbytes NF4", encode4, lambda content: library.dequantize_4bit(*content))
    raise ValueError(f"form={form!r}; choose 'int8' or 'nf4'")
