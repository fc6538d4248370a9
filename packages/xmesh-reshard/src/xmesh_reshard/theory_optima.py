"""Optima of small instances: the bound by exact linear programming, all orders one by one, and the open shop."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import final


@final
@dataclass(frozen=True)
class Need:
    """Bytes that some hosts hold and others need.

    Attributes:
        holders: Hosts that hold it.
        receivers: Hosts that need it and do not hold it.
        nbytes: How much.
    """

    holders: tuple[int, ...]
    receivers: tuple[int, ...]
    nbytes: int


def least_seconds(
    needs: Sequence[Need], up: Mapping[int, int], down: Mapping[int, int], *, relay: bool = True
) -> Fraction:
    """The bound on every plan, as a fraction: what ports must carry when parts may be cut at will and nothing waits.

    With x[u, h] for how often host h sends part u, the least T of

        Σ_h x[u, h] = receivers(u),   Σ_{h holds u} x[u, h] ≥ 1,   x[u, r] ≤ receivers(u) - 1 for receivers r,
        Σ_u size(u) x[u, h] ≤ T up(h),   Σ_{u needed by h} size(u) ≤ T down(h).

    Args:
        needs: What must move.
        up: Rate out of each host, whole numbers.
        down: Rate into each host.
        relay: Whether a receiver's passing on is counted; otherwise one copy leaves the holders and the rest is free,
            as in the paper's model of a broadcast.

    Returns:
        Seconds.

    Example:
        >>> least_seconds([Need((0, 1), (2, 3, 4), 1)], dict.fromkeys(range(5), 1), dict.fromkeys(range(5), 1))
        Fraction(1, 1)
        >>> thirds = [Need((0, 1), (r,), 1) for r in (2, 3, 4)]
        >>> least_seconds(thirds, dict.fromkeys(range(5), 1), dict.fromkeys(range(5), 1))
        Fraction(3, 2)
    """
    entering: dict[int, int] = {}
    for need in needs:
        for r in need.receivers:
            entering[r] = entering.get(r, 0) + need.nbytes
    least = max((Fraction(n, down[h]) for h, n in entering.items()), default=Fraction(0))
    names = [
        (u, h)
        for u, need in enumerate(needs)
        for h in need.holders + (need.receivers if relay and len(need.receivers) > 1 else ())
    ]
    n = len(names) + 1  # and T
    rows: list[list[Fraction]] = []  # row · x ≥ right
    right: list[Fraction] = []

    def require(values: Mapping[int, int], least: int | Fraction) -> None:
        rows.append([Fraction(values.get(k, 0)) for k in range(n)])
        right.append(Fraction(least))

    for u, need in enumerate(needs):
        mine = {k: 1 for k, (v, _) in enumerate(names) if v == u}
        require(mine, len(need.receivers) if relay else 1)
        require({k: 1 for k, (v, h) in enumerate(names) if v == u and h in need.holders}, 1)
        for k, (v, h) in enumerate(names):
            if v == u and h in need.receivers:
                require({k: -1}, 1 - len(need.receivers))
    for h in sorted({h for _, h in names}):
        load = {k: -needs[u].nbytes for k, (u, g) in enumerate(names) if g == h}
        require(load | {n - 1: up[h]}, 0)
    require({n - 1: 1}, least)
    return _minimum(rows, right, [Fraction(int(k == n - 1)) for k in range(n)])


def _minimum(rows: list[list[Fraction]], right: list[Fraction], cost: list[Fraction]) -> Fraction:
    """The least cost · x with x ≥ 0, rows · x ≥ right: the simplex method on the dual max right · y, rowsᵀ y ≤ cost.

    The cost is not negative, so y = 0 is a vertex of the dual; Bland's rule keeps it from running in circles.
    """
    m, n = len(rows), len(cost)
    table = [[rows[i][k] for i in range(m)] + [Fraction(int(k == j)) for j in range(n)] + [cost[k]] for k in range(n)]
    goal = [-b for b in right] + [Fraction(0)] * (n + 1)
    basis = list(range(m, m + n))
    while (enter := next((j for j in range(m + n) if goal[j] < 0), None)) is not None:
        ratios = [(table[k][-1] / table[k][enter], basis[k], k) for k in range(n) if table[k][enter] > 0]
        if not ratios:
            raise ValueError("the needs cannot be met: a part has no holder")
        leave = min(ratios)[2]
        pivot = table[leave][enter]
        table[leave] = [value / pivot for value in table[leave]]
        for row in [*(table[k] for k in range(n) if k != leave), goal]:
            if factor := row[enter]:
                row[:] = [a - factor * b for a, b in zip(row, table[leave], strict=True)]
        basis[leave] = enter
    return goal[-1]


def best_blocking_seconds(needs: Sequence[Need], rate: int = 1) -> Fraction:
    """The least makespan of whole tasks on blocking ports, by trying all senders and all orders.

    A task occupies its sender's port and all its receivers' for nbytes / rate, and starts when all are free.

    Args:
        needs: The tasks; their number's factorial is tried, so only a few.
        rate: Rate of every port.

    Reference:
        Sec. 3.2, Eq. (1)-(3).
    """
    best: Fraction | None = None
    for order in itertools.permutations(range(len(needs))):
        for senders in itertools.product(*(needs[k].holders for k in order)):
            free: dict[tuple[str, int], Fraction] = {}
            for k, sender in zip(order, senders, strict=True):
                ports = [("out", sender), *(("in", r) for r in needs[k].receivers)]
                end = max(free.get(port, Fraction(0)) for port in ports) + Fraction(needs[k].nbytes, rate)
                free.update(dict.fromkeys(ports, end))
            makespan = max(free.values(), default=Fraction(0))
            best = makespan if best is None else min(best, makespan)
    return best or Fraction(0)


def open_shop_seconds(load: Sequence[Sequence[int]]) -> int:
    """The preemptive open shop's optimum: the largest row or column sum of seconds between each sender and receiver."""
    return max([0, *(sum(row) for row in load), *(sum(column) for column in zip(*load, strict=True))])


def open_shop_schedule(load: Sequence[Sequence[int]]) -> list[tuple[int, tuple[tuple[int, int], ...]]]:
    """A schedule as long as the optimum (Birkhoff): spans in which each sender and each receiver has one partner.

    The load is filled up to a square matrix whose rows and columns all have the optimal sum. Such a matrix has a
    permutation without zeros; it is tried for, and as much of it taken off as its least entry.

    Args:
        load: Seconds between each sender (row) and receiver (column), whole numbers, a few of each.

    Returns:
        Length of each span and the pairs (sender, receiver) at work in it.

    Example:
        >>> open_shop_schedule([[1, 1], [0, 1]])
        [(1, ((0, 0), (1, 1))), (1, ((0, 1),))]
    """
    m, n = len(load), len(load[0]) if load else 0
    total, size = open_shop_seconds(load), m + n
    # [[load, spare rows], [spare columns, transposed load]] has all sums equal to the total
    full = [[0] * size for _ in range(size)]
    for i in range(m):
        full[i][:n] = load[i]
        full[i][n + i] = total - sum(load[i])
    for j in range(n):
        column = [load[i][j] for i in range(m)]
        full[m + j][j] = total - sum(column)
        full[m + j][n:] = column
    spans = []
    while any(map(any, full)):
        match = next(p for p in itertools.permutations(range(size)) if all(full[i][j] for i, j in enumerate(p)))
        length = min(full[i][j] for i, j in enumerate(match))
        for i, j in enumerate(match):
            full[i][j] -= length
        spans.append((length, tuple((i, j) for i, j in enumerate(match[:m]) if j < n)))
    return spans
