"""How answers look in a terminal: comparisons of methods, charts of ports in characters, pipelines."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common_core.console import table
from xmesh_reshard.baselines import PLANS
from xmesh_reshard.cases import Case
from xmesh_reshard.collectives import COLLECTIVES
from xmesh_reshard.explain import bytes_text, seconds_text
from xmesh_reshard.moves import Collective
from xmesh_reshard.network import Simulation, simulate
from xmesh_reshard.plans import Plan

WORDS = {
    "plan": "planned",
    "send_recv": "send/recv, first holder",
    "send_recv_balanced": "send/recv, balanced",
    "round_robin": "send/recv, round-robin",
    "naive_broadcast": "broadcast, naive order",
    "size_only": "broadcast, balanced by size",
    "paper_broadcast": "broadcast, the paper's order",
    "tree_broadcast": "broadcast, binomial trees",
    "local_allgather": "all-gather inside hosts",
    "global_allgather": "all-gather over all",
    "gather_broadcast": "gather, then broadcast",
}
METHODS: Mapping[str, Callable[..., Plan | Collective]] = {**PLANS, **COLLECTIVES}
_SYMBOLS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
Row = dict[str, Any]


def network_bytes(made: Plan | Collective) -> int:
    """Bytes that cross between hosts."""
    if isinstance(made, Plan):
        return made.network_bytes
    return sum(move.nbytes for move in made.moves for hop in move.hops if hop.out >= 0)


def times(made: Plan | Collective) -> tuple[float, float]:
    """Simulated seconds in the plan's order, two messages under way at a device, and with all sent off at once."""
    ordered = simulate(made).makespan
    return (ordered, simulate(made, in_flight=None).makespan) if isinstance(made, Plan) else (ordered, ordered)


def compare(case: Case, plan: Plan, methods: Sequence[str]) -> list[Row]:
    """The plan and each named method in the simulator.

    Args:
        case: Tensors and network.
        plan: Ours.
        methods: Names of `METHODS`.

    Raises:
        ValueError: There is no such method.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ValueError(f"there is no method {unknown[0]!r} to compare with; there are {', '.join(METHODS)}")
    rows: list[Row] = []
    for name in ("plan", *methods):
        made = plan if name == "plan" else METHODS[name](case.transfers, case.topology)
        ordered, at_once = times(made)
        rows.append({"method": name, "seconds": ordered, "at_once": at_once, "network_bytes": network_bytes(made)})
    for row in rows:
        row["to_bound"] = min(row["seconds"], row["at_once"]) / plan.lower_bound if plan.lower_bound else None
    return rows


def compare_table(rows: Sequence[Row]) -> Any:
    """What `compare` found."""
    least = min(row["network_bytes"] for row in rows)
    head = ["method", "in order", "all at once", "better of both / bound", "between hosts"]
    cells = [
        (
            WORDS[row["method"]], seconds_text(row["seconds"]), seconds_text(row["at_once"]),
            "–" if row["to_bound"] is None else f"{row['to_bound']:.3f}",
            bytes_text(row["network_bytes"])
            + (f" ({row['network_bytes'] / least:.3g} ×)" if least and row["network_bytes"] != least else ""),
        )
        for row in rows
    ]  # fmt: skip
    return table(head, cells)


def gantt_text(run: Simulation, ports: Sequence[str], seconds: float, columns: int = 48) -> str:
    """A row of characters for each port: the message that it carries, a dot where it is idle.

    Args:
        run: A simulation.
        ports: Rows.
        seconds: Time of the whole width.
        columns: Characters.
    """
    width = max(map(len, ports), default=0)
    lines = []
    for name in ports:
        row = ["·"] * columns
        if name in run.port_names:
            mine = run.bar_port == run.port_names.index(name)
            bars = zip(run.bar_start[mine], run.bar_end[mine], run.bar_message[mine], strict=True)
            for start, end, message in sorted(bars):
                first, last = round(start / seconds * columns), round(end / seconds * columns)
                row[first:last] = _SYMBOLS[int(message) % len(_SYMBOLS)] * (min(last, columns) - first)
        lines.append(f"{name:>{width}} {''.join(row[:columns])}")
    return "\n".join(lines)


def schedule_table(rows: Sequence[Row], bound: float) -> Any:
    """Kinds of schedules side by side."""
    head = ["schedule", "overlapped", "blocking", "overlapped / bound", "stands still", "activations held"]
    cells = [
        (
            row["kind"], _seconds(row["overlap"]), _seconds(row["blocking"]), f"{row['overlap'] / bound:.3f}",
            _seconds(max(row["exposed"])), " ".join(map(str, row["peak_inflight"])),
        )
        for row in rows
    ]  # fmt: skip
    return table(head, cells)


def _seconds(value: float) -> str:
    return "deadlock" if value == float("inf") else f"{value:g} s"
