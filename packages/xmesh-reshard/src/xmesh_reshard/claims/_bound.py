"""Claims: planned makespans meet the lower bound; balance and order both matter."""

from collections.abc import Mapping
from typing import Any

from common_core.claims import Check, Claim, Estimate, Outcome, at_least, at_most, report_progress
from xmesh_reshard.baseline_tasks import work_of
from xmesh_reshard.baselines import blocking_tasks
from xmesh_reshard.blocking import blocking_makespan, naive_order, port_bound, size_only_order
from xmesh_reshard.cases import case_numbers, multi_host_case
from xmesh_reshard.claims._cases import ALPHA, DRAWS, RUNS, executable
from xmesh_reshard.claims.trials import links, measured
from xmesh_reshard.network import simulate
from xmesh_reshard.planning import plan

_BOUND = {k: 1.0 if k in (7, 8) else 0.5 for k in case_numbers()}
_NAIVE = {1: 0.5, 2: 1.0, 3: 0.75, 4: 0.9375, 5: 1.0, 6: 1.0, 7: 1.0, 8: 1.0, 9: 0.75}
_SIZE = {1: 0.5, 2: 0.5, 3: 0.75, 4: 0.9375, 5: 0.75, 6: 1.0, 7: 1.0, 8: 1.0, 9: 0.75}
_WAYS = ("neither", "balance", "order", "both")


def run_bound(scale: str, seed: int, device: str) -> Outcome:
    """Planned, simulated and bound in units of T for the nine cases, and the two orders known to be worse."""
    rows: dict[int, dict[str, float]] = {}
    for k in case_numbers():
        case = multi_host_case(k)
        made = plan(case.transfers, case.topology)
        tasks = blocking_tasks(work_of(case.transfers, case.topology))
        rows[k] = {
            "planned": made.makespan / made.lower_bound,
            "simulated": simulate(made).makespan / made.lower_bound,
            "bound": made.lower_bound / case.seconds,
            "naive": blocking_makespan(tasks, naive_order(tasks)) / case.seconds,
            "size": blocking_makespan(tasks, size_only_order(tasks)) / case.seconds,
        }
    metrics = {
        "planned": max(row["planned"] for row in rows.values()),
        "simulated": max(row["simulated"] for row in rows.values()),
        "bound_off": max(abs(row["bound"] - _BOUND[k]) for k, row in rows.items()),
        "naive_off": max(abs(row["naive"] - _NAIVE[k]) for k, row in rows.items()),
        "size_off": max(abs(row["size"] - _SIZE[k]) for k, row in rows.items()),
        "naive_most": max(row["naive"] / row["bound"] for row in rows.values()),
        "size_most": max(row["size"] / row["bound"] for row in rows.values()),
    }
    return Outcome(metrics, _draw_bound(rows))


def _draw_bound(rows: Mapping[int, Mapping[str, float]]) -> dict[str, str]:
    from common_core.plotting import svg
    from xmesh_reshard.plots import bars_figure, gantt

    series = {
        "planned": {f"case {k}": row["planned"] * row["bound"] for k, row in rows.items()},
        "naive order": {f"case {k}": row["naive"] for k, row in rows.items()},
        "balanced by size": {f"case {k}": row["size"] for k, row in rows.items()},
    }
    bounds = {f"case {k}": row["bound"] for k, row in rows.items()}
    case = multi_host_case(5)
    made = plan(case.transfers, case.topology)
    slow = executable("naive_broadcast", case)
    return {
        "Time and lower bound": svg(bars_figure(series, bounds)),
        "Case 5 as planned: what the cards carry": svg(gantt(made)),
        "Case 5 in naive order": svg(gantt(simulate(slow, in_flight=1), bound=made.lower_bound)),
    }


def holds_bound(metrics: Mapping[str, Estimate]) -> list[Check]:
    """The bound met to a thousandth, and the known values of bound, naive and size-only orders reproduced exactly."""
    return [
        at_most("planned over lower bound, at worst", metrics["planned"], 1.001),
        at_most("simulated over lower bound, at worst", metrics["simulated"], 1.001),
        at_most("lower bound off its known value", metrics["bound_off"], 1e-12),
        at_most("naive order off its known value", metrics["naive_off"], 1e-12),
        at_most("size-only balance off its known value", metrics["size_off"], 1e-12),
    ]


def run_ablation(scale: str, seed: int, device: str) -> Outcome:
    """Times with neither balance nor order, with one of them, and with both, over the bound."""
    rows: dict[int, dict[str, float]] = {}
    for k in case_numbers():
        case = multi_host_case(k)
        made = plan(case.transfers, case.topology)
        tasks = blocking_tasks(work_of(case.transfers, case.topology))
        first = naive_order(tasks)
        rows[k] = {
            "neither": blocking_makespan(tasks, first) / made.lower_bound,
            "balance": blocking_makespan(tasks, size_only_order(tasks)) / made.lower_bound,
            "order": port_bound(tasks, first) / made.lower_bound,
            "both": made.makespan / made.lower_bound,
        }
    good = 1.001
    kinds = {
        "balance_alone": [k for k, row in rows.items() if row["balance"] < good < row["order"]],
        "order_alone": [k for k, row in rows.items() if row["order"] < good < row["balance"]],
        "both_needed": [k for k, row in rows.items() if row["both"] < good < min(row["balance"], row["order"])],
    }
    metrics: dict[str, float | Estimate] = {name: float(len(found)) for name, found in kinds.items()}
    metrics["both"] = max(row["both"] for row in rows.values())
    for name in _WAYS[:3]:
        metrics[f"{name}_most"] = max(row[name] for row in rows.values())
    if scale != "quick":
        metrics |= _measured(seed)
    return Outcome(metrics, {"Over the lower bound": _draw_ablation(rows)})


