"""Large-neighbourhood search: free a part of a schedule, keep the rest, solve that part exactly, repeat."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from jaxtyping import Bool, Float, Int

from poet.grid import Grid

Kind = Literal["window", "values", "relaxed"]
KINDS: tuple[Kind, ...] = ("window", "values", "relaxed")


@final
@dataclass(frozen=True)
class Roster:
    """Whom each variable of a grid belongs to.

    Attributes:
        value: Its value, or -1 for "executed".
        op: Its operation: that executed, or the producer of its value.
        first: Stage of the first place that it concerns.
        last: Stage of the last one.
    """

    value: Int[np.ndarray, " x"]
    op: Int[np.ndarray, " x"]
    first: Int[np.ndarray, " x"]
    last: Int[np.ndarray, " x"]


def roster(grid: Grid) -> Roster:
    """Whom each variable belongs to."""
    graph, n = grid.problem.graph, len(grid.problem.graph.ops)
    value, op, first, last = (np.full(len(grid.cost), fill, dtype=np.int64) for fill in (-1, -1, 0, n))
    for c, i, t in zip(grid.run, grid.op, grid.stage, strict=True):
        if c >= 0:
            op[c], first[c], last[c] = i, t, t
    for v, life in enumerate(grid.lives):
        stages = [grid.stage[e] for e in life.places]
        spans = [(c, stages[j], stages[j + 1]) for j, c in enumerate(life.hold)]
        spans += [(c, stages[j], stages[j]) for j, into in enumerate(life.into) for c in into if c >= 0]
        spans += [(c, stages[j], stages[j + 1]) for codes in life.codes for j, c in enumerate(codes)]
        spans += [(c, stages[j], stages[j]) for squeeze in life.squeeze for j, c in enumerate(squeeze)]
        spans += [(c, stages[0], stages[-1]) for c in life.out if c >= 0]
        for c, a, b in spans:
            value[c], op[c], first[c], last[c] = v, graph.producer[v], a, b
    return Roster(value, op, first, last)


def window(roster: Roster, centre: int, width: int) -> Bool[np.ndarray, " x"]:
    """Variables of the stages around one, and of everything held into, out of or across them."""
    low, high = centre - width // 2, centre + (width + 1) // 2
    inside = (roster.first <= high) & (roster.last >= low)
    short = (roster.last - roster.first) <= 2 * width
    touched = np.unique(roster.value[inside & short & (roster.value >= 0)])
    return (inside & short) | (inside & np.isin(roster.value, touched))


def values(grid: Grid, roster: Roster, centre: int, count: int) -> Bool[np.ndarray, " x"]:
    """Variables of the values around an operation, in breadth-first order through the graph, and of their producers."""
    graph = grid.problem.graph
    ops: dict[int, None] = {centre: None}
    queue = [centre]
    while queue and len(ops) < count:
        i = queue.pop(0)
        near = [graph.producer[v] for v in graph.ops[i].inputs]
        near += [user for v in graph.ops[i].outputs for user in graph.users[v]]
        for other in near:
            if other not in ops and len(ops) < count:
                ops[other] = None
                queue.append(other)
    return np.isin(roster.op, list(ops))


def relaxed(x: Bool[np.ndarray, " x"], relaxation: Float[np.ndarray, " x"], share: float) -> Bool[np.ndarray, " x"]:
    """Variables on which the incumbent and the linear relaxation differ most (RINS).

    Reference:
        Danna, Rothberg, Le Pape (2005), Mathematical Programming 102.
    """
    distance = np.abs(x - relaxation)
    count = max(int(share * len(x)), 1)
    threshold = np.partition(distance, -count)[-count]
    return (distance >= max(threshold, 1e-6)) | (distance > 0.5)


@final
class Chooser:
    """Draws neighbourhoods, and makes them larger while they are solved easily and smaller while they are not.

    Args:
        grid: The program.
        relaxation: Solution of its linear relaxation, if known.
        rng: Where the draws come from.
    """

    def __init__(self, grid: Grid, relaxation: Float[np.ndarray, " x"] | None, rng: np.random.Generator) -> None:
        self.grid, self.relaxation, self.rng = grid, relaxation, rng
        self.roster = roster(grid)
        n = len(grid.problem.graph.ops)
        self.size = {"window": max(n * 0.1, 8.0), "values": max(n * 0.1, 8.0), "relaxed": 0.2}
        self.score = {kind: 1.0 for kind in KINDS if kind != "relaxed" or relaxation is not None}

    def draw(self, x: Bool[np.ndarray, " x"]) -> tuple[Kind, Bool[np.ndarray, " x"]]:
        """A kind of neighbourhood and its free variables."""
        kinds = list(self.score)
        weights = np.array([self.score[kind] for kind in kinds])
        kind: Kind = kinds[int(self.rng.choice(len(kinds), p=weights / weights.sum()))]  # type: ignore[assignment]
        n = len(self.grid.problem.graph.ops)
        build: dict[str, Callable[[], np.ndarray]] = {
            "window": lambda: window(self.roster, int(self.rng.integers(n)), int(self.size["window"])),
            "values": lambda: values(self.grid, self.roster, int(self.rng.integers(n)), int(self.size["values"])),
            "relaxed": lambda: relaxed(x, self._shaken(), float(self.size["relaxed"])),
        }
        return kind, build[kind]()

    def learn(self, kind: Kind, *, better: bool, solved: bool) -> None:
        """Adapt to what came of a neighbourhood."""
        self.score[kind] = max(0.2, 0.8 * self.score[kind] + (0.8 if better else 0.0))
        top = 0.9 if kind == "relaxed" else float(len(self.grid.problem.graph.ops))
        self.size[kind] = min(self.size[kind] * (1.25 if solved else 0.7), top)

    def _shaken(self) -> Float[np.ndarray, " x"]:
        assert self.relaxation is not None
        return np.clip(self.relaxation + self.rng.normal(0.0, 0.15, len(self.relaxation)), 0.0, 1.0)
