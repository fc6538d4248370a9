"""What messages wait for: the rules by which a device works off its steps, as edges between flows.

With ``in_flight`` messages under way at a device, which leaves the oldest first:

1. a message begins when all but the last ``in_flight - 1`` before it have been left,
2. a receive stands ready once at most one chunk of the message before it is missing,
3. a first sender begins when the messages before it have been passed on,
4. a message is passed on when all before it have been left,
5. between two devices, what is sent first is received first.
"""

import numpy as np

from xmesh_reshard.lowering import Edge, Nodes


class Edges:
    """Collects edges and flows without bytes that gather several ends.

    Args:
        nodes: The flows of the messages.
    """

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.flows = len(nodes.flows.nbytes)
        self.edges: list[Edge] = []

    def add(self, before: np.ndarray, ends: np.ndarray, after: np.ndarray, heads: np.ndarray) -> None:
        """Flows ``after``, which count from ``heads`` on, wait for ``before`` and ``ends`` seconds more."""
        self.edges.append((before, after, np.maximum(ends - heads, 0.0)))

    def join(self, groups: np.ndarray, flows: np.ndarray) -> np.ndarray:
        """A flow without bytes for each group 0, 1, … that ends when all the group's flows have; their numbers."""
        count = int(groups.max(initial=-1)) + 1
        made = self.flows + np.arange(count)
        self.flows += count
        self.edges.append((flows, made[groups], np.zeros(len(flows))))
        return made

    def columns(self) -> Edge:
        """All edges."""
        if not self.edges:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        before, after, lag = (np.concatenate([edge[k] for edge in self.edges]) for k in range(3))
        return before.astype(np.int64), after.astype(np.int64), lag


def in_order(nodes: Nodes, in_flight: int, skip: np.ndarray) -> Edges:
    """Every device works off its messages in order.

    Args:
        nodes: The flows of the messages.
        in_flight: Messages under way at a device, at least 1.
        skip: Messages that no device works on.

    Returns:
        The edges.
    """
    edges, steps = Edges(nodes), _Steps(nodes, skip)
    ends = steps.tails(edges)
    for back in range(1, 2 * in_flight):
        now = steps.with_earlier(back)
        before = now - back
        if back >= in_flight:
            steps.heads(edges, ends[0][before], ends[1][before], now)
            continue
        receives = steps.into[now] >= 0
        early = nodes.early[steps.into[before]]
        both = receives & (steps.into[before] >= 0) & (early >= 0)
        old = steps.into[before[both]]
        ready = np.where(nodes.whole[nodes.hops.message[old]], nodes.tail[old] - nodes.tau[old], 0.0)
        steps.heads(edges, early[both], ready, now[both])
        passed = ~receives & (steps.into[before] >= 0) & (steps.outs[before] > 0)
        old = steps.into[before[passed]]
        steps.heads(edges, nodes.last[old], nodes.tail[old], now[passed])
        relays = receives & (steps.outs[now] > 0)
        steps.sends(edges, ends[0][before[relays]], ends[1][before[relays]], now[relays])
    hops = nodes.hops
    order = np.lexsort((hops.message, hops.target, hops.source))
    order = order[~skip[hops.message[order]]]
    one, two = order[:-1], order[1:]
    same = (hops.source[one] == hops.source[two]) & (hops.target[one] == hops.target[two])
    one, two = one[same], two[same]
    edges.add(nodes.last[one], nodes.tail[one], nodes.first[two], nodes.head[two])
    return edges