def _measured(seed: int) -> dict[str, float | Estimate]:
    """Naive over planned on real processes, one message at a time at a device, and for case 3 two as well."""
    found: dict[str, float | Estimate] = {}
    how, work, wrong = links(), ((2, 1), (5, 1), (3, 1), (3, 2)), 0
    for number, (k, window) in enumerate(work):
        report_progress(number, len(work), f"case {k} on real processes")
        case = multi_host_case(k, 8, nic="15MB/s", alpha=ALPHA)
        ours, other = (measured(executable(way, case), seed, how, 3, window) for way in ("plan", "naive_broadcast"))
        found[f"measured_{k}" + "_two" * (window == 2)] = other.seconds / ours.seconds
        wrong += ours.wrong + other.wrong
    return {**found, "wrong": float(wrong)}


def _draw_ablation(rows: Mapping[int, Mapping[str, float]]) -> str:
    from common_core.plotting import svg
    from xmesh_reshard.plots import bars_figure

    names = {"neither": "neither", "balance": "balance alone", "order": "order alone, at best", "both": "both"}
    series = {text: {f"case {k}": row[name] for k, row in rows.items()} for name, text in names.items()}
    return svg(bars_figure(series, {f"case {k}": 1.0 for k in rows}, label="time over lower bound"))


def holds_ablation(metrics: Mapping[str, Estimate]) -> list[Check]:
    """There are cases of each kind, and with both every case meets the bound."""
    checks = [
        at_least("cases in which balance alone is enough and order alone is not", metrics["balance_alone"], 1),
        at_least("cases in which order alone is enough and balance alone is not", metrics["order_alone"], 1),
        at_least("cases that need both", metrics["both_needed"], 1),
        at_most("with both, over the lower bound at worst", metrics["both"], 1.001),
    ]
    if "wrong" in metrics:
        checks += [
            at_least("measured: naive over ours in case 2 (balance; model 2)", metrics["measured_2"], 1.5),
            at_least("measured: naive over ours in case 3 (order; model 1.5)", metrics["measured_3"], 1.2),
            at_least("measured: naive over ours in case 5 (both; model 2)", metrics["measured_5"], 1.5),
            at_most("wrong results", metrics["wrong"], 0.0),
        ]
    return checks


_SETTING = (
    "The paper's nine cases as its benchmark declares them; 7 and 8 are the same transfer there. "
    "Naive and size-only orders are timed in the paper's own model (whole tasks, one at a "
    "time on every port)"
)

CLAIMS: tuple[Any, ...] = (
    Claim(
        id="xmesh-reshard.meets-bound",
        statement=(
            "The planned makespan equals the lower bound in all nine of the paper's cases, where broadcasts in naive "
            "order or balanced by size alone take up to twice as long."
        ),
        source="Section 3.2; Section 5.1, Table 2",
        paper="faster than naive and size-only in most cases; no bound given",
        run=run_bound,
        holds=holds_bound,
        headline=(
            "planned at most {planned:.5f} of the bound, simulated {simulated:.5f}; naive order up to "
            "{naive_most:.2f}, balanced by size up to {size_most:.2f}"
        ),
        differs=f"{_SETTING}; ours in chunks of 64 KiB and more without a cost for each. Quick and full are the same.",
        requires=DRAWS,
    ),
    Claim(
        id="xmesh-reshard.balance-and-order",
        statement=(
            "Choosing senders and choosing the order each matter: some cases need the one, some the other, some both."
        ),
        source="Section 5.1.2, the ablation",
        paper="load balance alone against balance and order: visible in cases 3, 4, 6 and 9",
        run=run_ablation,
        holds=holds_ablation,
        headline=(
            "{balance_alone:.0f} case(s) need only balance, {order_alone:.0f} only order, {both_needed:.0f} both; over "
            "the bound at most {balance_most:.2f} with balance alone, {order_most:.2f} with order alone, {both:.5f} "
            "with both"
        ),
        differs=(
            f"{_SETTING}. 'Order alone' is the best that any order can do with the first holder as sender: the load of "
            "the busiest port. Full also measures naive order against ours on gloo processes at small sizes and rates, "
            "one message at a time at a device, as the paper's broadcasts work; with two under way, which is what our "
            "transport does by default, a wait is often filled by the next message, and the order matters less "
            "(measured_3_two)."
        ),
        requires=RUNS,
    ),
)
