"""torch.compile: hooks that are inlined into the compiled graphs.

Ordinary hooks work under torch.compile, but the backward of a compiled graph unpacks everything it saved at its start,
so that the peak of memory hardly falls. Hooks given as `torch.fx.GraphModule` become part of the graphs instead: codes
are computed as the epilogue of the forward graph and expanded where the backward graph needs them. `CompiledHooks`
makes such a pair. The same pair serves what runs eagerly between compiled regions, through the eager hooks it is given.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor

from gact.compiled_affine import dequantise_traced, pack_bits_traced, quantise_traced, unpack_bits_traced
from gact.compiled_rules import FLOATS, Form, TracedTensor, form_of, memory_order
from gact.counter_rng import stream_key

__all__ = ["CompileWarning", "CompiledHooks", "can_inline", "is_compiling"]

FILTERS = ("donated", "no_static", "all")

_scope = threading.local()  # .keys: where compiled graphs that run on this thread get the keys of their rounding
_tag = itertools.count()


@final
class CompileWarning(UserWarning):
    """Something that the eager mode does is not done in compiled graphs."""


def is_compiling(x: Any = None) -> bool:
    """Whether torch.compile is tracing.

    Args:
        x: A tensor that a hook was handed, or a container of such: then whether it is a stand-in of one. None asks for
            the code that calls this.

    Returns:
        True while tracing.

    Example:
        >>> is_compiling(torch.ones(3))
        False
    """
    if x is None:
        return torch.compiler.is_compiling()
    fake, functional = torch._subclasses.fake_tensor.FakeTensor, torch._subclasses.functional_tensor.FunctionalTensor
    return any(isinstance(leaf, fake | functional) for leaf in torch.utils._pytree.tree_leaves(x))


def can_inline() -> bool:
    """Whether this torch inlines hooks into compiled graphs, and can be told which saved tensors to hand to them."""
    return hasattr(torch._functorch.config, "saved_tensors_hooks_filtering_mode")


@final
class CompiledHooks:
    """A pair of hooks on saved tensors that torch.compile inlines into the graphs it compiles.

    Each saved tensor is seen once, while its graph is compiled, and its form is decided then by
    `compiled_rules.form_of`: codes of a fixed width, bits for booleans and signs of rectifiers, or as it is. The
    rounding is unbiased: a small custom operator in the forward graph hands out a new key on every run, so that nothing
    is compiled again. The forward pass computes with the exact numbers. A backend that fuses may keep its results to
    the bit or not: where it rounds to 16 bits only what leaves a kernel, codes are one more reason to leave.

    Keep one object for a training run: torch.compile compiles again for another pair.

    Args:
        bits: 1, 2, 4 or 8; one width for all compiled graphs.
        group_size: Elements that share low and high, a multiple of 8.
        min_bytes: Smaller tensors stay as they are.
        seed: Of the rounding.
        step_bits: Least width of a tensor from which the backward graph recomputes a step (a rectifier behind a
            normalisation): noise there moves numbers over the step, which is a bias.
        filtering: Which tensors torch hands over: ``"donated"``, those inside of one graph only, best when one graph
            holds the whole model; ``"no_static"``, also its inputs and outputs, best when blocks are compiled one by
            one and pass activations on; ``"all"``, parameters too (which stay as they are).
        eager: (pack, unpack) for tensors saved outside of compiled graphs; by default they stay as they are.

    Raises:
        ValueError: If a number is not among those allowed.

    Example:
        ::

            hooks = CompiledHooks(4)
            compiled = torch.compile(model)
            with hooks.active():
                loss = compiled(x).square().mean()
            loss.backward()
    """

    def __init__(
        self,
        bits: int,
        *,
        group_size: int = 256,
        min_bytes: int = 16384,
        seed: int = 0,
        step_bits: int = 8,
        filtering: str = "no_static",
        eager: tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None = None,
    ) -> None:
        if bits not in (1, 2, 4, 8):
            raise ValueError(f"bits={bits!r}: give 1, 2, 4 or 8")
        if step_bits not in (1, 2, 4, 8):
            raise ValueError(f"step_bits={step_bits!r}: give 1, 2, 4 or 8")
        if group_size < 8 or group_size % 8:
            raise ValueError(f"group_size={group_size!r}: give a positive multiple of 8")
        if min_bytes < 0:
            raise ValueError(f"min_bytes={min_bytes!r}: give a number of bytes, 0 or more")
        if filtering not in FILTERS:
            raise ValueError(f"filtering={filtering!r}: give one of {', '.join(FILTERS)}")
        self._bits, self._group_size, self._min_bytes = bits, group_size, min_bytes
        self._step_bits, self._filtering, self._eager = max(bits, step_bits), filtering, eager
        self._keys = _Keys(seed)
        self._salt = itertools.count()
        self._traced: dict[str, TracedTensor] = {}
        self._warned = False
        # two pairs must not share an entry of torch's caches
        label = f"gact-{bits}-{step_bits}-{group_size}-{min_bytes}-{next(_tag)}"
        self.pack = _module(self._pack, "pack", label)
        self.unpack = _module(self._unpack, "unpack", label)

    @property
    def traced(self) -> tuple[TracedTensor, ...]:
        """What was decided for the tensors that compiled graphs save, in the order of compilation."""
        return tuple(self._traced.values())

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Use the hooks for everything that autograd saves in this block, on this thread."""
        before = getattr(_scope, "keys", None)
        with contextlib.ExitStack() as stack:
            if can_inline():
                config = torch._functorch.config
                stack.enter_context(config.patch(saved_tensors_hooks_filtering_mode=self._filtering))
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack))
            _scope.keys = self._keys
            try:
                yield
            finally:
                _scope.keys = before

    def _pack(self, x: Tensor) -> Any:
        if is_compiling(x):
            return self._pack_traced(x)
        return x.detach() if self._eager is None else self._eager[0](x)

    def _unpack(self, packed: Any) -> Tensor:
        if is_compiling(packed):
            return _expand(packed, self._width(Form(packed[0])), self._group_size)
        return packed if self._eager is None else self._eager[1](packed)

    def _pack_traced(self, x: Tensor) -> Any:
        node, backward = _graph_context()
        form = form_of(x, node, backward, min_bytes=self._min_bytes)
        self._note(x, node, form)
        if form is Form.RAW:
            return (int(form), x)
        flat, order = _in_memory_order(x)
        shape, kind = list(x.shape), _FLOAT_INDEX.get(x.dtype, 0)
        if form in (Form.BITS, Form.SIGN):
            return (int(form), pack_bits_traced(flat if form is Form.BITS else flat > 0), kind, order, shape)
        key = torch.ops.gact.rounding_key(flat, next(self._salt))
        positive = [pack_bits_traced(flat > 0)] if form is Form.RECTIFIED else []
        if form is Form.RECTIFIED:
            flat = flat.clamp(min=0)
        codes = quantise_traced(flat, self._width(form), self._group_size, key)
        return (int(form), list(codes), positive, order, shape)

    def _width(self, form: Form) -> int:
        return self._step_bits if form is Form.WIDE else self._bits

    def _note(self, x: Tensor, node: Any, form: Form) -> None:
        bits = {Form.BITS: 1, Form.SIGN: 1, Form.RAW: x.itemsize * 8, Form.RECTIFIED: self._bits + 1}
        shape = tuple(n if isinstance(n, int) else str(n) for n in x.shape)
        name, operation = ("", "") if node is None else (node.name, str(node.target))
        row = TracedTensor(name, operation, shape, x.dtype, form, bits.get(form, self._width(form)))
        self._traced[f"{name} {shape}"] = row  # torch may trace a tensor twice
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"compiled graphs store what they save at a fixed {self._bits} bits: bits chosen by sensitivity, rows "
                "of the report, window offsets for pooling indices, sharing between graphs and offload are left to "
                "what runs eagerly",
                CompileWarning,
                stacklevel=2,
            )


