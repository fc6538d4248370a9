"""What people do today, as plans: point to point, and broadcasts without a plan for senders and order.

These plans are right and can be executed by every transport; they are only slower. Collectives that no plan of trees
describes (all-gather, gather) are in :mod:`~xmesh_reshard.collectives`, for the simulator.
"""

import itertools
from collections.abc import Callable

import numpy as np

from xmesh_reshard.baseline_tasks import (
    Box,
    Draft,
    Pairs,
    SenderChoice,
    UnitTask,
    Work,
    chunk_of,
    finished,
    legs_of,
    work_of,
)
from xmesh_reshard.blocking import Task, paper_order
from xmesh_reshard.plans import Plan
from xmesh_reshard.topology import Topology


def send_recv(transfers: Pairs, topology: Topology, *, senders: str = "first", coalesce: bool = True) -> Plan:
    """Every receiver gets every part in a message of its own: A B t for one part to A hosts with B devices each.

    Args:
        transfers: For each tensor its source and target layout.
        topology: The network.
        senders: Who sends: the ``first`` device that holds the part, or ``balanced`` over hosts.
        coalesce: Whether all that goes from one device to another is one message.

    Reference:
        Sec. 3.1, "naive send/recv"; with ``balanced`` what Alpa does by default.

    Example:
        >>> from xmesh_reshard.cases import multi_host_case
        >>> case = multi_host_case(2, scale=8)
        >>> send_recv(case.transfers, case.topology).simulate().makespan / case.seconds
        4.0
    """
    work = work_of(transfers, topology)
    choice = SenderChoice(topology, senders)
    pairs = [
        (choice.choose(task.holders, task.box.nbytes), receiver, task.box)
        for task in work.tasks
        for receiver in task.receivers
    ]
    return _point_to_point(work, pairs, coalesce, f"send/recv, {senders} sender")


def send_recv_balanced(transfers: Pairs, topology: Topology) -> Plan:
    """Point to point from the holder whose host has sent least so far: :func:`send_recv` with ``balanced``."""
    return send_recv(transfers, topology, senders="balanced")


def round_robin(transfers: Pairs, topology: Topology) -> Plan:
    """Point to point, the holders in turn by the receiver's rank: how Megatron-core 0.19 refits weights.

    Receiver number r of the target layouts gets a part from the holder number r mod (number of holders).
    """
    work = work_of(transfers, topology)
    targets = np.unique(np.concatenate([g.transfer.target.devices for g in work.groups])) if work.groups else []
    rank = {int(device): k for k, device in enumerate(targets)}
    pairs = [
        (task.holders[rank[receiver] % len(task.holders)], receiver, task.box)
        for task in work.tasks
        for receiver in task.receivers
    ]
    return _point_to_point(work, pairs, True, "send/recv, senders in turn by the receiver's rank")


def naive_broadcast(transfers: Pairs, topology: Topology) -> Plan:
    """Each part along a chunked chain, from its first holder, in the order of the boxes.

    Reference:
        Sec. 5.1.2, the ablation without load balance.
    """
    work = work_of(transfers, topology)
    return finished(work, [_chain(task, task.holders[0], work) for task in work.tasks], "broadcast, first sender")


def size_only(transfers: Pairs, topology: Topology) -> Plan:
    """Each part along a chunked chain, from the host that has sent least so far, in the order of the boxes.

    Reference:
        Sec. 5.1.2, the ablation with load balance by size and without order.
    """
    work = work_of(transfers, topology)
    choice = SenderChoice(topology, "balanced")
    drafts = [_chain(task, choice.choose(task.holders, task.box.nbytes), work) for task in work.tasks]
    return finished(work, drafts, "broadcast, senders balanced by size")


def paper_broadcast(transfers: Pairs, topology: Topology, seed: int = 0) -> Plan:
    """The paper's own plan: senders and order from its search and its randomised greedy, a chain for each part.

    Args:
        transfers: For each tensor its source and target layout.
        topology: The network.
        seed: Of the randomised greedy.

    Reference:
        Sec. 3.2.
    """
    work = work_of(transfers, topology)
    order = paper_order(blocking_tasks(work), np.random.default_rng(seed))
    choice = SenderChoice(topology, "balanced")
    drafts = []
    for k, host in order:
        task = work.tasks[k]
        mine = [device for device in task.holders if topology.host_of[device] == host]
        drafts.append(_chain(task, choice.choose(mine, task.box.nbytes), work))
    return finished(work, drafts, "broadcast, the paper's senders and order")


def tree_broadcast(transfers: Pairs, topology: Topology) -> Plan:
    """Each part down a binomial tree of whole messages, from its first holder: gloo's broadcast.

    In round k the first 2^k devices that have the part each send it to another: ⌈log2(R + 1)⌉ rounds for R receivers.
    """
    work = work_of(transfers, topology)
    drafts = []
    for task in work.tasks:
        devices = [task.holders[0], *task.receivers]
        pairs = [(devices[r - (1 << (r.bit_length() - 1))], devices[r]) for r in range(1, len(devices))]
        drafts.append(Draft(legs_of(pairs, topology), [task.box], max(1, task.box.nbytes)))
    return finished(work, drafts, "broadcast, binomial trees of whole messages")


def blocking_tasks(work: Work) -> list[Task]:
    """The unit tasks between hosts as the paper's model has them; tasks inside one host take no time there."""
    host_of, hosts = work.topology.host_of, work.topology.hosts
    made = []
    for task in work.tasks:
        senders = tuple(sorted({host_of[d] for d in task.holders}))
        receivers = tuple(sorted({host_of[d] for d in task.receivers} - {*senders}))
        rate = min([hosts[h].up for h in senders] + [hosts[h].down for h in receivers])
        made.append(Task(senders, receivers, task.box.nbytes / rate if receivers else 0.0))
    return made


PLANS: dict[str, Callable[[Pairs, Topology], Plan]] = {
    "send_recv": send_recv,
    "send_recv_balanced": send_recv_balanced,
    "round_robin": round_robin,
    "naive_broadcast": naive_broadcast,
    "size_only": size_only,
    "paper_broadcast": paper_broadcast,
    "tree_broadcast": tree_broadcast,
}


def _point_to_point(work: Work, pairs: list[tuple[int, int, Box]], coalesce: bool, note: str) -> Plan:
    """One message for each part and receiver, or for each pair of devices."""
    packed: dict[tuple[int, ...], list[Box]] = {}
    for k, (sender, receiver, box) in enumerate(pairs):
        packed.setdefault((sender, receiver) if coalesce else (sender, receiver, k), []).append(box)
    drafts = []
    for (sender, receiver, *_), boxes in packed.items():
        nbytes = sum(box.nbytes for box in boxes)
        drafts.append(Draft(legs_of([(sender, receiver)], work.topology), boxes, max(1, nbytes)))
    return finished(work, drafts, note)


def _chain(task: UnitTask, sender: int, work: Work) -> Draft:
    """The sender, then the receivers host by host, its own host first."""
    host_of = work.topology.host_of
    receivers = sorted(task.receivers, key=lambda d: (host_of[d] != host_of[sender], host_of[d], d))
    legs = legs_of(list(itertools.pairwise([sender, *receivers])), work.topology)
    nbytes = task.box.nbytes
    return Draft(legs, [task.box], chunk_of(nbytes, legs, work.topology) if nbytes else 1)
