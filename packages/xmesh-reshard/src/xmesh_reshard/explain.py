"""A plan in words and tables, for people."""

import math
from typing import SupportsFloat

import numpy as np
from rich.table import Table

from common_core.console import as_text, table
from xmesh_reshard.assigning import assign
from xmesh_reshard.baseline_tasks import needs_between_hosts, work_of
from xmesh_reshard.plans import Plan

_ROWS = 16  # rows of a table before the rest is counted


def explain(plan: Plan) -> str:
    """What a plan does and why: bytes, bound, loads of the cards, methods, busiest links, buffers, notes.

    Args:
        plan: The plan.

    Returns:
        Lines of text.

    Example:
        >>> from xmesh_reshard.baselines import size_only
        >>> from xmesh_reshard.cases import multi_host_case
        >>> case = multi_host_case(2, scale=8)
        >>> print(explain(size_only(case.transfers, case.topology)).splitlines()[0])
        1 tensor (4 MiB) between 16 devices on 4 hosts: 2 messages
    """
    parts: list[Table | str] = [_headline(plan), *_totals(plan)]
    for made in (_cards(plan), _methods(plan), _links(plan)):
        if made is not None:
            parts += ["", made]
    parts += ["", *_buffers(plan), *(f"Note: {note}." for note in plan.notes)]
    return as_text(parts)


