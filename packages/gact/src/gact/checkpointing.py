"""Checkpoints whose kept inputs are compressed: recomputation inside of a block, few bits between blocks.

A checkpointed block keeps its inputs and recomputes the rest during the backward pass. With blocks in a chain the
inputs are then most of what is kept, and they need not be exact: here they are stored as codes, and recomputation
starts from what the codes stand for. The forward pass computes with the exact inputs.

The whole block is recomputed from noisy numbers, so the gradient is unbiased up to second order in the noise only, and
a rectifier at the block's entry may decide differently. That is small at 8 bits, the default, and not at 2.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import checkpoint as torch_checkpoint

from gact import kernels
from gact.affine import BITS, DTYPES, GROUP_SIZES, AffineCodes
from gact.counter_rng import stream_key
from gact.geometry import Geometry, flatten

__all__ = ["Compress", "FixedBits", "Holder", "checkpoint", "compressing"]

_active = threading.local()


@runtime_checkable
class Holder(Protocol):
    """What is kept in place of a tensor."""

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        ...

    def decode(self) -> Tensor:
        """Return a new tensor of the same shape, strides, type and device, without a graph; any number of times."""
        ...


# Decides what is kept of a detached tensor: a holder, or None to keep the tensor itself.
Compress = Callable[[Tensor], Holder | None]


@final
class FixedBits:
    """Codes of one width for every floating tensor that is large enough.

    Args:
        bits: 1, 2, 4 or 8.
        group_size: Numbers that share one range.
        min_bytes: Smaller tensors are kept as they are.
        seed: Of the rounding; each tensor gets noise of its own.

    Raises:
        ValueError: If a number is not among those allowed.

    Example:
        >>> kept = FixedBits(8)(torch.linspace(0, 1, 10_000))
        >>> kept.nbytes, kept.decode().shape
        (10560, torch.Size([10000]))
    """

    def __init__(self, bits: int = 8, *, group_size: int = 256, min_bytes: int = 16384, seed: int = 0) -> None:
        if bits not in BITS or group_size not in GROUP_SIZES or min_bytes < 0:
            raise ValueError(
                f"bits={bits!r}, group_size={group_size!r}, min_bytes={min_bytes!r}: give bits from {BITS}, a group "
                f"size from {GROUP_SIZES} and at least 0 bytes"
            )
        self._bits, self._group_size, self._min_bytes, self._seed = bits, group_size, min_bytes, seed
        self._count = itertools.count()  # next() of a count is atomic

    def __call__(self, tensor: Tensor, /) -> Holder | None:
        """Return the codes of a tensor, or None for one that is small, not floating or not strided."""
        plain = type(tensor) is Tensor and tensor.layout == torch.strided and tensor.dtype in DTYPES
        if not plain or tensor.numel() * tensor.element_size() < max(self._min_bytes, 1):
            return None
        flat, geometry = flatten(tensor)
        key = stream_key(self._seed, next(self._count), 0)
        return _Codes(kernels.quantise(flat, self._bits, key=key, group_size=self._group_size), geometry)


_DEFAULT = FixedBits()


@contextlib.contextmanager
def compressing(compress: Compress) -> Iterator[None]:
    """Let the checkpoints of this block, on this thread, keep their inputs as `compress` says.

    Args:
        compress: From a detached tensor to a holder, or to None to keep the tensor itself.
    """
    before = getattr(_active, "compress", None)
    _active.compress = compress
    try:
        yield
    finally:
        _active.compress = before


def checkpoint(
    fn: Callable[..., Any],
    *args: Any,
    preserve_rng_state: bool = True,
    compress: Compress | None = None,
    context_fn: Callable[[], tuple[Any, Any]] | None = None,
    **kwargs: Any,
) -> Any:
    """Run a function and keep its tensor arguments compressed; recompute what it saves during the backward pass.

    As `torch.utils.checkpoint.checkpoint(..., use_reentrant=False)`, except that recomputation starts from inputs
    decoded from few bits, so that the gradient is a noisy one. Arguments that are no large floating tensors,
    parameters, and what the function closes over are kept as they are. A function whose control flow or choice of
    indices depends on its inputs (routing by the largest score) may choose differently when it is recomputed: keep
    those inputs exact through `compress`. While torch.compile traces, this is torch's own checkpoint.

    Args:
        fn: The function, or module.
        args: Its arguments: any nesting of tuples, lists and dicts.
        preserve_rng_state: Whether recomputation draws the same random numbers.
        compress: What to keep of a tensor; by default what `compressing` says, and 8 bits a number without it.
        context_fn: As for torch's checkpoint.
        kwargs: Its keyword arguments.

    Returns:
        What the function returns.

    Raises:
        RuntimeError: During the backward pass, if an argument that was kept as it is has been changed in place.

    Example:
        >>> layer, x = torch.nn.Linear(64, 64), torch.randn(256, 64, requires_grad=True)
        >>> y = checkpoint(layer, x, compress=FixedBits(4))
        >>> bool((y == layer(x)).all())
        True

    Reference:
        Liu et al. (2022), GACT, Section 6: compression combined with gradient checkpointing.
    """
    options: dict[str, Any] = {} if context_fn is None else {"context_fn": context_fn}
    options |= {"use_reentrant": False, "preserve_rng_state": preserve_rng_state}
    if torch.compiler.is_compiling():
        return torch_checkpoint.checkpoint(fn, *args, **options, **kwargs)
    if not torch.is_grad_enabled():
        return fn(*args, **kwargs)
    chosen = compress or getattr(_active, "compress", None) or _DEFAULT
    leaves, spec = pytree.tree_flatten((args, kwargs))
    memo: dict[int, _Kept] = {}
    kept = [_keep(leaf, chosen, memo) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    exact = [leaves]  # for one call

    def run(*_: Tensor) -> Any:
        values = exact.pop() if exact else _decoded(kept)
        positional, named = pytree.tree_unflatten(values, spec)
        del values
        return fn(*positional, **named)

    # torch finds the devices whose random state counts from the arguments
    devices = {leaf.device for leaf in leaves if isinstance(leaf, Tensor)}
    markers = [torch.empty(0, device=device) for device in devices]
    del args, kwargs, leaves, memo
    try:
        # hooks around this call are for what a graph saves, and shall not see how torch keeps the markers
        with torch.autograd.graph.saved_tensors_hooks(_same, _same):
            return torch_checkpoint.checkpoint(run, *markers, **options)
    finally:
        exact.clear()


@final
@dataclass(frozen=True, slots=True)
class _Codes:
    """Codes of a tensor and its geometry: the holder of `FixedBits`."""

    codes: AffineCodes
    geometry: Geometry

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes

    def decode(self) -> Tensor:
        return self.geometry.restore(kernels.dequantise(self.codes))


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A tensor argument: its holder, or itself, and what it was in the graph."""

    holder: Holder | None
    tensor: Tensor | None
    version: int
    requires_grad: bool
    leaf: bool

    def value(self) -> Tensor:
        """The tensor that recomputation starts from."""
        if self.tensor is not None:
            if not self.tensor.is_inference() and self.tensor._version != self.version:
                raise RuntimeError(
                    f"an argument of a checkpointed function, a {self.tensor.dtype} tensor of shape "
                    f"{tuple(self.tensor.shape)}, was changed in place after the call (version {self.version} became "
                    f"{self.tensor._version}): replace the in-place operation, or clone before it"
                )
            return self.tensor
        assert self.holder is not None
        with torch.no_grad():
            decoded = self.holder.decode()
        decoded = decoded.detach()  # no view made without a graph, which could not be changed in place
        if not self.requires_grad:
            return decoded
        return decoded.requires_grad_() if self.leaf else _inner(decoded)


def _keep(tensor: Tensor, compress: Compress, memo: dict[int, _Kept]) -> _Kept:
    if id(tensor) not in memo:
        exempt = tensor.is_leaf and tensor.requires_grad  # a parameter, or an input that its owner keeps
        with torch.no_grad():
            holder = None if exempt else compress(tensor.detach())
        version = 0 if tensor.is_inference() else tensor._version
        raw = tensor if holder is None else None
        memo[id(tensor)] = _Kept(holder, raw, version, tensor.requires_grad, tensor.is_leaf)
    return memo[id(tensor)]


def _decoded(kept: list[Any]) -> list[Any]:
    values: dict[int, Tensor] = {}
    result = []
    for item in kept:
        if isinstance(item, _Kept):
            if id(item) not in values:
                values[id(item)] = item.value()
            item = values[id(item)]
        result.append(item)
    return result


def _inner(tensor: Tensor) -> Tensor:
    """Make a new tensor require a gradient without being a leaf, which in-place operations must not touch."""
    source = torch.empty(0, dtype=tensor.dtype, device=tensor.device).requires_grad_()
    tensor.as_strided((0,), (1,)).copy_(source)
    return tensor


def _same(value: Any) -> Any:
    return value
