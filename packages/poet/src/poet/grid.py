r"""The schedule as a sparse integer program on a grid of places where something may happen.

Stage t of the paper is the span before operation t is executed for the first time. The grid holds, in order, the
*places* (t, i): "operation i may be executed again in stage t" for chosen pairs i < t, and "operation t is executed for
the first time". Between two successive places that concern a value (where it is produced or read), the value is either
held in RAM or not. With all pairs the grid is the paper's class of schedules (frontier-advancing, recomputations within
a stage in the order of the graph); with fewer pairs it is a smaller class and a far smaller program.

Binary variables: $R_e$ (executed at place e), $H_{v,j}$ (value v held from its j-th place to the next),
$I_{v,j,k}$ (paged in from tier k just before its j-th place), $O_{v,k}$ (a copy of v is made in tier k). With
$A_{v,j} = H_{v,j-1} + \sum_k I_{v,j,k}$:

- reading: $R_e \le A_{v,j}$, and $H_{v,j} \le A_{v,j} \le 1$ after it;
- producing: $H_{v,j} \le H_{v,j-1} + R_e$;
- paging: $I_{v,j,k} \le O_{v,k}$ and $\sum_k I_{v,j,k} \le R_e$ (a transfer is delayed until its value is read);
- memory at every place, copies in RAM and workspace included; the deadline; each channel's time; each tier's room.

It differs from the paper's program in two ways that only enlarge the class: a value paged in is charged from the place
that reads it, not for the whole stage before, and recomputing costs memory only where it happens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import sparse

from poet.events import Event, Kind, compute, drop, free, page_in, page_out
from poet.graph import Graph
from poet.problem import Problem

END = -1


def all_places(graph: Graph) -> list[list[int]]:
    """Every pair (t, i < t): the paper's class. Grows with the square of the number of operations."""
    return [list(range(t)) for t in range(len(graph.ops))]


def near_places(
    graph: Graph, depth: int, allowed: Sequence[bool] | Bool[np.ndarray, " n"] | None = None
) -> list[list[int]]:
    """Pairs (t, i) where operation i is at most `depth` steps upstream of operation t.

    Args:
        graph: The training step.
        depth: Longest chain of recomputations within a stage.
        allowed: Whether each operation may be executed again; all unless given.

    Returns:
        For each stage, the operations that may be executed again in it, in order.
    """
    chosen = []
    for t, op in enumerate(graph.ops):
        reached: set[int] = set()
        edge = {graph.producer[v] for v in op.inputs}
        for _ in range(depth):
            edge = {i for i in edge - reached if i < t and (allowed is None or allowed[i])}
            reached |= edge
            edge = {graph.producer[v] for i in edge for v in graph.ops[i].inputs}
        chosen.append(sorted(reached))
    return chosen


@final
@dataclass
class _Columns:
    """Variables under construction."""

    cost: list[float] = field(default_factory=list)

    def add(self, cost: float = 0.0) -> int:
        self.cost.append(cost)
        return len(self.cost) - 1


@final
@dataclass
class _Rows:
    """Rows `a x <= b` under construction, as triplets."""

    row: list[int] = field(default_factory=list)
    col: list[int] = field(default_factory=list)
    val: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)

    def add(self, terms: Iterable[tuple[int, float]], upper: float) -> None:
        r = len(self.upper)
        for c, a in terms:
            self.row.append(r)
            self.col.append(c)
            self.val.append(a)
        self.upper.append(upper)


@final
@dataclass(frozen=True)
class Life:
    """The variables of one value.

    Attributes:
        places: Places that concern the value, in order; the first produces it for the first time.
        births: Whether each place produces it (else it reads it).
        hold: Variable "held from this place to the next", one less than places.
        into: Variables "paged in just before this place", by tier, -1 where not allowed; empty where it is produced.
        out: Variable "a copy is made", by tier, or -1; for tiers in RAM see `squeeze`.
        squeeze: For tiers in RAM, variable "copied just after this place", by tier and place.
        codes: For tiers in RAM, variable "the copy is held from this place to the next".
    """

    places: tuple[int, ...]
    births: tuple[bool, ...]
    hold: tuple[int, ...]
    into: tuple[tuple[int, ...], ...]
    out: tuple[int, ...]
    squeeze: tuple[tuple[int, ...], ...]
    codes: tuple[tuple[int, ...], ...]


