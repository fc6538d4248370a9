"""Keeping a value compressed: a third thing to do with it, beside recomputing and paging it.

A codec is another package's: it is found by its name in the entry-point group `repertory.codecs`. What comes back
differs from what went in, so only values that the forward pass makes and the backward pass reads are offered to it:
loss and buffers stay exact, gradients become estimates. Where a gradient is linear in the value, a codec without bias
leaves it without bias.
"""

from collections.abc import Iterable
from importlib.metadata import entry_points
from statistics import median
from time import perf_counter
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from poet.device import Tier
from poet.events import Event, Kind
from poet.measure import CUDA_BLOCK
from poet.profiling import Transfer, fit_transfer
from poet.program import Program
from poet.stores import Form

GROUP = "repertory.codecs"
SMALLEST = 1 << 14
"""Bytes of the smallest value that is worth compressing: below it, codes are padded to a larger share of it."""

_TIMED = (1 << 16, 1 << 18, 1 << 20)  # elements
_MASK = (1 << 64) - 1


class CodecError(ValueError):
    """A codec that is not installed, or cannot do what is asked."""


@runtime_checkable
class Codec(Protocol):
    """Numbers at a few bits each. Stateless; the same key makes the same codes.

    Attributes:
        bits: The widths it offers.
        dtypes: The types of numbers it takes.
    """

    bits: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]

    def nbytes(self, numel: int, dtype: torch.dtype, bits: int) -> int:
        """Bytes of the codes of so many numbers."""

    def compress(self, numbers: Tensor, bits: int, key: int) -> Tensor:
        """The codes of numbers (shape [n], contiguous): bytes, shape [nbytes]; `key` is below 2⁶⁴."""

    def decompress(self, codes: Tensor, bits: int, out: Tensor) -> None:
        """Fill `out` (shape [n], contiguous, of the original's type) with the numbers that the codes stand for."""


def find_codec(name: str) -> Codec:
    """An installed codec.

    Args:
        name: Its name in the entry-point group `repertory.codecs`, "gact" for example.

    Raises:
        CodecError: If none of that name is installed, or it is not a codec.
    """
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none is installed"
        raise CodecError(f"no codec {name!r}: {known}; `pip install repertory-poet[gact]` brings 'gact'")
    codec = found[name].load()
    if not isinstance(codec, Codec):
        raise CodecError(f"{name!r} ({found[name].value}) is not a poet.codecs.Codec: it lacks some of its attributes")
    return codec


def compressible(program: Program, codec: Codec, smallest: int = SMALLEST) -> frozenset[int]:
    """The values that may be kept compressed.

    Those of a type that the codec takes and not too small, which the forward pass makes, the backward pass reads, and
    nobody needs at the end.

    Args:
        program: The traced step.
        codec: The codec.
        smallest: Bytes of the smallest one.
    """
    graph = program.graph
    chosen = set()
    for v, value in enumerate(graph.values):
        base = program.bases[v]
        made = graph.ops[graph.producer[v]].phase
        read = any(graph.ops[i].phase == "backward" for i in graph.users[v])
        takes = base.dtype in codec.dtypes and base.dense and value.size - base.nbytes < CUDA_BLOCK
        if takes and value.size >= smallest and not value.keep and made != "backward" and read:
            chosen.add(v)
    return frozenset(chosen)


def approximated(program: Program, events: Iterable[Event], inexact: frozenset[int]) -> frozenset[int]:
    """Values whose compressed copies reach the forward pass or what is kept of it.

    Args:
        program: The traced step.
        events: A schedule.
        inexact: Indices of the tiers whose copies do not come back to the bit.

    Returns:
        Values that must not be kept compressed if loss and buffers are to be exact.
    """
    graph = program.graph
    origin: dict[int, frozenset[int]] = {}  # value in RAM -> compressed values that it depends on
    copies: dict[tuple[int, int], frozenset[int]] = {}
    done: set[int] = set()
    bad: set[int] = set()
    exact_ends = {m.output.value for m in program.mutations} | {program.loss.value}
    for event in events:
        v, tier = event.target, event.tier
        if event.kind is Kind.COMPUTE:
            op = graph.ops[v]
            depends = frozenset().union(*(origin.get(u, frozenset()) for u in op.inputs))
            if v not in done and op.phase != "backward":
                bad |= depends
            done.add(v)
            origin.update(dict.fromkeys(op.outputs, depends))
        elif event.kind is Kind.PAGE_OUT:
            copies[v, tier] = origin.get(v, frozenset()) | ({v} if tier in inexact else frozenset())
        elif event.kind is Kind.PAGE_IN:
            origin[v] = copies[v, tier]
    for end in exact_ends:
        bad |= origin.get(end, frozenset()) if end is not None else frozenset()
    return frozenset(bad)


