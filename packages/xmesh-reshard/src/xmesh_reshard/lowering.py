"""From messages to flows: chunks one by one, or a chain as one flow over all its ports.

A chunk of a hop waits for the chunk before it and for its own arrival at the sender; every chunk costs α. Taken as one
flow, a message of K chunks with τ_j = α_j + chunk / β_j on hop j has the latency K α of its slowest hop, crosses all
its ports at the same time, and arrives after hop j later by the fill Σ_{i ≤ j} τ_i - max_{i ≤ j} τ_i.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float, Int

from xmesh_reshard.flows import Flows
from xmesh_reshard.links import Hops, Links, links_of, ports_of
from xmesh_reshard.topology import Topology

Edge = tuple[np.ndarray, np.ndarray, np.ndarray]  # flow before, flow after, lag


@final
@dataclass(frozen=True, eq=False)
class Nodes:
    """The flows of messages before anything between messages waits.

    Attributes:
        hops: The hops.
        links: The ports.
        ports: Ports of each hop, -1 where there are fewer.
        parent: The hop that each hop's sender receives by; -1 at the first sender.
        first: First flow of each hop.
        last: Last flow of each hop.
        early: Flow after which only one chunk of the hop is missing; -1 where there is one chunk.
        head: Seconds after the first flow's start at which the hop begins.
        tail: Seconds after the last flow's end at which the hop ends.
        tau: Seconds of a chunk on the free hop.
        whole: Messages that are one flow.
        flows: The flows with the edges inside messages.
    """

    hops: Hops
    links: Links
    ports: Int[np.ndarray, "h p"]
    parent: Int[np.ndarray, "h"]
    first: Int[np.ndarray, "h"]
    last: Int[np.ndarray, "h"]
    early: Int[np.ndarray, "h"]
    head: Float[np.ndarray, "h"]
    tail: Float[np.ndarray, "h"]
    tau: Float[np.ndarray, "h"]
    whole: Bool[np.ndarray, "m"]
    flows: Flows


def nodes_of(
    hops: Hops,
    nbytes: Int[np.ndarray, "m"],
    chunk: Int[np.ndarray, "m"],
    topology: Topology,
    whole: Bool[np.ndarray, "m"],
) -> Nodes:
    """Make the flows of messages.

    Args:
        hops: Hops of the messages.
        nbytes: Bytes of each message.
        chunk: Bytes of its chunks.
        topology: The network.
        whole: Messages to take as one flow.

    Raises:
        ValueError: A hop names a card that its host does not have.
    """
    links, ports = links_of(topology), ports_of(hops, topology)
    message, chunks = hops.message, np.maximum(1, -(-nbytes // chunk))
    rate = np.where(ports >= 0, links.rates[ports], np.inf).min(axis=1, initial=np.inf)
    alpha = np.where(hops.out < 0, topology.local_alpha, topology.alpha) * (nbytes[message] > 0)
    tau = alpha + np.minimum(chunk, nbytes)[message] / rate
    parent = parents(hops)
    head, slowest = _down(parent, tau)
    alone = ~whole[message]
    count = np.where(alone, chunks[message], 0)
    first = np.cumsum(count) - count
    one = int(count.sum()) + np.cumsum(whole) - 1  # the flow of each whole message
    first = np.where(alone, first, one[message])
    last = np.where(alone, first + count - 1, first)
    early = np.where(alone & (count > 1), last - 1, np.where(chunks[message] > 1, last, -1))
    flows = _flows(hops, links, ports, parent, nbytes, chunk, alpha, tau, whole, first, count)
    tail = np.where(alone, 0.0, head + tau - slowest)
    return Nodes(hops, links, ports, parent, first, last, early, np.where(alone, 0.0, head), tail, tau, whole, flows)


def parents(hops: Hops) -> Int[np.ndarray, "h"]:
    """The hop that brings a message to each hop's sender; -1 at the first sender."""
    if not len(hops.source):
        return np.zeros(0, np.int64)
    span = int(max(hops.source.max(), hops.target.max())) + 1
    into, wanted = hops.message * span + hops.target, hops.message * span + hops.source
    order = np.argsort(into, kind="stable")
    at = np.minimum(np.searchsorted(into[order], wanted), len(order) - 1)
    return np.where(into[order][at] == wanted, order[at], -1)


