"""The exhaustive search, the chains in closed form and the bound without search, against each other."""

from heapq import heappop, heappush
from itertools import pairwise, product
from math import inf

import numpy as np
import pytest

from poet.baselines import square_root
from poet.device import Device, Tier
from poet.graph import Graph, Op, Value, chain
from poet.problem import Problem, formulate
from poet.replay import replay
from poet.stages import fits
from poet.theory import optimum
from poet.theory_chains import (
    chain_executions,
    joint_chain,
    periodic,
    revolve_steps,
    two_level_cost,
)
from poet.theory_chains import square_root as fewest
from poet.theory_graphs import small_problem
from poet.theory_stages import knapsack_bound, stage_optimum

TOY = Device("toy", flops_per_second=1.0, compute_power=1.0)
SEEDS = (*range(10), 28, 128, 135, 169)  # in the last four the paper's class loses


def cost(problem, order):
    found = optimum(problem, order)
    return inf if found is None else found.cost


@pytest.mark.parametrize("steps", range(1, 6))
def test_no_schedule_of_a_chain_beats_the_recurrence(steps):
    for places in range(1, steps + 1):
        problem = formulate(joint_chain(steps), TOY, places)
        expected = chain_executions(steps, places) + steps  # one backward operation each
        assert cost(problem, "any") == expected
        assert cost(problem, "indexed") == expected


