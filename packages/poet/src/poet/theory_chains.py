r"""Chains in closed form: how often the steps of a chain are executed to reverse it with few places to store states.

A chain of n steps is reversed from the last step to the first; reversing step i needs the state before it. Two models:

- the *adjoint* model of Griewank and Walther: executing a step replaces the state in hand by the next one; c snapshots
  can be stored, the initial state among them. Optimal over all schedules of that model.
- the *graph* model of this package: executing a step needs its input and its output in memory at once, p values fit.

Reference:
    Griewank and Walther (2000). Algorithm 799: Revolve. ACM TOMS 26(1), 19-45.
    Aupy, Herrmann, Hovland, Robert (2016). Optimal multistage algorithm for adjoint computation. SIAM J. Sci. Comput.
"""

from functools import cache
from math import ceil, comb, inf, isqrt

from poet.graph import Graph, Op, Value


def revolve_steps(steps: int, snapshots: int) -> int:
    r"""Forward steps beyond the n that reversing itself takes, adjoint model (Griewank and Walther, proposition 1).

    $$t(n, c) = r\,n - \binom{c + r}{r - 1}, \qquad \binom{c + r - 1}{c} < n \le \binom{c + r}{c}$$

    Args:
        steps: n, at least 1.
        snapshots: c, at least 1, the initial state among them.

    Returns:
        t(n, c): n − 1 where every state can be stored.

    Raises:
        ValueError: If an argument is less than 1.

    Example:
        >>> [revolve_steps(20, c) + 20 for c in (2, 3, 5)]
        [85, 65, 53]
    """
    if steps < 1 or snapshots < 1:
        raise ValueError(f"steps and snapshots must be at least 1, got {steps} and {snapshots}")
    r = 0
    while comb(snapshots + r, snapshots) < steps:
        r += 1
    return r * steps - comb(snapshots + r, r - 1) if r else 0


def two_level_cost(steps: int, snapshots: int, forward: float = 1.0, write: float = 2.0, read: float = 2.0) -> float:
    r"""Cost of all executions and transfers, adjoint model with a disk of unlimited size beside c snapshots in RAM.

    Two tables: $R(n, c)$ where the first state of the n steps is in RAM with c free snapshots beside it, $Q(n, c)$
    where it is on disk and in hand. The next state stored is the m-th, in RAM or on disk, or none is:

    $$R(n, c) = \min_m \{ m u + R(n-m, c-1) + R(m, c),\; m u + w + Q(n-m, c) + R(m, c),\; (n-1) u + R(n-1, c) \}$$

    $$Q(n, c) = \min_m \{ R(n, c-1),\; m u + R(n-m, c-1) + d + Q(m, c),\; m u + w + Q(n-m, c) + d + Q(m, c),\;
    (n-1) u + d + Q(n-1, c) \}$$

    Optimal among schedules in which a stored state stays until all later ones are reversed.

    Args:
        steps: n, at least 1.
        snapshots: c, at least 1; the initial state starts in one of them.
        forward: u, cost of a step.
        write: w, cost of writing a state to disk.
        read: d, cost of reading one.

    Returns:
        The cost, the n steps that reversing itself takes left out.
    """

    @cache
    def in_ram(n: int, c: int) -> float:
        if n == 1:
            return 0.0
        best = (n - 1) * forward + in_ram(n - 1, c)
        for m in range(1, n):
            if c:
                best = min(best, m * forward + in_ram(n - m, c - 1) + in_ram(m, c))
            best = min(best, m * forward + write + on_disk(n - m, c) + in_ram(m, c))
        return best

    @cache
    def on_disk(n: int, c: int) -> float:
        if n == 1:
            return 0.0
        best = (n - 1) * forward + read + on_disk(n - 1, c)
        if c:
            best = min(best, in_ram(n, c - 1))
        for m in range(1, n):
            back = read + on_disk(m, c)
            if c:
                best = min(best, m * forward + in_ram(n - m, c - 1) + back)
            best = min(best, m * forward + write + on_disk(n - m, c) + back)
        return best

    if steps < 1 or snapshots < 1:
        raise ValueError(f"steps and snapshots must be at least 1, got {steps} and {snapshots}")
    start = write + on_disk(steps, snapshots)  # the initial state may go to disk at once
    return min(in_ram(steps, snapshots - 1), start)


def periodic(steps: int, period: int) -> tuple[int, int]:
    """Chen's scheme: every `period`-th state is stored, each segment is recomputed once, whole, when it is reversed.

    Args:
        steps: n.
        period: Steps of a segment.

    Returns:
        Steps executed again, and the most states stored at once (all but the last segment keep their first state; the
        segment being reversed has the rest of its states).

    Example:
        >>> periodic(16, 4)
        (9, 7)
    """
    if steps < 1 or not 1 <= period <= steps:
        raise ValueError(f"need 1 <= period <= steps, got {period} and {steps}")
    segments = ceil(steps / period)
    rest = steps - (segments - 1) * period
    again = (segments - 1) * (period - 1)
    # While segment s is reversed, the first states of 0..s are there, and the other states of s.
    whole = max((s + period for s in range(segments - 1)), default=0)
    return again, max(whole, segments - 1 + rest)


def square_root(steps: int) -> int:
    """Fewest states that any period stores: about 2 sqrt(n).

    Example:
        >>> square_root(16), square_root(100)
        (7, 19)
    """
    near = range(1, min(steps, 2 * isqrt(steps) + 2) + 1)
    return min(periodic(steps, period)[1] for period in near)


def chain_executions(steps: int, places: int) -> float:
    r"""Executions of the forward operations of `joint_chain(steps)`, graph model, when p forward values fit.

    With l values to be reversed after a base that is there for nothing (the input of the step, or a value in memory):

    $$F(l, p) = \min_m \{ m + F(l - m, p - 1) + F(m - 1, p) \}, \qquad m = 1 \text{ unless } p \ge 2$$

    The m-th value is the first that stays. Optimal over all schedules (`theory.optimum` agrees).

    Args:
        steps: Forward operations.
        places: p.

    Returns:
        Executions, at least `steps`; infinite if no schedule fits.

    Example:
        >>> [chain_executions(5, p) for p in (5, 4, 3, 2)]
        [5.0, 6.0, 7.0, 9.0]
    """

    @cache
    def executions(beyond: int, free: int) -> float:
        if beyond == 0:
            return 0.0
        if free == 0:
            return inf
        reach = range(1, (beyond if free >= 2 else 1) + 1)
        return min(m + executions(beyond - m, free - 1) + executions(m - 1, free) for m in reach)

    return executions(steps, places)


def joint_chain(steps: int, forward: float = 1.0, backward: float = 1.0, size: int = 1, gradient: int = 0) -> Graph:
    """A chain with its backward pass: b_i reads the value of f_i and the gradient of b_(i+1).

    Args:
        steps: Forward operations; f_0 reads the input of the training step, which is static.
        forward: FLOPs of a forward operation.
        backward: FLOPs of a backward operation.
        size: Bytes of a forward value.
        gradient: Bytes of a gradient.
    """
    ops = [Op(f"f{i}", (i - 1,) if i else (), (i,), flops=forward) for i in range(steps)]
    values = [Value(f"a{i}", size) for i in range(steps)]
    for i in reversed(range(steps)):
        inputs = (i,) if i == steps - 1 else (i, len(values) - 1)
        ops.append(Op(f"b{i}", inputs, (len(values),), flops=backward, phase="backward"))
        values.append(Value(f"g{i}", gradient, keep=i == 0))
    return Graph(f"joint chain of {steps}", tuple(ops), tuple(values))