@final
@dataclass(frozen=True)
class Grid:
    """The program: minimise `cost @ x + base` subject to `A x <= upper`, x binary.

    Attributes:
        problem: What it schedules.
        op: Operation of each place; the last place is the end of the step (`END`).
        stage: Stage of each place.
        run: Variable "executed at this place", or -1 for first executions and the end.
        lives: The variables of each value.
        cost: Cost of each variable.
        matrix: A.
        upper: Right-hand sides.
        memory: Number of the row that limits the memory at each place.
        base: Cost of the first executions.
    """

    problem: Problem
    op: tuple[int, ...]
    stage: tuple[int, ...]
    run: tuple[int, ...]
    lives: tuple[Life, ...]
    cost: Float[np.ndarray, " x"]
    matrix: sparse.csr_array
    upper: Float[np.ndarray, " rows"]
    memory: Int[np.ndarray, " places"]
    base: float

    def objective(self, x: Shaped[np.ndarray, " x"]) -> float:
        """Cost of a solution."""
        return float(self.cost @ x) + self.base

    def decode(self, x: Sequence[int] | np.ndarray) -> tuple[Event, ...]:
        """The events of a binary solution."""
        return tuple(_decode(self, np.asarray(x) > 0.5))


def build(problem: Problem, places: Sequence[Sequence[int]]) -> Grid:
    """The program on a grid.

    Args:
        problem: What to schedule.
        places: For each stage t, the operations i < t that may be executed again in it.

    Returns:
        The program. Operations that may not be executed again are left out of the grid.
    """
    graph, allowed = problem.graph, problem.recomputable
    op, stage, run = [], [], []
    columns, rows = _Columns(), _Rows()
    for t in range(len(graph.ops)):
        for i in sorted(set(places[t])):
            if i < t and allowed[i]:
                op.append(i)
                stage.append(t)
                run.append(columns.add(float(problem.op_cost[i])))
        op.append(t)
        stage.append(t)
        run.append(-1)
    op.append(END)
    stage.append(len(graph.ops))
    run.append(-1)
    concerns = _concerns(graph, op)
    memory: list[list[tuple[int, float]]] = [[] for _ in op]
    fixed = [0.0] * len(op)
    lives = []
    for v in range(len(graph.values)):
        life = _live(problem, v, concerns[v], stage, columns)
        _link(problem, life, run, rows)
        _charge(problem, v, life, run, memory, fixed)
        lives.append(life)
    for e, i in enumerate(op):
        if i != END:
            space = graph.ops[i].workspace
            if run[e] < 0:
                fixed[e] += space
            elif space:
                memory[e].append((run[e], float(space)))
    first = len(rows.upper)
    for terms, used in zip(memory, fixed, strict=True):
        rows.add(terms, problem.ram - used)
    _resources(problem, op, run, lives, rows)
    shape = (len(rows.upper), len(columns.cost))
    matrix = sparse.csr_array((rows.val, (rows.row, rows.col)), shape=shape, dtype=float)
    numbers = np.arange(first, first + len(op))
    base = problem.baseline_cost
    return Grid(
        problem, tuple(op), tuple(stage), tuple(run), tuple(lives), np.array(columns.cost), matrix,
        np.array(rows.upper, dtype=float), numbers, base,
    )  # fmt: skip


def _concerns(graph: Graph, op: Sequence[int]) -> list[list[tuple[int, bool]]]:
    """For each value, the places that produce (True) or read (False) it."""
    concerns: list[list[tuple[int, bool]]] = [[] for _ in graph.values]
    for e, i in enumerate(op):
        if i == END:
            for v, value in enumerate(graph.values):
                if value.keep:
                    concerns[v].append((e, False))
            continue
        for v in dict.fromkeys(graph.ops[i].inputs):
            concerns[v].append((e, False))
        for v in graph.ops[i].outputs:
            concerns[v].append((e, True))
    return concerns