def _down(parent: np.ndarray, tau: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Along each path from the first sender: the sum of tau before a hop, and the largest tau up to it."""
    before, slowest = np.zeros(len(tau)), tau.copy()
    level = np.flatnonzero(parent < 0)
    order = np.argsort(parent, kind="stable")
    ptr = np.searchsorted(parent[order], np.arange(len(tau) + 1))
    while len(level):
        size = ptr[level + 1] - ptr[level]
        above = np.repeat(level, size)
        level = order[np.repeat(ptr[level] - np.cumsum(size) + size, size) + np.arange(size.sum())]
        before[level] = before[above] + tau[above]
        slowest[level] = np.maximum(slowest[above], tau[level])
    return before, slowest


def _flows(
    hops: Hops,
    links: Links,
    ports: np.ndarray,
    parent: np.ndarray,
    nbytes: np.ndarray,
    chunk: np.ndarray,
    alpha: np.ndarray,
    tau: np.ndarray,
    whole: np.ndarray,
    first: np.ndarray,
    count: np.ndarray,
) -> Flows:
    message, n = hops.message, int(count.sum())
    hop = np.repeat(np.arange(len(count)), count)  # of each chunk
    k = np.arange(n) - first[hop]
    size = np.minimum(chunk[message[hop]], nbytes[message[hop]] - k * chunk[message[hop]])
    routes, route = np.unique(ports[count > 0], axis=0, return_inverse=True)
    of_hop = np.zeros(len(count), np.int64)
    of_hop[count > 0] = route.reshape(-1)
    ptr, resource, weight = _entries(routes)
    inner = [(np.arange(n)[k > 0] - 1, np.arange(n)[k > 0])]
    child = parent[hop] >= 0
    inner.append((first[parent[hop[child]]] + k[child], np.arange(n)[child]))
    one = np.flatnonzero(whole)
    used, pace = _union(hops, ports, tau, whole)
    ptr = np.concatenate([ptr, ptr[-1] + np.cumsum(np.bincount(used[0], minlength=len(whole))[one])])
    chunks = np.maximum(1, -(-nbytes[one] // chunk[one]))
    before, after = (np.concatenate([edge[side] for edge in inner]) for side in (0, 1))
    return Flows(
        links.rates,
        ptr,
        np.concatenate([resource, used[1]]),
        np.concatenate([weight, used[2].astype(float)]),
        np.concatenate([size, nbytes[one]]).astype(float),
        np.concatenate([of_hop[hop], len(routes) + np.arange(len(one))]),
        np.concatenate([alpha[hop], chunks * alpha[pace[one]]]),
        before,
        after,
        np.zeros(len(before)),
    )


def _entries(routes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    used = routes >= 0
    ptr = np.concatenate([[0], np.cumsum(used.sum(axis=1))]).astype(np.int64)
    return ptr, routes[used], np.ones(int(used.sum()))


def _union(
    hops: Hops, ports: np.ndarray, tau: np.ndarray, whole: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """For each message that is one flow: its ports and how often it uses them; and its slowest hop."""
    message = hops.message
    pace = np.zeros(len(whole), np.int64)
    order = np.lexsort((tau, message))
    pace[message[order]] = order  # the last of each message is its slowest
    mine = np.repeat(message, ports.shape[1]).reshape(ports.shape)
    chosen = (ports >= 0) & whole[mine]
    pairs, times = np.unique(np.stack([mine[chosen], ports[chosen]], axis=1), axis=0, return_counts=True)
    return (pairs[:, 0], pairs[:, 1], times), pace
