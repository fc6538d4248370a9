"""Time of tabular solutions at 800 confidences, how it grows with the number of pairs, and a naive loop's; on cpu."""

import harness  # isort: skip  (one thread: before numpy)

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from harness import Row
from scipy import sparse

from ccvf import theory
from ccvf.confidence import delta_grid
from ccvf.counts import Counts
from ccvf.gridworlds import grid_world
from ccvf.tabular import TabularCCVL

NAME = "bench_tabular"
BUDGETS = ("box", "sum", "product")
GOAL = 10.0  # seconds for 800 confidences of 10^4 pairs
SLOPE = 1.15  # of log(seconds) against log(pairs)
GAMMA = 0.99
NOTES = (
    "Every solution is exact up to 1e-8 and double precision; seconds are medians. Random: 4 actions, each pair leads "
    "to 10 random states, 1 to 50 visits, rewards in [0, 1], alpha 0.1, discount 0.99. Grid: 50 x 50 cells, 15 % walls "
    "and 2 % lava, one goal, slip 0.1, 1 to 50 visits. 'One visit' is a hard case of the search for splits: every pair "
    "seen once, discount 0.1, so that nearly all splits are looked at. Slope: least squares of log(seconds) on "
    "log(pairs). The naive loop is ccvf.theory's, in plain Python with numpy's dot products, which tries every split; "
    "'one sweep' compares our whole solution with a single sweep of it, 'solution' with its whole iteration to 1e-6. "
    "Ratios are taken within interleaved pairs."
)


def random_counts(states: int, seed: int = 0, visits: tuple[int, int] = (1, 50), actions: int = 4) -> Counts:
    """Expected counts of a process in which each pair leads to ten random states."""
    rng, pairs, ways = np.random.default_rng(seed), states * actions, min(10, states)
    shares = rng.dirichlet(np.ones(ways), pairs)
    rows = np.repeat(np.arange(pairs), ways)
    move = sparse.coo_array((shares.ravel(), (rows, rng.integers(states, size=rows.size))), shape=(pairs, states))
    number = rng.integers(visits[0], visits[1] + 1, (states, actions))
    return Counts.from_model(sparse.csr_array(move), rng.random((states, actions)), number)


def grid_counts(side: int, seed: int = 0) -> Counts:
    """Expected counts of a square gridworld with walls and lava."""
    rng = np.random.default_rng(seed)
    letters = rng.choice(list(".#L"), size=(side, side), p=[0.83, 0.15, 0.02])
    letters[0, 0], letters[-1, -1] = "S", "G"
    mdp = grid_world("\n".join("".join(row) for row in letters)).mdp
    number = rng.integers(1, 51, mdp.reward.shape)
    return Counts.from_model(mdp.transition, mdp.expected_reward, number, mdp.terminal)


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call after a first one."""
    call()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return float(np.median(found))


def solver(budget: str, points: int, gamma: float = GAMMA, **changes: Any) -> TabularCCVL:
    """Lower bounds on a grid of this many confidences."""
    settings: dict[str, Any] = {"budget": budget, "deltas": delta_grid(points, 1e-8), "reward_range": (0, 1)}
    return TabularCCVL(gamma, **(settings | changes))


def whole(quick: bool) -> list[Row]:
    """Whole solutions of 10^4 pairs."""
    points, states, side = (20, 25, 6) if quick else (800, 2500, 54)
    hard = random_counts(states, visits=(1, 1))
    cases = [(name, counts, GAMMA) for name, counts in (("random", random_counts(states)), ("grid", grid_counts(side)))]
    rows = []
    for name, counts, gamma in [*cases, ("one visit", hard, 0.1)]:
        for budget in BUDGETS[1:] if name == "one visit" else BUDGETS:
            made = solver(budget, points, gamma)
            found = made.fit(counts).unwrap()
            spent = seconds(lambda made=made, counts=counts: made.fit(counts), 1 if quick else 5)
            label = f"{name}, {counts.visits.size} pairs, {points} confidences, {budget}"
            extra = {"sweeps": found.sweeps, "pairs": counts.visits.size, "confidences": points}
            rows.append(harness.row(label, spent, None, "none", goal=GOAL, **extra))
            print(harness.line(rows[-1]), flush=True)
    return rows


def growth(quick: bool) -> list[Row]:
    """How seconds grow with the number of pairs."""
    points, sizes = (20, (10, 40)) if quick else (800, (625, 1250, 2500, 5000, 10_000))
    rows = []
    for budget in BUDGETS:
        made, spent = solver(budget, points), []
        for states in sizes:
            counts = random_counts(states)
            spent.append(seconds(lambda made=made, counts=counts: made.fit(counts), 1 if quick else 3))
        pairs = 4 * np.array(sizes)
        slope = float(np.polyfit(np.log(pairs), np.log(spent), 1)[0])
        extra = {"pairs": pairs.tolist(), "seconds": spent}
        rows.append(
            harness.row(f"growth with pairs, {budget}", slope, 1.0, "linear", goal=SLOPE, unit="slope", **extra)
        )
        print(harness.line(rows[-1]), flush=True)
    return rows


def naive(quick: bool) -> list[Row]:
    """Against the naive double loop, on problems small enough for it."""
    states, points, gamma = (3, 8, 0.5) if quick else (10, 60, 0.9)
    counts = random_counts(states)
    p, r = counts.probabilities.toarray().reshape(*counts.visits.shape, states), counts.mean_reward
    deltas, rows = delta_grid(points, 1e-8), []
    for budget in BUDGETS:
        made = solver(budget, points, gamma, tol=1e-6)
        args = (p, r, counts.visits, deltas, gamma, 0.1, budget)
        floor = None if budget == "box" else 0.0
        start = np.zeros((states, points))
        peers: dict[str, Callable[[], Any]] = {
            "one sweep": lambda args=args, floor=floor, v=start: theory.naive_backup(v, *args, trivial=floor),
            "solution": lambda args=args, floor=floor: theory.naive_values(*args, 0.0, floor is not None, tol=1e-6),
        }
        same = peers["solution"]() - made.fit(counts).q
        for name, peer in peers.items():
            label = f"{name}, {counts.visits.size} pairs, {points} confidences, {budget}"
            row = harness.compare(
                label, lambda made=made: made.fit(counts), peer, "naive double loop", goal=1.0,
                repeats=2 if quick else 5, warmup=1,
            )  # fmt: skip
            rows.append(row | {"largest_difference": float(np.abs(same).max())})
            print(harness.line(rows[-1]), flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    harness.save(NAME, args, [*whole(args.quick), *growth(args.quick), *naive(args.quick)], NOTES)


if __name__ == "__main__":
    main()