def _live(problem: Problem, v: int, concerns: list[tuple[int, bool]], stage: Sequence[int], columns: _Columns) -> Life:
    places, births = zip(*concerns, strict=True)
    count, tiers, ops = len(places), problem.tiers, problem.graph.ops
    hold = tuple(columns.add() for _ in range(count - 1))
    read = len(concerns) - sum(births) > 0
    into: list[tuple[int, ...]] = []
    for j, e in enumerate(places):
        backward = stage[e] < len(ops) and ops[stage[e]].phase == "backward"
        if not read or births[j] or j == 0:
            into.append(())
            continue
        offered = [problem.takes(k, v) and (tier.exact or backward) for k, tier in enumerate(tiers)]
        into.append(tuple(columns.add(float(problem.in_cost[k, v])) if offered[k] else -1 for k in range(len(tiers))))
    used = [any(c[k] >= 0 for c in into if c) for k in range(len(tiers))]
    out, squeeze, codes = [], [], []
    for k, tier in enumerate(tiers):
        inside = tier.in_ram and used[k]
        out.append(-1 if tier.in_ram or not used[k] else columns.add(float(problem.out_cost[k, v])))
        squeeze.append(tuple(columns.add(float(problem.out_cost[k, v])) for _ in hold) if inside else ())
        codes.append(tuple(columns.add() for _ in hold) if inside else ())
    return Life(places, births, hold, tuple(into), tuple(out), tuple(squeeze), tuple(codes))


def _link(problem: Problem, life: Life, run: Sequence[int], rows: _Rows) -> None:
    """Rows that tie the variables of one value together."""
    for j, e in enumerate(life.places):
        here = [(life.hold[j - 1], 1.0)] if j else []
        arrivals = [(c, 1.0) for c in life.into[j] if c >= 0]
        here += arrivals
        if not life.births[j]:
            if run[e] < 0:
                rows.add([(c, -a) for c, a in here], -1.0)
            else:
                rows.add([(run[e], 1.0), *((c, -a) for c, a in here)], 0.0)
                if arrivals:
                    rows.add([*arrivals, (run[e], -1.0)], 0.0)
            if arrivals:
                rows.add(here, 1.0)
        elif run[e] >= 0:
            here.append((run[e], 1.0))
        if j < len(life.hold) and (run[e] >= 0 or not life.births[j]):
            rows.add([(life.hold[j], 1.0), *((c, -a) for c, a in here)], 0.0)
        for k, c in enumerate(life.into[j]):
            if c < 0:
                continue
            if problem.tiers[k].in_ram:
                rows.add([(c, 1.0), (life.codes[k][j - 1], -1.0)], 0.0)
            else:
                rows.add([(c, 1.0), (life.out[k], -1.0)], 0.0)
        for k, squeeze in enumerate(life.squeeze):
            if squeeze and j < len(squeeze):
                before = [(life.codes[k][j - 1], -1.0)] if j else []
                rows.add([(life.codes[k][j], 1.0), (squeeze[j], -1.0), *before], 0.0)
                if j or run[e] >= 0:
                    rows.add([(squeeze[j], 1.0), *((c, -a) for c, a in here)], 0.0)


