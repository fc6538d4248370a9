"""Sensitivity and allocation once more, slow and obvious, in plain NumPy: for tests and claims, not the numerics."""

import heapq
import itertools
import math
from collections.abc import Sequence
from typing import SupportsFloat

import numpy as np
from jaxtyping import Float

Array = np.ndarray
_ENUMERATED = 1_000_000  # combinations that `exhaustive` tries at most


def element_variance(x: Float[Array, "numel"], group_size: int, bits: int) -> Float[Array, "numel"]:
    """Exact variance of each stored element, (upper − x)(x − lower) with the two levels around it.

    Args:
        x: The tensor in the order of its memory.
        group_size: Elements of a group.
        bits: Bits of a code.

    Returns:
        The variances, in double precision.
    """
    out = np.zeros(x.size)
    for start in range(0, x.size, group_size):
        group = np.asarray(x[start : start + group_size], dtype=np.float64)
        step = (group.max() - group.min()) / (2**bits - 1)
        if step > 0:
            lower = group.min() + step * np.floor((group - group.min()) / step)
            out[start : start + group_size] = (group - lower) * (lower + step - group)
    return np.maximum(out, 0.0)  # rounding at the levels themselves


def law_element_variance(x: Float[Array, "numel"], group_size: int, bits: int) -> Float[Array, "numel"]:
    """Variance of each stored element by the law, R² / (6 B²).

    Args:
        x: The tensor in the order of its memory.
        group_size: Elements of a group.
        bits: Bits of a code.

    Returns:
        The variances, constant within a group.
    """
    starts = range(0, x.size, group_size)
    spreads = [np.ptp(np.asarray(x[s : s + group_size], dtype=np.float64)) for s in starts]
    return np.repeat(spreads, group_size)[: x.size] ** 2 / (6 * (2**bits - 1) ** 2)


def linear_variance(grad: Float[Array, "n m"], v: Float[Array, "n d"]) -> float:
    """Total variance of ∇W = ∇yᵀ x, summed entry by entry: Σ_o Σ_d Σ_n ∇y_no² v_nd.

    Args:
        grad: ∇y.
        v: Variance of each entry of x.

    Returns:
        The variance.
    """
    return sum(
        float(grad[n, o] ** 2 * v[n, d])
        for o in range(grad.shape[1])
        for d in range(v.shape[1])
        for n in range(len(grad))
    )


def matmul_variance(grad: Float[Array, "b n m"], v: Float[Array, "b p q"], operand: str) -> float:
    """Total variance of the other operand's gradient of Y = A B, entry by entry.

    Args:
        grad: ∇Y.
        v: Variance of each entry of the saved operand.
        operand: "left" (A is saved, ∇B = Aᵀ ∇Y) or "right" (B is saved, ∇A = ∇Y Bᵀ).

    Returns:
        The variance.
    """
    formula = "bnk,bnm->bkm" if operand == "left" else "bkm,bnm->bnk"
    return float(np.einsum(formula, v, grad**2).sum())


def convolution_weights(
    grad: Float[Array, "n o *out"],
    input_size: Sequence[int],
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool,
) -> Float[Array, "n c *space"]:
    """a_q = Σ over all kernel entries of the squared gradients that the input element q meets, by loops.

    Args:
        grad: ∇y.
        input_size: Shape of the input, [batch, channels, *space].
        weight_size: Shape of the kernel.
        stride: Stride of each spatial dimension.
        padding: Padding of each spatial dimension.
        dilation: Dilation of each spatial dimension.
        groups: Groups of channels.
        transposed: Whether the layer is a transposed convolution.

    Returns:
        a, in the shape of the input.
    """
    batch, channels = input_size[:2]
    ins, outs = channels // groups, grad.shape[1] // groups
    weights = np.zeros(tuple(input_size))
    space, out_space = tuple(input_size[2:]), grad.shape[2:]
    fine, coarse = (out_space, space) if transposed else (space, out_space)
    places = itertools.product(*map(range, coarse))
    for place, taps in itertools.product(list(places), list(itertools.product(*map(range, weight_size[2:])))):
        target = tuple(p * s - q + d * k for p, s, q, d, k in zip(place, stride, padding, dilation, taps, strict=True))
        if not all(0 <= t < size for t, size in zip(target, fine, strict=True)):
            continue
        here, there = (place, target) if transposed else (target, place)  # of the input, of the output
        for n, g in itertools.product(range(batch), range(groups)):
            energy = (grad[(n, slice(g * outs, (g + 1) * outs), *there)] ** 2).sum()
            weights[(n, slice(g * ins, (g + 1) * ins), *here)] += energy
    return weights


def exhaustive(
    nbytes: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], budget: SupportsFloat
) -> tuple[tuple[int, ...], float] | None:
    """The cheapest choice within a budget, by trying all of them.

    Args:
        nbytes: Bytes of each choice of each item.
        costs: Cost of each choice of each item.
        budget: Largest sum of bytes.

    Returns:
        The choices and their cost; None if nothing fits.

    Raises:
        ValueError: If there are too many combinations to try.
    """
    if math.prod(len(row) for row in nbytes) > _ENUMERATED:
        raise ValueError(f"more than {_ENUMERATED} combinations; give fewer items")
    best = None
    for choice in itertools.product(*(range(len(row)) for row in nbytes)):
        size = sum(row[j] for row, j in zip(nbytes, choice, strict=True))
        cost = math.fsum(row[j] for row, j in zip(costs, choice, strict=True))
        if size <= float(budget) and (best is None or cost < best[1]):
            best = choice, cost
    return best


def greedy_from_top(
    nbytes: Sequence[Sequence[int]], costs: Sequence[Sequence[float]], budget: SupportsFloat
) -> tuple[tuple[int, ...], float] | None:
    """The paper's solver: everything at most bits, then lower what costs least for a byte saved until it fits.

    Args:
        nbytes: Bytes of each choice of each item, in ascending order.
        costs: Cost of each choice of each item, in the same order.
        budget: Largest sum of bytes.

    Returns:
        The choices and their cost; None if nothing fits.

    Reference:
        Liu et al. (2022), Section 4.3.
    """
    choice = [len(row) - 1 for row in nbytes]
    total = sum(row[-1] for row in nbytes)

    def step(item: int) -> tuple[float, int]:
        j = choice[item]
        saved = nbytes[item][j] - nbytes[item][j - 1]
        rise = costs[item][j - 1] - costs[item][j]
        return (rise / saved if saved > 0 else math.inf), item

    heap = [step(item) for item, j in enumerate(choice) if j > 0]
    heapq.heapify(heap)
    while total > float(budget) and heap:
        _, item = heapq.heappop(heap)
        total -= nbytes[item][choice[item]] - nbytes[item][choice[item] - 1]
        choice[item] -= 1
        if choice[item] > 0:
            heapq.heappush(heap, step(item))
    if total > float(budget):
        return None
    return tuple(choice), math.fsum(row[j] for row, j in zip(costs, choice, strict=True))
