"""How many bits each tensor gets: a multiple-choice knapsack in bytes, with a lower bound.

Minimise Σ_l cost_l(j_l) subject to Σ_l bytes_l(j_l) ≤ budget, one choice j_l for each item l. The linear relaxation is
solved exactly by a greedy over the lower convex hulls of the items: its value bounds the optimum from below, and its
price λ of a byte rules out most choices; HiGHS decides the few that remain.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, SupportsFloat

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from gact.variance import law

__all__ = ["RAW", "Allocation", "AllocationError", "Item", "allocate"]

RAW = 32  # the label of the choice that keeps a tensor as it is
_TIGHT = 1e-6  # relative distance to the bound that counts as none: what the solver's tolerances leave
_ROUNDS = 4  # each works on the scale of the gap that the one before has left
_SCALE = 1e-4  # the gap as HiGHS sees it is 1 / this, since it stops at an absolute gap of 1e-6


class AllocationError(ValueError):
    """No choice of bits fits the budget."""


@dataclass(frozen=True)
class Item:
    """One tensor, or several that share their bits, with what each choice takes and costs.

    Args:
        key: Its name.
        bits: Label of each choice: bits of a code, or `RAW`.
        nbytes: Bytes of each choice.
        costs: Variance that each choice puts into the gradient. A choice whose cost is not finite is not taken; where
            no cost is finite, the item gets the choice of most bits and is named in `Allocation.unknown`.

    Raises:
        ValueError: If the lengths differ, there is no choice, a label comes twice, bytes are negative or not whole, or
            a cost is negative.

    Example:
        >>> Item.from_law("fc1", 2.0, {2: 100, 4: 180, RAW: 1024}).costs
        (0.2222222222222222, 0.008888888888888889, 0.0)
    """

    key: str
    bits: tuple[int, ...]
    nbytes: tuple[int, ...]
    costs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.bits) == len(self.nbytes) == len(self.costs) > 0:
            raise ValueError(
                f"item {self.key!r} has {len(self.bits)} labels, {len(self.nbytes)} sizes and {len(self.costs)} costs; "
                "give one of each for every choice, and at least one choice"
            )
        if len(set(self.bits)) != len(self.bits):
            raise ValueError(f"item {self.key!r} offers {self.bits}; give each number of bits once")
        if any(int(n) != n or n < 0 for n in self.nbytes):
            raise ValueError(f"item {self.key!r} has sizes {self.nbytes}; give whole numbers of bytes, none negative")
        if any(c < 0 for c in self.costs):
            raise ValueError(f"item {self.key!r} has costs {self.costs}; a variance is not negative")

    @classmethod
    def from_law(cls, key: str, sensitivity: float, nbytes: Mapping[int, int]) -> "Item":
        """An item whose costs follow the law, cost(b) = c · S(b), and nothing where it is kept as it is.

        Args:
            key: Its name.
            sensitivity: c, as the functions of `gact.sensitivity` return it.
            nbytes: Bytes of each number of bits it may have; `RAW` among them if it may stay as it is.

        Returns:
            The item.
        """
        costs = tuple(0.0 if bits == RAW else sensitivity * law(bits) for bits in nbytes)
        return cls(key, tuple(nbytes), tuple(nbytes.values()), costs)


@dataclass(frozen=True)
class Allocation:
    """The bits of every item.

    Args:
        bits: Bits of each item by its key, in the order given.
        nbytes: Bytes of all together.
        cost: Variance of all together, where it is known.
        bound: No allocation within the budget costs less.
        status: "optimal"; "within gap" where the solver stopped before it closed the gap between `cost` and `bound`; or
            "infeasible", and then the bits are those of the smallest allocation there is.
        message: A sentence for the user; empty if there is nothing to say.
        unknown: Keys of the items without any finite cost.
    """

    bits: dict[str, int]
    nbytes: int
    cost: float
    bound: float
    status: Literal["optimal", "within gap", "infeasible"]
    message: str = ""
    unknown: tuple[str, ...] = ()

    @property
    def gap(self) -> float:
        """Largest relative excess of the cost over the optimum, cost / bound − 1; 0 where both are 0."""
        if self.cost <= self.bound:
            return 0.0
        return self.cost / self.bound - 1.0 if self.bound > 0 else math.inf

    def unwrap(self) -> "Allocation":
        """Itself, where it fits the budget.

        Returns:
            The allocation.

        Raises:
            AllocationError: If nothing fits; the message names the smallest budget that would do.
        """
        if self.status == "infeasible":
            raise AllocationError(self.message)
        return self


@dataclass(frozen=True)
class _Class:
    """Items with the same choices, of which only those that are worth a byte are kept: bytes up, cost down."""

    members: tuple[int, ...]
    labels: tuple[int, ...]
    nbytes: tuple[int, ...]
    costs: tuple[float, ...]
    hull: tuple[int, ...]
    known: bool


@dataclass(frozen=True)
class _Relaxation:
    """A start within the budget, and what is known about the optimum."""

    counts: list[list[int]]  # how many members of each class have each choice
    cost: float
    bound: float
    relaxed: float  # L(λ), the value of the linear relaxation
    price: float  # λ


def allocate(
    items: Sequence[Item], budget: SupportsFloat, *, time_limit: float = 1.0, exact: bool = True
) -> Allocation:
    """The cheapest choice for every item within a budget of bytes.

    Args:
        items: What is to be stored, with its choices; keys must differ.
        budget: Bytes that all may take together; infinite for no limit.
        time_limit: Seconds that the exact solver may take.
        exact: Whether to close the gap that the greedy leaves.

    Returns:
        The allocation with its bound and status. It never exceeds the budget unless it is "infeasible".

    Raises:
        ValueError: If two items share a key, or the budget is NaN or negative.

    Reference:
        Sinha and Zoltners (1979), "The multiple-choice knapsack problem", Operations Research 27, for the relaxation.

    Example:
        >>> sizes = {2: 25, 4: 50, 8: 100}
        >>> items = [Item.from_law("sensitive", 90.0, sizes), Item.from_law("robust", 9.0, sizes)]
        >>> allocate(items, 80).bits
        {'sensitive': 4, 'robust': 2}
        >>> allocate(items, 10).message
        'the budget of 10 bytes is too small: the smallest possible is 50 bytes; raise it or allow fewer bits'
    """
    if len({item.key for item in items}) != len(items):
        raise ValueError("two items have the same key; give each tensor, or group of tensors, its own")
    budget = float(budget)
    if math.isnan(budget) or budget < 0:
        raise ValueError(f"budget is {budget}; give a number of bytes >= 0")
    classes = _classes(items)
    unknown = tuple(items[m].key for c in classes if not c.known for m in c.members)
    smallest = sum(len(c.members) * c.nbytes[0] for c in classes)
    if smallest > budget:
        counts = [[len(c.members), *[0] * (len(c.nbytes) - 1)] for c in classes]
        message = (
            f"the budget of {budget:.0f} bytes is too small: the smallest possible is {smallest} bytes; raise it or "
        )
        message += "allow fewer bits"
        nbytes, cost = _totals(classes, counts)
        return Allocation(_spread(items, classes, counts), nbytes, cost, math.inf, "infeasible", message, unknown)
    start = _relax(classes, min(budget, float(sum(len(c.members) * c.nbytes[-1] for c in classes))))
    for _ in range(_ROUNDS if exact else 0):
        before = start.cost
        if before > start.bound * (1 + _TIGHT):
            start = _close(classes, start, budget, time_limit / _ROUNDS)
        if start.cost >= before:
            break
    nbytes, cost = _totals(classes, start.counts)
    bits = _spread(items, classes, start.counts)
    bound = min(start.bound, cost)
    optimal = cost <= bound * (1 + _TIGHT)
    message = (
        "" if optimal else f"the cost may exceed the optimum by up to {cost / bound - 1 if bound else math.inf:.2%}"
    )
    if unknown:
        message = "; ".join(filter(None, [message, f"no finite sensitivity for {', '.join(unknown)}: most bits"]))
    return Allocation(bits, nbytes, cost, bound, "optimal" if optimal else "within gap", message, unknown)


def _classes(items: Sequence[Item]) -> list[_Class]:
    """Items merged where their choices are the same, dominated choices dropped."""
    merged: dict[tuple, list[int]] = {}
    for index, item in enumerate(items):
        merged.setdefault((item.bits, item.nbytes, item.costs), []).append(index)
    classes = []
    for (bits, nbytes, costs), members in merged.items():
        known = any(math.isfinite(c) for c in costs)
        options = [(n, c, b) for b, n, c in zip(bits, nbytes, costs, strict=True) if math.isfinite(c)]
        if not known:
            most = max(range(len(bits)), key=lambda j: (bits[j], nbytes[j]))
            options = [(nbytes[most], 0.0, bits[most])]
        kept: list[tuple[int, float, int]] = []
        for option in sorted(options, key=lambda o: (o[0], o[1], -o[2])):
            if not kept or option[1] < kept[-1][1]:
                kept.append(option)
        sizes, values, labels = zip(*kept, strict=True)
        classes.append(_Class(tuple(members), labels, sizes, values, _hull(sizes, values), known))
    return classes


def _hull(nbytes: Sequence[int], costs: Sequence[float]) -> tuple[int, ...]:
    """Indices on the lower convex hull of (bytes, cost), both strictly monotone."""
    hull: list[int] = []
    for j in range(len(nbytes)):
        while len(hull) > 1:
            a, b = hull[-2:]
            before = (costs[a] - costs[b]) * (nbytes[j] - nbytes[b])
            if before > (costs[b] - costs[j]) * (nbytes[b] - nbytes[a]):
                break
            hull.pop()
        hull.append(j)
    return tuple(hull)


def _relax(classes: Sequence[_Class], budget: float) -> _Relaxation:
    """The linear relaxation: from the smallest sizes up, always the step that saves most cost for a byte."""
    counts = [[len(c.members), *[0] * (len(c.nbytes) - 1)] for c in classes]
    left = budget - sum(len(c.members) * c.nbytes[0] for c in classes)
    cost = math.fsum(len(c.members) * c.costs[0] for c in classes)
    steps = [
        ((c.costs[a] - c.costs[b]) / (c.nbytes[b] - c.nbytes[a]), k, a, b)
        for k, c in enumerate(classes)
        for a, b in zip(c.hull, c.hull[1:], strict=False)
    ]
    steps.sort(key=lambda step: -step[0])
    bound, price = -1.0, 0.0
    for worth, k, a, b in steps:
        item = classes[k]
        size, gain = item.nbytes[b] - item.nbytes[a], item.costs[a] - item.costs[b]
        fits = min(counts[k][a], int(min(left // size, len(item.members))))
        if bound < 0 and fits < len(item.members):  # the relaxation takes a fraction of this step and stops
            bound, price = max(0.0, cost - gain * left / size), worth
        counts[k][a] -= fits
        counts[k][b] += fits
        left -= fits * size
        cost -= fits * gain
    _, total = _totals(classes, counts)
    relaxed = min(total, bound) if bound >= 0 else total
    return _Relaxation(counts, total, relaxed, relaxed, price)


def _close(classes: Sequence[_Class], start: _Relaxation, budget: float, time_limit: float) -> _Relaxation:
    """A better start and bound, from the exact solution of what the price of a byte leaves open.

    With penalty p_lj = cost_lj + λ bytes_lj − min_j(...), the cost is L(λ) + Σ p + λ (budget − Σ bytes), L(λ) the bound
    of the relaxation: only choices whose penalty is below the gap can improve on the start, and this sum has the scale
    of the gap whatever the costs'.
    """
    gap = start.cost - start.relaxed
    columns: list[tuple[int, int, float, int]] = []  # class, choice, penalty, bytes above the smallest that is open
    smallest = 0
    for k, c in enumerate(classes):
        priced = [v + start.price * n for v, n in zip(c.costs, c.nbytes, strict=True)]
        cheapest = min(priced)
        open_ = [j for j, value in enumerate(priced) if value - cheapest <= gap * (1 + 1e-6)]
        smallest += len(c.members) * c.nbytes[open_[0]]
        columns += [(k, j, priced[j] - cheapest, c.nbytes[j] - c.nbytes[open_[0]]) for j in open_]
    room, unit = budget - smallest, gap * _SCALE
    sizes = np.array([extra for *_, extra in columns], dtype=float)
    owner = np.array([k for k, *_ in columns])
    members = np.array([len(c.members) for c in classes], dtype=float)
    one_each = csr_array((np.ones(owner.size), (owner, np.arange(owner.size))), shape=(members.size, owner.size))
    least = room - 1 - 1.001 * gap / start.price if start.price > 0 else -np.inf  # fewer would waste more than the gap
    result = milp(
        (np.array([penalty for _, _, penalty, _ in columns]) - start.price * sizes) / unit,
        integrality=np.ones(owner.size),
        bounds=Bounds(0.0, members[owner]),
        constraints=[
            LinearConstraint(one_each, members, members),
            LinearConstraint(sizes[None, :], least, room),
        ],
        options={"time_limit": time_limit, "mip_rel_gap": 0.0},
    )
    bound = start.bound
    if result.mip_dual_bound is not None and math.isfinite(result.mip_dual_bound):
        bound = max(bound, start.relaxed + unit * result.mip_dual_bound + start.price * room)
    counts, cost = start.counts, start.cost
    if result.x is not None:
        found = [[0] * len(c.nbytes) for c in classes]
        for (k, j, *_), amount in zip(columns, np.rint(result.x), strict=True):
            found[k][j] = int(amount)
        nbytes, value = _totals(classes, found)
        whole = all(sum(row) == len(c.members) for c, row in zip(classes, found, strict=True))
        if whole and nbytes <= budget and value < cost:
            counts, cost = found, value
    return replace(start, counts=counts, cost=cost, bound=min(bound, cost))


def _totals(classes: Sequence[_Class], counts: list[list[int]]) -> tuple[int, float]:
    """Bytes and cost of all items."""
    pairs = [(n, size, value) for c, row in zip(classes, counts, strict=True)
             for n, size, value in zip(row, c.nbytes, c.costs, strict=True)]  # fmt: skip
    return sum(n * size for n, size, _ in pairs), math.fsum(n * value for n, _, value in pairs)


def _spread(items: Sequence[Item], classes: Sequence[_Class], counts: list[list[int]]) -> dict[str, int]:
    """Bits of each item; within a class the first members get the fewest."""
    bits = {item.key: 0 for item in items}
    for c, row in zip(classes, counts, strict=True):
        members = iter(c.members)
        for label, amount in zip(c.labels, row, strict=True):
            for _ in range(amount):
                bits[items[next(members)].key] = label
    return bits