def bytes_text(nbytes: SupportsFloat) -> str:
    """Bytes for people.

    Args:
        nbytes: How many.

    Example:
        >>> bytes_text(1536), bytes_text(12)
        ('1.5 KiB', '12 B')
    """
    size = float(nbytes)
    steps = min(5, max(0, int(math.log2(max(1.0, size)) // 10)))
    return f"{size / 1024**steps:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[steps]}"


def seconds_text(seconds: SupportsFloat) -> str:
    """Seconds for people.

    Args:
        seconds: How many.

    Example:
        >>> seconds_text(0.0123), seconds_text(2.5e-6), seconds_text(75)
        ('12.3 ms', '2.5 µs', '75 s')
    """
    seconds = float(seconds)
    if math.isnan(seconds):
        return "not known"
    if seconds == 0 or seconds >= 1:
        return f"{seconds:.4g} s"
    return f"{seconds * 1e3:.4g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.4g} µs"


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _headline(plan: Plan) -> str:
    hosts = {plan.topology.host_of[d] for d in plan.devices}
    total = sum(len(g.names) * g.transfer.source.nbytes for g in plan.groups)
    return (
        f"{_count(len(plan.tensors), 'tensor')} ({bytes_text(total)}) between {_count(len(plan.devices), 'device')} on"
        f" {_count(len(hosts), 'host')}: {_count(len(plan.tables.nbytes), 'message')}"
    )


def _totals(plan: Plan) -> list[str]:
    """What must move and does, and the bound."""
    work = work_of(plan.tensors, plan.topology)
    needs = needs_between_hosts(work)
    needed = sum(len(need.receivers) * need.nbytes for need in needs)
    moved, inside = plan.network_bytes, int(np.trace(plan.bytes_matrix()))
    kept = sum(box.nbytes for _, box in work.copies)
    more = f" ({moved / needed:.3g} times)" if needed and moved != needed else ""
    lines = [
        f"Between hosts at least {bytes_text(needed)} must move, {bytes_text(moved)} do{more}.",
        f"Inside hosts {bytes_text(inside)} move; {bytes_text(kept)} are there already.",
        f"Planned time {seconds_text(plan.makespan)}, lower bound {seconds_text(plan.lower_bound)}: {_gap(plan)}.",
    ]
    if needs:
        found = assign(needs, plan.topology)
        lines.append(f"The network cannot do it in less than {seconds_text(found.seconds)}: {found.cause}.")
    return lines


def _gap(plan: Plan) -> str:
    if math.isnan(plan.makespan):
        return "no time was planned"
    if plan.gap <= 1e-9:
        return "it cannot be faster"
    return f"{100 * plan.gap:.3g} % above what no plan can beat" if math.isfinite(plan.gap) else "no bound is known"


def _cards(plan: Plan) -> Table | None:
    """Load of each network card, the longest at work first."""
    rows = []
    nics = {(host.name, k): nic for host in plan.topology.hosts for k, nic in enumerate(host.nics)}
    for (name, k), (out, into) in plan.nic_bytes().items():
        times = out / nics[name, k].up, into / nics[name, k].down
        if out or into:
            rows.append(
                (max(times), [f"{name} card {k}", bytes_text(out), bytes_text(into), *map(seconds_text, times)])
            )
    if not rows:
        return None
    rows.sort(key=lambda row: -row[0])
    longest = [
        [*cells, f"{100 * seconds / plan.makespan:.3g} %" if plan.makespan > 0 else "–"] for seconds, cells in rows
    ]
    return _table("Network cards", ["card", "out", "in", "out takes", "in takes", "of the time"], longest)


def _methods(plan: Plan) -> Table | None:
    """Messages by method and number of hops."""
    t = plan.tables
    if not len(t.nbytes):
        return None
    hops, chunks = np.diff(t.hop_ptr), np.maximum(1, -(-t.nbytes // t.chunk))
    kinds = np.where(hops == 1, 0, np.where(t.star > 0, 1, 2))
    rows = []
    for kind, name in enumerate(("to one receiver", "to each receiver separately", "along a chain or tree")):
        if (mine := kinds == kind).any():
            low, high = int(chunks[mine].min()), int(chunks[mine].max())
            cells = [str(int(mine.sum())), bytes_text(int(t.nbytes[mine].sum())), str(int(hops[mine].max()))]
            sizes = f"{bytes_text(int(t.chunk[mine].min()))} to {bytes_text(int(t.chunk[mine].max()))}"
            rows.append([name, *cells, f"{low} to {high}" if low < high else str(low), sizes])
    return _table("Methods", ["method", "messages", "bytes", "hops at most", "chunks", "bytes of a chunk"], rows)


def _links(plan: Plan) -> Table | None:
    """Pairs of hosts with the most bytes between them."""
    matrix, hosts = plan.bytes_matrix(), plan.topology.hosts
    pairs = [(int(matrix[a, b]), a, b) for a, b in np.argwhere(matrix > 0).tolist() if a != b]
    if not pairs:
        return None
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    rows = [[f"{hosts[a].name} → {hosts[b].name}", bytes_text(n)] for n, a, b in pairs]
    return _table("Busiest links", ["from → to", "bytes"], rows, 8)


def _buffers(plan: Plan) -> list[str]:
    """The two largest messages of each device, as :meth:`Plan.buffer_bytes` has them, for all devices at once."""
    t = plan.tables
    if not len(t.nbytes):
        return ["No buffers are needed."]
    message = np.tile(np.repeat(np.arange(len(t.nbytes)), np.diff(t.hop_ptr)), 2)
    pairs = np.unique(np.stack([np.concatenate([t.hop_source, t.hop_target]), message], axis=1), axis=0)
    size = t.nbytes[pairs[:, 1]]
    order = np.lexsort((-size, pairs[:, 0]))
    device, size = pairs[order, 0], size[order]
    first = np.flatnonzero(np.diff(device, prepend=-1))
    place = np.arange(len(device)) - np.repeat(first, np.diff(first, append=len(device)))
    need = np.bincount(device[place < 2], size[place < 2])
    return [f"Buffers take at most {bytes_text(int(need.max()))}, on device {int(need.argmax())}."]


def _table(title: str, columns: list[str], rows: list[list[str]], most: int = _ROWS) -> Table:
    shown = rows[:most]
    if len(rows) > most:
        shown = [*shown, [f"and {len(rows) - most} more", *[""] * (len(columns) - 1)]]
    return table(columns, shown, title)
