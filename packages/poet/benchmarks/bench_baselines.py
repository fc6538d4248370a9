"""Joint recomputation and paging against everything else, on corrected graphs; and chains against checkpoint-schedules.

Runs on cpu; needs the dependency group ``peers``.
"""

import harness  # isort: skip  (one thread: before numpy)

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness import Outcome, Row

from poet import Device, Graph, Tier, zoo
from poet.baselines import all_resident, best_segments, per_block, restrict, square_root
from poet.baselines_chain import hrevolve, revolve
from poet.baselines_online import capuchin, dtr, page_only
from poet.explain import floor_ram
from poet.problem import Problem, formulate
from poet.rounding import solve_rounding
from poet.schedule import Found, Limits
from poet.theory_chains import chain_executions, joint_chain

NAME = "bench_baselines"
STEPS = {
    "ResNet-18-CIFAR": ("resnet18_cifar", ("nrf52840", "mkr1000")),
    "VGG-16-CIFAR": ("vgg16_cifar", ("nrf52840", "rpi4b")),
    "ResNet-50": ("resnet50", ("rpi4b",)),
    "BERT": ("bert", ("rpi4b",)),
}
SHARES = (0.8, 0.6, 0.4, 0.0)
ROUNDED = 250  # operations up to which the paper's program is relaxed and rounded
CLASSICAL: Mapping[str, Callable[[Problem, Limits], Found]] = {
    "everything resident": all_resident,
    "sqrt(n) checkpoints": square_root,
    "best number of checkpoints": best_segments,
    "checkpoint per block": per_block,
    "Revolve": revolve,
    "HRevolve": hrevolve,
    "paging, Belady": page_only,
    "Capuchin's rule": capuchin,
    "DTR's rule": dtr,
}
CHAIN, SNAPSHOTS = 20, (2, 3, 5)
NOTES = (
    "Corrected graphs, batch 1, parameters updated as their gradients appear (gradients='apply'). RAM: a share of the "
    "way from the least that the largest operation allows ('minimum') to what the plain step needs. No deadline, "
    "transfers overlap, modelled energy; overheads in percent of the plain step's. Every search has the same time "
    "limit, 4 s unless given. 'Joint' starts from its own classical schedules and from all those that the others "
    "found, so that it can only be as good or better; 'joint alone' does not see the others'. Rounding is of the "
    "paper's program's relaxation, up to 250 operations. A null in 'others': nothing of that kind fits, or the step is "
    "not of its kind; such rows have no ratio where nothing else fits. Devices are profiles, and the steps of "
    "large networks on them are models: parameters alone may exceed their RAM. "
    "Chains: 20 steps; executions of forward steps, one with tape for each step among them. Here an operation's "
    "input and output are both in memory while it runs, where Revolve advances in place; its schedule for c snapshots, "
    "the first of which is the input (static here), fits c + 1 places, and with those ours may need fewer executions. "
    "checkpoint-schedules' disk costs 2 for a write and 2 for a read."
)


def others_on(problem: Problem, seconds: float) -> dict[str, Outcome]:
    """What the others make of a problem; those that do not apply are left out."""
    made = {
        "recomputation alone": harness.ours(restrict(problem, tiers=()), seconds),
        "paging alone": harness.ours(restrict(problem, recompute=False), seconds),
        "CP-SAT": harness.ours(problem, seconds, solver="cpsat"),
    }
    more = dict(CLASSICAL)
    if len(problem.graph.ops) <= ROUNDED:
        more["relaxation, rounded"] = solve_rounding
    for name, method in more.items():
        try:
            made[name] = harness.engine(problem, seconds, method)
        except ValueError:  # not a graph of its kind
            continue
    return made


def case(label: str, problem: Problem, seconds: float) -> list[Row]:
    """Rows of one problem."""
    others = others_on(problem, seconds)
    alone = harness.ours(problem, seconds)
    starts = [o.events for o in others.values() if o.events is not None]
    joint = harness.ours(problem, seconds, starts=starts)
    name, best = min(others.items(), key=lambda item: item[1].overhead)
    table = {key: harness.number(o.overhead) for key, o in others.items()}
    faults = sum(not o.valid for o in (*others.values(), alone, joint))
    rows = []
    for title, mine in (("joint", joint), ("joint alone", alone)):
        costs = 100 + mine.overhead, 100 + best.overhead
        relative = harness.ratio(*costs)
        relative = None if relative is None else round(relative, 9)
        goal = 1.0 if mine is joint and relative is not None else None
        extra: dict[str, Any] = {"others": table, "broken_schedules": faults} if mine is joint else {}
        rows.append(
            harness.row(
                f"{label}: {title}", harness.number(costs[0]), harness.number(costs[1]), name, relative, goal,
                "% of the plain step", **mine.columns(), **extra,
            )
        )  # fmt: skip
    return rows