def codec_tier(
    codec: Codec,
    bits: int,
    forms: Iterable[tuple[int, torch.dtype]],
    *,
    device: torch.device | str = "cpu",
    name: str | None = None,
    speed: tuple[Transfer, Transfer] | None = None,
) -> Tier:
    """The tier of values kept compressed.

    Args:
        codec: The codec.
        bits: Bits a number.
        forms: Number of elements and type of each value that may be offered to it: its ratio is that of the value that
            compresses least.
        device: Where the values are.
        name: Name of the tier; "4-bit" for 4 bits.
        speed: Time to decompress and to compress a value of b bytes; measured here unless given.

    Raises:
        CodecError: If the codec does not offer so many bits.
    """
    if bits not in codec.bits:
        raise CodecError(f"bits={bits}: the codec offers {', '.join(map(str, codec.bits))}")
    sizes = [(numel * dtype.itemsize, codec.nbytes(numel, dtype, bits)) for numel, dtype in forms if numel]
    ratio = max((stored / size for size, stored in sizes), default=1.0)
    ratio *= 1 + 1e-12  # a hair more keeps ⌈size · ratio⌉ at least the bytes of the codes
    read, write = speed or time_codec(codec, bits, device)
    return Tier(
        name or f"{bits}-bit",
        read.latency,
        read.throughput * ratio,  # a tier counts the bytes that it stores
        write.latency,
        write.throughput * ratio,
        block=CUDA_BLOCK if torch.device(device).type == "cuda" else 1,
        ratio=ratio,
        in_ram=True,
        exact=False,
    )


def time_codec(codec: Codec, bits: int, device: torch.device | str = "cpu") -> tuple[Transfer, Transfer]:
    """Time to decompress and to compress single-precision numbers, as straight lines in their bytes."""
    device = torch.device(device)
    dtype = torch.float32 if torch.float32 in codec.dtypes else codec.dtypes[0]
    sizes, reads, writes = [], [], []
    for numel in _TIMED:
        numbers = torch.linspace(-1, 1, numel, device=device).to(dtype)
        codes = codec.compress(numbers, bits, 1)
        writes.append(_seconds(lambda n=numbers: codec.compress(n, bits, 1), device))
        reads.append(_seconds(lambda c=codes, n=numbers: codec.decompress(c, bits, n), device))
        sizes.append(numel * dtype.itemsize)
    return fit_transfer(sizes, reads), fit_transfer(sizes, writes)


def _seconds(run: Any, device: torch.device) -> float:
    durations = []
    for _ in range(4):
        start = perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(perf_counter() - start)
    return median(durations[1:])


@final
class CodecStore:
    """Compressed copies in RAM: made and read at once, by whoever computes.

    Attributes:
        held: Bytes of the codes.

    Args:
        codec: The codec.
        bits: Bits a number.
        seed: Of the rounding; every copy is rounded by random numbers of its own.
    """

    def __init__(self, codec: Codec, bits: int, seed: int = 0) -> None:
        if bits not in codec.bits:
            raise CodecError(f"bits={bits}: the codec offers {', '.join(map(str, codec.bits))}")
        self.held = 0
        self._codec, self._bits, self._seed = codec, bits, seed
        self._count = 0

    def write(self, value: int, tensor: Tensor) -> tuple[Form, Tensor]:
        """Compress the storage of a tensor.

        Raises:
            CodecError: If the codec does not take its type, or it does not fill its storage.
        """
        form = Form.of(tensor)
        layout = form.layout
        if tensor.dtype not in self._codec.dtypes or not layout.whole(form.nbytes):
            raise CodecError(f"value {value} is a {layout}: it cannot be compressed")
        self._count += 1
        codes = self._codec.compress(_line(tensor), self._bits, key_of(self._seed, self._count))
        self.held += codes.numel()
        return form, codes

    def read(self, handle: tuple[Form, Tensor]) -> Tensor:
        """The value again, nearly."""
        form, codes = handle
        tensor = form.tensor(form.empty())
        self._codec.decompress(codes, self._bits, _line(tensor))
        return tensor

    def wait(self, handle: tuple[Form, Tensor]) -> None:
        """Nothing to wait for."""

    def drop(self, handle: tuple[Form, Tensor]) -> None:
        """Forget a copy."""
        self.held -= handle[1].numel()

    def close(self) -> None:
        """Nothing to give back."""


def key_of(seed: int, count: int) -> int:
    """64 well mixed bits for one copy of one run.

    Reference:
        Steele, Lea, Flood (2014). Fast splittable pseudorandom number generators. OOPSLA. (SplitMix64.)
    """
    return _mixed((_mixed(seed & _MASK) + count * 0x9E3779B97F4A7C15) & _MASK)


def _mixed(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _line(tensor: Tensor) -> Tensor:
    """The numbers of a tensor that fills its storage, in one dimension, in the order of the memory."""
    return tensor.as_strided((tensor.numel(),), (1,), 0)