def _charge(
    problem: Problem, v: int, life: Life, run: Sequence[int], memory: list[list[tuple[int, float]]], fixed: list[float]
) -> None:
    """Terms of one value in the memory rows."""
    size = float(problem.sizes[v])
    if not size:
        return
    stored = problem.stored[:, v]
    for j, e in enumerate(life.places):
        if life.births[j]:
            if run[e] < 0:
                fixed[e] += size
            else:
                memory[e].append((run[e], size))
        if not life.births[j] and run[e] < 0:
            fixed[e] += size
        else:
            memory[e] += [(c, size) for c in (*((life.hold[j - 1],) if j else ()), *life.into[j]) if c >= 0]
        for k, codes in enumerate(life.codes):
            if codes:
                memory[e] += [(codes[j - 1], float(stored[k]))] if j else []
                memory[e] += [(life.squeeze[k][j], float(stored[k]))] if j < len(codes) else []
        if j < len(life.hold):
            for between in range(e + 1, life.places[j + 1]):
                memory[between].append((life.hold[j], size))
                for k, codes in enumerate(life.codes):
                    if codes:
                        memory[between].append((codes[j], float(stored[k])))


def _resources(problem: Problem, op: Sequence[int], run: Sequence[int], lives: Sequence[Life], rows: _Rows) -> None:
    """The deadline, the channels' time and the tiers' room."""
    tiers = range(len(problem.tiers))
    ins = [[(c[k], v) for v, life in enumerate(lives) for c in life.into if c and c[k] >= 0] for k in tiers]
    outs = [[(life.out[k], v) for v, life in enumerate(lives) if life.out[k] >= 0] for k in tiers]
    if isfinite(problem.deadline):
        terms = [(c, float(problem.op_seconds[op[e]])) for e, c in enumerate(run) if c >= 0]
        for k in range(len(problem.tiers)):
            shown = problem.shown[k]
            terms += [(c, shown * float(problem.read_seconds[k, v])) for c, v in ins[k]]
            terms += [(c, shown * float(problem.write_seconds[k, v])) for c, v in outs[k]]
            if problem.tiers[k].in_ram:
                seconds = [float(problem.write_seconds[k, v]) for v in range(len(lives))]
                terms += [(c, shown * seconds[v]) for v, life in enumerate(lives) for c in life.squeeze[k]]
        rows.add([(c, a) for c, a in terms if a], problem.deadline - problem.baseline_seconds)
    for k, tier in enumerate(problem.tiers):
        if tier.in_ram:
            continue
        if tier.capacity is not None:
            rows.add([(c, float(problem.stored[k, v])) for c, v in outs[k]], float(tier.capacity))
        if isfinite(problem.deadline) and problem.paging == "overlap":
            reads = [(c, float(problem.read_seconds[k, v])) for c, v in ins[k]]
            writes = [(c, float(problem.write_seconds[k, v])) for c, v in outs[k]]
            for terms in (reads, writes) if tier.duplex else (reads + writes,):
                rows.add(terms, problem.deadline)


def _decode(grid: Grid, x: np.ndarray) -> Iterable[Event]:
    """Walk over the places; free what is not held on, page in what is read, page out before the first loss."""
    graph, problem = grid.problem.graph, grid.problem
    at: list[list[tuple[int, int]]] = [[] for _ in grid.op]
    for v, life in enumerate(grid.lives):
        for j, e in enumerate(life.places):
            at[e].append((v, j))
    resident: set[int] = set()
    copied: set[tuple[int, int]] = set()
    for e, i in enumerate(grid.op):
        executed = i != END and (grid.run[e] < 0 or x[grid.run[e]])
        for v, j in at[e]:
            if v not in resident:
                for k, c in enumerate(grid.lives[v].into[j]):
                    if c >= 0 and x[c] and (executed or i == END) and v not in resident:
                        resident.add(v)
                        yield page_in(v, k)
        if executed:
            resident.update(graph.ops[i].outputs)
            yield compute(i)
        for v, j in at[e]:
            life = grid.lives[v]
            for k in range(len(problem.tiers)):
                inside = life.squeeze[k]
                wanted = (j < len(inside) and x[inside[j]]) if inside else (life.out[k] >= 0 and x[life.out[k]])
                if wanted and v in resident and (v, k) not in copied:
                    copied.add((v, k))
                    yield page_out(v, k)
                if inside and (v, k) in copied and (j == len(inside) or not x[life.codes[k][j]]):
                    copied.remove((v, k))
                    yield drop(v, k)
            if v in resident and i != END and (j == len(life.hold) or not x[life.hold[j]]):
                resident.remove(v)
                yield free(v)