@final
class _Keys:
    """Keys of the rounding, a new one for every tensor of every run of a compiled graph."""

    def __init__(self, seed: int) -> None:
        self._seed, self._count = seed, itertools.count()  # next() of a count is atomic

    def next(self, salt: int) -> int:
        key = stream_key(self._seed, next(self._count), salt) & 0xFFFFFFFF
        return key - (1 << 32) if key >= 1 << 31 else key


_FALLBACK = _Keys(0)  # for a graph that runs outside of a block, which torch's guards do not allow


def _rounding_key(like: Tensor, salt: int) -> Tensor:
    key = (getattr(_scope, "keys", None) or _FALLBACK).next(salt)
    return torch.full((), key, dtype=torch.int32, device=like.device)


def _rounding_key_shape(like: Tensor, salt: int) -> Tensor:
    return torch.empty((), dtype=torch.int32, device=like.device)


torch.library.custom_op(
    "gact::rounding_key", _rounding_key, mutates_args=(), schema="(Tensor like, int salt) -> Tensor"
).register_fake(_rounding_key_shape)

_FLOAT_INDEX = {dtype: i for i, dtype in enumerate(FLOATS)}


def _module(call: Callable[[Any], Any], name: str, label: str) -> torch.fx.GraphModule:
    """A graph of one call, which torch then runs on stand-ins to trace what it does with each tensor."""

    @torch.compiler.disable  # torch.compile traces what the hook does with stand-ins, and not the hook's own Python
    def hook(value: Any) -> Any:
        return call(value)

    hook.__name__ = hook.__qualname__ = f"gact_{name}"
    graph = torch.fx.Graph()
    node = graph.call_function(hook, (graph.placeholder("value"),))
    node.meta.update(is_wrapped=True, user_cache_hash=f"{label}-{name}")
    graph.output(node)
    return torch.fx.GraphModule(torch.nn.Module(), graph)


def _graph_context() -> tuple[Any, Any]:
    """The node of the saved tensor in the forward graph and the backward graph, where torch tells."""
    try:
        from torch._functorch._aot_autograd.graph_compile import _get_saved_tensor_hook_context
    except ImportError:
        return None, None
    state = _get_saved_tensor_hook_context() or {}
    return state.get("_node"), state.get("_bw_graph")


def _in_memory_order(x: Tensor) -> tuple[Tensor, list[int]]:
    """The numbers as they lie in memory, and the order of dimensions that this is."""
    order = memory_order(x)
    return x.permute(order).reshape(-1), order


def _expand(packed: Any, bits: int, group_size: int) -> Tensor:
    form = Form(packed[0])
    if form is Form.RAW:
        return packed[1]
    order, shape = list(packed[3]), list(packed[4])
    numel = 1
    for size in shape:
        numel = numel * size
    if form is Form.BITS:
        flat = unpack_bits_traced(packed[1], numel)
    elif form is Form.SIGN:
        flat = unpack_bits_traced(packed[1], numel).to(FLOATS[packed[2]])
    else:
        payload, first, second = packed[1]
        flat = dequantise_traced(payload, first, second, bits, group_size, numel)
        if form is Form.RECTIFIED:
            tiny = torch.finfo(flat.dtype).tiny
            flat = torch.where(unpack_bits_traced(packed[2][0], numel), flat.clamp(min=tiny), 0.0)
    inverse = [order.index(d) for d in range(len(order))]
    return flat.reshape([shape[d] for d in order]).permute(inverse)
