"""Schedules with their certificates on the original's graphs, against the paper's program and others; runs on cpu.

Needs the dependency group ``peers``.
"""

import harness  # isort: skip  (one thread: before numpy)

import time
import warnings
from collections.abc import Callable, Sequence

from harness import Outcome, Row

from poet import Device, legacy
from poet.problem import Problem, formulate
from poet.reference import solve_reference
from poet.schedule import Found, Limits, Status
from poet.stages import StepError
from poet.tight import solve_tight

NAME = "bench_certificates"
SHARES = (0.6, 0.4, 0.2)
JUDGED = 0.4  # the share with a goal; it has the long limit
LONG, SHORT = 120.0, 30.0
GAP = 0.05  # percentage points
END = 1e-5  # gap, as a share of the plain step's cost, at which everyone may stop
LEAST = {"BERT": "bert", "ResNet-50": "resnet50"}
MOST, WITHIN = 0.25, 60.0  # percent, seconds


def paper(problem: Problem, limits: Limits) -> Found:
    """The paper's program; nothing where the time limit leaves no solution, for which cvxpy gives back numbers too."""
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Solution may be inaccurate")  # the time limit ended it
        try:
            return solve_reference(problem, limits, "HIGHS")
        except StepError:
            spent = time.perf_counter() - began
            return Found(Status.UNKNOWN, None, problem.baseline_cost, "reference-HIGHS", spent)


PEERS: dict[str, Callable[[Problem, Limits], Found]] = {
    "tightened program, scipy's HiGHS": solve_tight,
    "the paper's program, cvxpy and HiGHS": paper,
}
CPSAT = "the same grids by CP-SAT"
NOTES = (
    "The original's own graphs, faults included, batch 1; deadline twice the plain step's duration, transfers take no "
    "time, as in the paper. RAM as a share of the forward pass's bytes. Overhead, bound and gap in percent of the "
    "plain step's modelled energy; a bound of 0 says that nothing was proved. Ours is poet.solve as it is (one thread "
    "for schedules, one for bounds). The paper's program and the tightened one run the solver with the same limit, "
    "which does not count the seconds that stating the program takes; their class of schedules is the paper's, in "
    "which a value that is paged in counts from the next stage on. Every schedule was judged by poet.verify. "
    "ResNet-18-CIFAR at 40 % had 120 s for everyone, the other shares 30 s; who closes the gap to 0.001 percentage "
    "points (the solvers of the programs: relative to the cost) stops earlier."
)


def problem_of(name: str, device: str, ram: int) -> Problem:
    """A step of the original's with its deadline."""
    return formulate(legacy.graph(name), Device.load(device), ram, 2.0, paging="free")


def against(label: str, problem: Problem, mine: Outcome, seconds: float) -> list[Row]:
    """Rows of the peers."""
    rows = []
    made = {name: harness.engine(problem, seconds, peer, END) for name, peer in PEERS.items()}
    made[CPSAT] = harness.ours(problem, seconds, gap=END, solver="cpsat")
    for name, peer in made.items():
        rows.append(
            harness.row(
                f"{label}: overhead",
                harness.number(mine.overhead),
                harness.number(peer.overhead),
                name,
                harness.ratio(mine.overhead, peer.overhead),
                unit="%",
                **peer.columns("peer_"),
            )
        )
        print(harness.line(rows[-1]), flush=True)
    return rows


def small(args: harness.argparse.Namespace) -> list[Row]:
    """ResNet-18-CIFAR on the Cortex-M4F."""
    name = "linear" if args.quick else "resnet18_cifar"
    graph = legacy.graph(name)
    cases = {f"{share:.0%}": int(share * graph.forward_bytes) for share in SHARES}
    if args.quick:
        cases = {"60%": int(0.6 * graph.forward_bytes)}
    else:
        cases["262144 B"] = 262144
    rows = []
    for case, ram in cases.items():
        judged = case == f"{JUDGED:.0%}"
        seconds = args.limit or (2.0 if args.quick else LONG if judged else SHORT)
        problem, label = problem_of(name, "nrf52840", ram), f"{name}, {case} on nrf52840"
        mine = harness.ours(problem, seconds, gap=END)
        goal = GAP if judged else None
        near = mine.course.seconds_to(GAP / 100)
        rows += [
            harness.row(f"{label}: gap", harness.number(mine.gap), None, "proved bound", goal=goal,
                        unit="percentage points", **mine.columns()),
            harness.row(f"{label}: until the gap was {GAP}", near, None, "proved bound", goal=LONG if judged else None),
        ]  # fmt: skip
        print(*map(harness.line, rows[-2:]), sep="\n", flush=True)
        rows += against(label, problem, mine, seconds)
    return rows


def least(args: harness.argparse.Namespace) -> list[Row]:
    """The large steps in the least RAM that any schedule needs."""
    rows = []
    for title, name in {"toy": "transformer"}.items() if args.quick else LEAST.items():
        ram = legacy.graph(name).largest_working_set
        problem = problem_of(name, "rpi4b", ram)
        mine = harness.ours(problem, args.limit or (2.0 if args.quick else WITHIN))
        near = next((s for s, above, _ in mine.course.points if 100 * above <= MOST), None)
        label = f"{title}, least RAM ({ram} B) on rpi4b"
        rows += [
            harness.row(f"{label}: overhead", harness.number(mine.overhead), None, "proved bound",
                        goal=None if args.quick else MOST, unit="%", **mine.columns()),
            harness.row(f"{label}: until the overhead was {MOST} %", near, None, "proved bound",
                        goal=None if args.quick else WITHIN),
        ]  # fmt: skip
        print(*map(harness.line, rows[-2:]), sep="\n", flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = harness.options(NAME, argv)
    harness.save(NAME, args, [*small(args), *least(args)], NOTES)


if __name__ == "__main__":
    main()
