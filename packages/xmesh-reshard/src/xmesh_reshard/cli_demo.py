"""What `xmesh-reshard demo` shows: one source to many, an order that matters, a pipeline that hides its transfers."""

from typing import Any

from common_core.console import table
from xmesh_reshard.baselines import naive_broadcast
from xmesh_reshard.cases import multi_host_case, one_to_many_case
from xmesh_reshard.cli_show import compare, compare_table, gantt_text
from xmesh_reshard.explain import seconds_text
from xmesh_reshard.network import simulate
from xmesh_reshard.pipeline import schedule
from xmesh_reshard.planning import plan

_METHODS = ("send_recv", "local_allgather", "global_allgather")
_PORTS = tuple(f"host{h} nic0 {way}" for way, hosts in (("out", (0, 1)), ("in", (2, 3))) for h in hosts)


def facts() -> dict[str, Any]:
    """Times of methods for one source and 4 hosts; two orders of case 3, as charts; schedules of a pipeline."""
    wide = one_to_many_case(4, 2)
    narrow = multi_host_case(3)
    best = plan(narrow.transfers, narrow.topology)
    orders = {
        "in the order of the boxes": simulate(naive_broadcast(narrow.transfers, narrow.topology), in_flight=1),
        "planned": simulate(best, in_flight=1),
    }
    longest = max(run.makespan for run in orders.values())
    pipeline = {
        kind: {
            name: schedule(kind, 4, 16).simulate(tf=1, tb=2, comm=1, overlap=overlap).makespan
            for name, overlap in (("blocking", False), ("overlap", True))
        }
        for kind in ("1f1b", "eager-1f1b")
    }
    return {
        "multicast": compare(wide, plan(wide.transfers, wide.topology), _METHODS),
        "orders": {name: run.makespan for name, run in orders.items()},
        "order_bound": best.lower_bound,
        "charts": {name: gantt_text(run, _PORTS, longest) for name, run in orders.items()},
        "pipeline": pipeline,
        "pipeline_bound": schedule("eager-1f1b", 4, 16).simulate(tf=1, tb=2, comm=1).lower_bound,
    }


def shown(data: dict[str, Any]) -> list[Any]:
    """The facts for people."""
    parts: list[Any] = ["1 GiB from one device to 4 hosts with 2 devices each, 10 Gbit/s:\n"]
    parts += [compare_table(data["multicast"]), "\nThe order alone (case 3 of the paper, 2 GiB; digits are messages):"]
    for name, chart in data["charts"].items():
        parts.append(f"\n{name}: {seconds_text(data['orders'][name])}\n{chart}")
    parts.append(f"\nNo plan takes less than {seconds_text(data['order_bound'])}.")
    parts.append("\nA pipeline of 4 stages, 16 microbatches, 1 s forward, 2 s backward, 1 s a transfer:\n")
    rows = [(kind, f"{row['blocking']:g} s", f"{row['overlap']:g} s") for kind, row in data["pipeline"].items()]
    parts.append(table(["schedule", "transfers block", "transfers overlap"], rows))
    parts.append(f"\nNo schedule takes less than {data['pipeline_bound']:g} s. All figures are simulated.")
    return parts