def encode(grid: Grid, events: Sequence[Event]) -> Float[np.ndarray, " x"] | None:
    """The solution of the program that stands for some events, if they lie on the grid.

    Returns:
        The binary solution, or None where a recomputation has no place in the grid or a value is copied twice.
    """
    x = np.zeros(len(grid.cost))
    index = {(t, i): e for e, (t, i) in enumerate(zip(grid.stage, grid.op, strict=True))}
    done: set[int] = set()
    stage, last = 0, -1
    seen: list[tuple[int, Event]] = []  # (place, event) with every event at the place that it precedes or is
    pending: list[Event] = []
    for event in events:
        pending.append(event)
        if event.kind is Kind.COMPUTE:
            e = index.get((stage, event.target))
            if e is None or e <= last:
                return None
            seen += [(e, waiting) for waiting in pending]
            pending, last = [], e
            if grid.run[e] >= 0:
                x[grid.run[e]] = 1
            if event.target not in done:
                done.add(event.target)
                stage += 1
    seen += [(len(grid.op) - 1, waiting) for waiting in pending]
    return x if all(_encode_value(grid, v, seen, x) for v in range(len(grid.lives))) else None


def _encode_value(grid: Grid, v: int, seen: Sequence[tuple[int, Event]], x: np.ndarray) -> bool:
    """Fill in the variables of one value; False if the program cannot express its story."""
    life, tiers = grid.lives[v], grid.problem.tiers
    producer = grid.problem.graph.producer[v]
    resident, since = False, inf
    spans: list[tuple[float, float]] = []
    arrivals: list[tuple[int, int]] = []
    squeezed: dict[int, int] = {}  # tier in RAM -> index of the place after which the copy was made
    for e, event in seen:
        if event.kind is Kind.COMPUTE and event.target == producer and not resident:
            resident, since = True, e
        if event.target != v or event.kind is Kind.COMPUTE:
            continue
        behind = sum(place < e for place in life.places) - 1
        if event.kind is Kind.PAGE_IN:
            arrivals.append((e, event.tier))
            resident, since = True, e - 0.5
        elif event.kind is Kind.FREE:
            spans.append((since, e - 0.5))
            resident = False
        elif event.kind is Kind.PAGE_OUT and tiers[event.tier].in_ram:
            if not 0 <= behind < len(life.squeeze[event.tier]):
                return False
            x[life.squeeze[event.tier][behind]] = 1
            squeezed[event.tier] = behind
        elif event.kind is Kind.PAGE_OUT:
            if life.out[event.tier] < 0:
                return False
            x[life.out[event.tier]] = 1
        elif event.kind is Kind.DROP and event.tier in squeezed:
            x[list(life.codes[event.tier][squeezed.pop(event.tier) : max(behind, 0)])] = 1
    for k, start in squeezed.items():
        x[list(life.codes[k][start:])] = 1
    if resident:
        spans.append((since, inf))
    for j, c in enumerate(life.hold):
        a, b = life.places[j], life.places[j + 1]
        x[c] = any(start <= a and b <= end for start, end in spans)
    return all(_encode_arrival(grid, life, e, tier, x) for e, tier in arrivals)


def _encode_arrival(grid: Grid, life: Life, e: int, tier: int, x: np.ndarray) -> bool:
    """A page-in, delayed until its value is read."""
    later = [j for j, place in enumerate(life.places) if place >= e and not life.births[j]]
    ran = [j for j in later if grid.run[life.places[j]] < 0 or x[grid.run[life.places[j]]]]
    if not ran or not life.into[ran[0]] or life.into[ran[0]][tier] < 0:
        return False
    x[life.into[ran[0]][tier]] = 1
    for j in range(len(life.hold)):
        if e <= life.places[j] < life.places[ran[0]]:
            x[life.hold[j]] = 0
    return True