def networks(args: harness.argparse.Namespace) -> list[Row]:
    """Rows of the networks."""
    rows = []
    for title, (name, devices) in ({"MLP": ("mlp", ("nrf52840",))} if args.quick else STEPS).items():
        graph = zoo.load(name, gradients="apply")
        for device in devices:
            for share in SHARES[1:2] if args.quick else SHARES:
                amount = f"{share:.0%}" if share else "minimum"
                problem = problem_of(graph, Device.load(device), share)
                label = f"{title} on {device}, {amount}"
                some = case(label, problem, args.limit or (1.0 if args.quick else 4.0))
                print(*map(harness.line, some), sep="\n", flush=True)
                rows += some
    return rows


def problem_of(graph: Graph, device: Device, share: float) -> Problem:
    """The step with a limit that lies this share of the way from the least to the plain step's peak."""
    least, most = floor_ram(formulate(graph, device, 1)), graph.static.total + graph.resident_peak
    return formulate(graph, device, least + int(share * (most - least)))


def chains(args: harness.argparse.Namespace) -> list[Row]:
    """Rows of the chains."""
    from checkpoint_schedules import HRevolve, Revolve

    steps, rows = (6, []) if args.quick else (CHAIN, [])
    limit = args.limit or (1.0 if args.quick else 5.0)
    graph = joint_chain(steps - 1)  # the states after the input; the last step is only ever executed with its tape
    for snapshots in SNAPSHOTS[:1] if args.quick else SNAPSHOTS:
        places, label = snapshots + 1, f"chain of {steps}, {snapshots} snapshots"
        toy = Device("toy", flops_per_second=1.0, compute_power=1.0)
        mine = executed(harness.ours(formulate(graph, toy, places, objective="time"), limit), steps)
        least, peer = chain_executions(steps - 1, places) + steps, forward(Revolve(steps, snapshots))[0]
        two = toy.with_tiers(Tier("disk", 0.0, 0.5, 0.0, 0.5))
        both = harness.ours(formulate(graph, two, places, objective="time", paging="serial"), limit)
        ahead, writes, reads = forward(HRevolve(steps, snapshots, steps))
        against = ahead + 2 * (writes + reads)
        rows += [
            harness.row(f"{label}: executions", mine, least, "the recurrence's optimum", mine / least, 1.0, "ops"),
            harness.row(f"{label}: executions", mine, peer, "checkpoint-schedules' Revolve", mine / peer, 1.0, "ops"),
            harness.row(f"{label}, a disk: cost", executed(both, steps), against, "checkpoint-schedules' HRevolve",
                        executed(both, steps) / against, 1.0, "ops", **both.columns()),
        ]  # fmt: skip
    return rows


def executed(outcome: Outcome, steps: int) -> float:
    """Forward executions and transfers: all but the backward operations, and one for the tape of each step."""
    return round(2 * (steps - 1) * (1 + outcome.overhead / 100) - (steps - 1) + steps, 6)


def forward(schedule: Any) -> tuple[int, int, int]:
    """Forward steps, writes to disk and reads from disk of a schedule of checkpoint-schedules."""
    from checkpoint_schedules import Copy, Forward, Move, StorageType

    steps = writes = reads = 0
    for action in schedule:
        if isinstance(action, Forward):
            steps += action.n1 - action.n0
            writes += action.write_ics and action.storage == StorageType.DISK
        elif isinstance(action, Copy | Move):
            reads += action.from_storage == StorageType.DISK
        if schedule.is_exhausted:
            break
    return steps, writes, reads


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    rows = chains(args)
    print(*map(harness.line, rows), sep="\n", flush=True)
    harness.save(NAME, args, [*rows, *networks(args)], NOTES, ["checkpoint-schedules"])


if __name__ == "__main__":
    main()