def in_sequence(nodes: Nodes, after: list[tuple[int, ...]]) -> Edges:
    """Messages wait for those that are named, and for nothing else.

    Args:
        nodes: The flows of the messages.
        after: For each message the earlier ones it waits for.
    """
    edges = Edges(nodes)
    m = len(after)
    done = edges.flows + np.arange(m)
    edges.flows += m
    edges.add(nodes.last, nodes.tail, done[nodes.hops.message], np.zeros(len(nodes.last)))
    waits = [(before, k) for k, row in enumerate(after) for before in row]
    pairs = np.array(waits, np.int64).reshape(-1, 2)
    hops = np.diff(nodes.hops.ptr)
    direct = hops[pairs[:, 1]] == 0
    zeros = np.zeros(len(pairs))
    edges.add(done[pairs[direct, 0]], zeros[direct], done[pairs[direct, 1]], zeros[direct])
    roots = np.flatnonzero(nodes.parent < 0)  # ordered by message
    at = np.searchsorted(nodes.hops.message[roots], np.arange(m + 1))
    size = (at[1:] - at[:-1])[pairs[:, 1]]
    hop = roots[_ranges(at[pairs[:, 1]], size)]
    edges.add(np.repeat(done[pairs[:, 0]], size), np.zeros(len(hop)), nodes.first[hop], np.zeros(len(hop)))
    return edges


class _Steps:
    """Pairs of a device and a message, by device and, within it, in the plan's order."""

    def __init__(self, nodes: Nodes, skip: np.ndarray) -> None:
        self.nodes = nodes
        hops, message = nodes.hops, nodes.hops.message
        m = len(skip)
        used = np.flatnonzero(~skip[message])
        received, sent = (side[used] * m + message[used] for side in (hops.target, hops.source))
        keys = np.unique(np.concatenate([received, sent]))
        self.device, self.message = keys // m, keys % m
        self.into = np.full(len(keys), -1, np.int64)
        self.into[np.searchsorted(keys, received)] = used
        of = np.searchsorted(keys, sent)
        order = np.argsort(of, kind="stable")
        self.out = used[order]
        self.outs = np.bincount(of, minlength=len(keys))
        self.out_ptr = np.cumsum(self.outs) - self.outs

    def with_earlier(self, back: int) -> np.ndarray:
        """Steps whose device has another one so many before it."""
        same = self.device[back:] == self.device[: max(0, len(self.device) - back)]
        return np.flatnonzero(same) + back

    def tails(self, edges: Edges) -> tuple[np.ndarray, np.ndarray]:
        """For each step the flow after which the device has left the message, and how long after."""
        nodes = self.nodes
        whole = nodes.whole[self.message]
        owner, hop = self._fan(np.arange(len(self.into)), every=True)
        end = np.where(self.into >= 0, nodes.tail[self.into], 0.0)
        np.maximum.at(end, owner, nodes.tail[hop])
        flow = np.where(self.into >= 0, nodes.last[self.into], -1)
        has = self.outs > 0
        flow[has] = nodes.last[self.out[self.out_ptr[has]]]
        several = (self.outs > 1) & ~whole
        number = np.cumsum(several) - 1
        mine = several[owner]
        if mine.any():
            flow[several] = edges.join(number[owner[mine]], nodes.last[hop[mine]])
        return flow, end

    def heads(self, edges: Edges, before: np.ndarray, ends: np.ndarray, steps: np.ndarray) -> None:
        """Steps wait: their receive, or the sends of a first sender."""
        nodes, into = self.nodes, self.into[steps]
        got = into >= 0
        edges.add(before[got], ends[got], nodes.first[into[got]], nodes.head[into[got]])
        self.sends(edges, before[~got], ends[~got], steps[~got])

    def sends(self, edges: Edges, before: np.ndarray, ends: np.ndarray, steps: np.ndarray) -> None:
        """The sends of steps wait."""
        owner, hop = self._fan(steps, every=False)
        edges.add(before[owner], ends[owner], self.nodes.first[hop], self.nodes.head[hop])

    def _fan(self, steps: np.ndarray, *, every: bool) -> tuple[np.ndarray, np.ndarray]:
        """Place in ``steps`` and hop of each send; of a message that is one flow the first is enough."""
        size = self.outs[steps]
        if not every:
            size = np.where(self.nodes.whole[self.message[steps]], np.minimum(size, 1), size)
        return np.repeat(np.arange(len(steps)), size), self.out[_ranges(self.out_ptr[steps], size)]


def _ranges(first: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The numbers ``first[k]``, …, ``first[k] + size[k] - 1``, one after another."""
    return np.repeat(first - np.cumsum(size) + size, size) + np.arange(int(size.sum()))
