"""The paper's nine transfers between hosts: planned time against the lower bound and every other way; runs on cpu."""

import harness  # isort: skip  (one thread: before numpy)

from collections.abc import Sequence

import numpy as np
from harness import Row

from xmesh_reshard import plan
from xmesh_reshard.baseline_tasks import work_of
from xmesh_reshard.baselines import blocking_tasks, send_recv, send_recv_balanced
from xmesh_reshard.blocking import (
    blocking_makespan,
    greedy_order,
    naive_order,
    paper_order,
    search_order,
    size_only_order,
)
from xmesh_reshard.cases import Case, case_numbers, multi_host_case
from xmesh_reshard.collectives import global_allgather, local_allgather
from xmesh_reshard.moves import Collective
from xmesh_reshard.network import simulate
from xmesh_reshard.plans import Plan

NAME = "bench_cases"
GOAL = 1.001
# Units of T as known before this package was made:
# lower bound, naive, size-only, the paper's better of both, send/recv (first replica).
KNOWN = {
    1: (0.5, 0.5, 0.5, 0.5, 2.0),
    2: (0.5, 1.0, 0.5, 0.5, 4.0),
    3: (0.5, 0.75, 0.75, 0.5, 2.0),
    4: (0.5, 0.9375, 0.9375, 0.5, 0.5),
    5: (0.5, 1.0, 0.75, 0.5, 4.0),
    6: (0.5, 1.0, 1.0, 0.5, 2.0),
    7: (1.0, 1.0, 1.0, 1.0, 8.0),
    8: (1.0, 1.0, 1.0, 1.0, 8.0),
    9: (0.5, 0.75, 0.75, 0.5, 2.0),
}
COLUMNS = ("naive order", "balanced by size", "the paper's better of both", "send/recv, first holder")
NOTES = (
    "The paper's cases at full size (2 GiB of float32), 10 Gbit/s a host, 100 GB/s inside, no cost for a message. All "
    "times in units of T, what the whole tensor takes over one card. Ours is the plan's own time; 'simulated' is the "
    "network simulator's. Orders of broadcasts (naive, by size, the paper's search, greedy, and better of both) are "
    "timed in the paper's model: whole tasks, one at a time on every port, reaching all hosts at once. Send/recv and "
    "all-gathers are simulated, each at the better of strict order and everything at once. 'known' is the figure of "
    "a separate calculation made before, where there is one; the paper's greedy is random (seed 0)."
)


def at_best(found: Plan | Collective) -> float:
    """Simulated seconds, in order or at once."""
    if isinstance(found, Collective):
        return simulate(found).makespan
    return min(simulate(found, in_flight=count).makespan for count in (2, None))


def others(case: Case) -> dict[str, float]:
    """Units of T of every other way."""
    tasks = blocking_tasks(work_of(case.transfers, case.topology))
    orders = {
        "naive order": naive_order(tasks),
        "balanced by size": size_only_order(tasks),
        "the paper's greedy": greedy_order(tasks, np.random.default_rng(0)),
        "the paper's search": search_order(tasks),
        "the paper's better of both": paper_order(tasks, np.random.default_rng(0)),
    }
    found = {name: blocking_makespan(tasks, order) for name, order in orders.items()}
    pair = case.transfers, case.topology
    found |= {
        "send/recv, first holder": at_best(send_recv(*pair)),
        "send/recv, balanced": at_best(send_recv_balanced(*pair)),
        "parts and local all-gather": at_best(local_allgather(*pair)),
        "parts and global all-gather": at_best(global_allgather(*pair)),
    }
    return {name: seconds / case.seconds for name, seconds in found.items()}


def rows_of(number: int, scale: int) -> list[Row]:
    """A case's rows."""
    case = multi_host_case(number, scale)
    made = plan(case.transfers, case.topology)
    ours, bound, *known = made.makespan / case.seconds, made.lower_bound / case.seconds, *KNOWN[number]
    columns = harness.extra({"simulated": simulate(made).makespan / case.seconds, "messages": len(made.messages)})
    rows = [
        harness.row(
            f"case {number}: planned", ours, bound, "lower bound", ours / bound, GOAL, "T", known=known[0], **columns
        )
    ]
    table = dict(zip(COLUMNS, known[1:], strict=True))
    for name, units in others(case).items():
        rows.append(
            harness.row(f"case {number}: planned", ours, units, name, ours / units, unit="T", known=table.get(name))
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    numbers = (1, 5) if args.quick else case_numbers()
    rows = [row for number in numbers for row in rows_of(number, 8 if args.quick else 1)]
    harness.save(NAME, args, rows, NOTES)


if __name__ == "__main__":
    main()
