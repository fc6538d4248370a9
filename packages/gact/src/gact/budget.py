"""From a target and sensitivities to the bits of every stored tensor, in bytes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch

from gact.affine import BITS
from gact.allocation import RAW, Allocation, AllocationError, Item, allocate
from gact.capture import Settled
from gact.collector import Sensitivity
from gact.ledger import affine_bytes
from gact.target import Target


@dataclass(frozen=True, slots=True)
class Size:
    """Numbers of one stored tensor.

    Args:
        numel: Distinct numbers.
        dtype: Their type in plain training.
        least_bits: Fewest bits that the operations which read it allow.
        extra: Bytes beside the codes at any width: classes of numbers on both sides of a jump.
        storage: Bytes that stay if the plain numbers are kept: all of a storage of which they may be a slice.
    """

    numel: int
    dtype: torch.dtype
    least_bits: int = 1
    extra: int = 0
    storage: int = 0

    def nbytes(self, bits: int, group_size: int) -> int:
        """Bytes at a width, or of the plain numbers for `RAW`."""
        if bits == RAW:
            return max(self.numel * self.dtype.itemsize, self.storage)
        return affine_bytes(self.numel, bits, group_size, self.dtype) + self.extra


def average_bytes(sizes: Iterable[Size], average: float, group_size: int) -> int:
    """Bytes of an average number of bits, metadata included: what a fixed width of it would take.

    Args:
        sizes: Of the stored tensors.
        average: Bits, not necessarily whole.
        group_size: Numbers a group.
    """
    total = 0.0
    for size in sizes:
        groups = -(-size.numel // group_size)
        total += groups * (group_size * average / 8 + 2 * size.dtype.itemsize) + size.extra
    return int(total)


def other_bytes(settled: Sequence[Settled]) -> int:
    """Bytes of all that is kept in other forms and would not live without the graph, each storage once."""
    storages = {
        s.storage: s.storage_bytes for s in settled if s.form == "exact" and not s.outside and s.reason != "bits"
    }
    small = {(s.item, s.form): s.nbytes for s in settled if s.form not in ("exact", "affine")}
    return sum(storages.values()) + sum(small.values())


def choose_bits(
    target: Target,
    sizes: Mapping[str, Size],
    sensitivities: Mapping[str, Sensitivity],
    *,
    others: int,
    overhead: int | None,
    group_size: int,
    average: float | None = None,
) -> Allocation:
    """Return the widths that the target allows and under which the gradient varies least.

    Args:
        target: What is asked for.
        sizes: Of the stored tensors, by item.
        sensitivities: Of those that are known; the others keep the bits that they started with.
        others: Bytes of saved tensors in other forms.
        overhead: Bytes at the peak that are no saved activations; for ``"fit"``.
        group_size: Numbers a group.
        average: In place of the target's average, where a guard has raised it.

    Raises:
        AllocationError: If the budget is smaller than the smallest allocation; says the smallest possible.
        ValueError: If a peak is asked for and the overhead is not known.
    """
    if target.kind == "average":
        budget = average_bytes(sizes.values(), average or target.value, group_size)
    elif target.kind == "bytes":
        budget = int(target.value) - others
    else:
        if overhead is None:
            raise ValueError(
                "a peak to fit in needs to know what else is in memory: call calibrate(closure) once before training"
            )
        budget = int(target.value) - others - overhead
    items = [_item(key, s, sensitivities.get(key), group_size, target.first_bits) for key, s in sizes.items()]
    found = allocate(items, max(budget, 0))
    if found.status == "infeasible":
        smallest = found.nbytes + others + (overhead or 0 if target.kind == "fit" else 0)
        if target.kind == "average":
            raise AllocationError(f"an average of {target.value} bits is below 1 bit a number and its ranges")
        parts = f"{found.nbytes:,} bytes at 1 bit a number and {others:,} bytes that stay exact"
        if target.kind == "fit":
            parts += f", beside {overhead or 0:,} bytes of parameters, gradients and temporaries"
        raise AllocationError(
            f"{int(target.value):,} bytes are less than what is needed: {parts}; the smallest possible is {smallest:,}"
        )
    return found


def _item(key: str, size: Size, sensitivity: Sensitivity | None, group_size: int, first_bits: int) -> Item:
    if sensitivity is None or not isfinite(sensitivity.c):
        bits = max(first_bits, size.least_bits)
        return Item(key, (bits,), (size.nbytes(bits, group_size),), (0.0,))
    widths = (*(b for b in BITS if b >= size.least_bits), RAW)
    costs = tuple(sensitivity.variance(b) for b in widths)
    return Item(key, widths, tuple(size.nbytes(b, group_size) for b in widths), costs)