def test_revolve_formula_is_the_optimum_of_its_recurrence():
    table = {(n, 1): n * (n - 1) // 2 for n in range(1, 41)} | {(1, c): 0 for c in range(1, 8)}
    for c in range(2, 8):
        for n in range(2, 41):
            table[n, c] = min(m + table[n - m, c - 1] + table[m, c] for m in range(1, n))
    assert {key: revolve_steps(*key) for key in table} == table
    assert [revolve_steps(20, c) + 20 for c in (2, 3, 5)] == [85, 65, 53]


def adjoint_game(steps: int, snapshots: int, write: float, read: float) -> float:
    """Least cost of reversing a chain, by Dijkstra over (state in hand, in RAM, on disk, next to reverse)."""
    start = (0, frozenset(), frozenset(), steps - 1)
    queue, settled, ticket = [(0.0, 0, start)], set(), 1
    while queue:
        spent, _, state = heappop(queue)
        if state in settled:
            continue
        settled.add(state)
        hand, ram, disk, todo = state
        if todo < 0:
            return spent
        moves = [(0.0, (s, ram, disk, todo)) for s in ram]
        moves += [(0.0, (hand, ram - {s}, disk, todo)) for s in ram]
        moves += [(read, (s, ram, disk, todo)) for s in disk]
        if hand is not None:
            moves.append((write, (hand, ram, disk | {hand}, todo)))
            if hand < todo:
                moves.append((1.0, (hand + 1, ram, disk, todo)))
            if hand == todo:
                moves.append((0.0, (None, ram, disk, todo - 1)))
            if len(ram) < snapshots:
                moves.append((0.0, (hand, ram | {hand}, disk, todo)))
        for price, after in moves:
            heappush(queue, (spent + price, ticket, after))
            ticket += 1
    return inf


@pytest.mark.parametrize(("write", "read"), [(2.0, 2.0), (0.5, 1.0), (1.5, 0.25)])
def test_two_level_recurrence_is_the_optimum_of_the_game(write, read):
    for steps, snapshots in product(range(1, 6), (1, 2)):
        expected = adjoint_game(steps, snapshots, write, read)
        assert two_level_cost(steps, snapshots, 1.0, write, read) == pytest.approx(expected, abs=1e-12)


def test_two_level_cost_without_a_disk_worth_using_is_revolve():
    for steps, snapshots in product(range(1, 25), range(1, 5)):
        assert two_level_cost(steps, snapshots, 1.0, 1e6, 1e6) == revolve_steps(steps, snapshots)


def test_periodic_counts_what_the_schedule_does():
    for steps in range(2, 13):
        for period in range(1, steps + 1):
            segments = -(-steps // period)
            if segments * period != steps:
                continue  # equal segments only: the baseline spreads the rest evenly
            again, stored = periodic(steps, period)
            problem = formulate(joint_chain(steps), TOY, 10**6)
            found = square_root(problem, segments=segments)
            played = replay(problem, found.events)
            assert (played.recomputed, played.peak) == (again, stored)
    assert all(fewest(n) <= 2 * np.sqrt(n) for n in range(1, 400))


def test_classes_are_nested_and_schedules_are_what_they_cost():
    strict = set()
    for seed in SEEDS:
        problem = small_problem(np.random.default_rng(seed), 5)
        costs = [stage_optimum(problem)]
        for order in ("indexed", "graph", "any"):
            found = optimum(problem, order)
            costs.append(inf if found is None else found.cost)
            if found is not None:
                assert replay(problem, found.events).cost == pytest.approx(found.cost, abs=1e-9)
                assert fits(problem, found.events)
        assert all(a >= b - 1e-9 for a, b in pairwise(costs))
        assert knapsack_bound(problem) <= costs[2] + 1e-9
        strict |= {at for at in range(3) if costs[at] > costs[at + 1] + 1e-9}
    assert {0, 2} <= strict  # the paper's class is smaller, and so is the graph's order


def test_two_outputs_workspace_fixed_operations_and_several_tiers():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        problem = small_problem(
            rng, 4, tiers=2, several_outputs=True, workspace=True, fixed=True, in_ram=seed % 2 == 0, paging="serial"
        )
        found = optimum(problem)
        if found is None:
            continue
        played = replay(problem, found.events)
        assert played.cost == pytest.approx(found.cost)
        assert fits(problem, found.events)
        assert knapsack_bound(problem) <= found.cost + 1e-9


def waiting(read: float = 1.0, write: float = 1.0) -> Problem:
    """A value of 2 bytes waits while an operation that needs all 4 bytes runs: 8 J to recompute, 2 · bytes to page."""
    ops = (Op("a", (), (0,), 8.0), Op("b", (), (1,), 1.0, workspace=3), Op("c", (0, 1), (2,), 1.0))
    values = (Value("x", 2), Value("y", 1), Value("z", 1, keep=True))
    tier = Tier("flash", 0.0, read, 0.0, write, power=1.0)
    device = Device("toy", flops_per_second=1.0, compute_power=1.0, tiers=(tier,))
    return Problem(Graph("waiting", ops, values), device, 4)


def test_a_value_that_cannot_wait_is_paged_or_recomputed_whichever_is_cheaper():
    assert cost(waiting(), "graph") == 10 + 4 == knapsack_bound(waiting())  # 2 s out, 2 s in, 1 W
    assert cost(waiting(read=0.25), "graph") == 10 + 8  # 2 s out, 8 s in: recomputing takes 8
    assert cost(waiting(), "any") == 10  # b first
    assert knapsack_bound(waiting().with_ram(2)) == inf


def test_a_deadline_counts_computation_and_what_is_shown_of_transfers():
    late = waiting()
    for seconds, paging, expected in (
        (10.0, "free", 14.0),
        (10.0, "overlap", 14.0),  # 4 s on a channel beside 10 s of computation
        (13.9, "serial", inf),
        (14.0, "serial", 14.0),
    ):
        problem = Problem(late.graph, late.device, 4, seconds, paging=paging)
        assert cost(problem, "graph") == expected
    # The channel is busy for 12 s, and recomputing takes 18 s in all but costs less.
    slow = waiting(read=0.5, write=0.25)
    for seconds, expected in ((11.9, inf), (12.0, 22.0), (17.9, 22.0), (18.0, 18.0)):
        assert cost(Problem(slow.graph, slow.device, 4, seconds, paging="overlap"), "graph") == expected


def test_more_ram_and_more_time_never_cost_more():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        problem = small_problem(rng, 4, paging="serial", deadline=1.5)
        by_ram = [cost(problem.with_ram(ram), "graph") for ram in range(problem.limit, problem.limit + 4)]
        assert by_ram == sorted(by_ram, reverse=True)
        plain = problem.baseline_seconds
        by_time = [
            cost(Problem(problem.graph, problem.device, problem.limit, plain * f, paging="serial"), "graph")
            for f in (1.0, 1.2, 1.5, 2.5)
        ]
        assert by_time == sorted(by_time, reverse=True)


def test_refusals():
    with pytest.raises(ValueError, match="order must be one of"):
        optimum(formulate(chain("c", [1]), TOY, 1), "backwards")
    with pytest.raises(ValueError, match="exhaustive search is for at most"):
        optimum(formulate(chain("c", [1] * 13), TOY, 13))
    with pytest.raises(ValueError, match="at least 1"):
        revolve_steps(0, 1)
    with pytest.raises(ValueError, match="at least 1"):
        two_level_cost(3, 0)
    with pytest.raises(ValueError, match="need 1 <= period <= steps"):
        periodic(3, 4)
    with pytest.raises(ValueError, match="one tier, outside RAM"):
        stage_optimum(small_problem(np.random.default_rng(0), 3, tiers=2))
    with pytest.raises(ValueError, match="one output an operation"):
        stage_optimum(small_problem(np.random.default_rng(0), 5, several_outputs=True))
