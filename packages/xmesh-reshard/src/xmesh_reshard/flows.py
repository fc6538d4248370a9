"""An event-driven fluid simulator: flows that wait for each other and share resources max-min fairly.

Between two events every flow has a constant rate; the next event is the first flow to end or to begin. Flows on equal
routes are one class, and events at the same time are taken together.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float, Int

from xmesh_reshard.fairness import fair_rates

_SAME = 1e-11  # relative difference of times that are the same but for rounding
Observer = Callable[[float, float, np.ndarray, np.ndarray], None]


@final
@dataclass(frozen=True, eq=False)
class Flows:
    """What shall flow.

    A flow begins once all the flows before it have ended, each with its edge's lag; its latency passes, in which it
    uses nothing, then its bytes cross all resources of its route at the same time.

    Attributes:
        capacity: Rate of each resource, bytes/s.
        route_ptr: Route k has the entries ``route_ptr[k]:route_ptr[k + 1]``.
        resource: Resource of each entry.
        weight: How often each byte crosses it.
        nbytes: Bytes of each flow.
        route: Route of each flow.
        latency: Seconds before the first byte.
        before: First flow of each edge.
        after: The flow that waits for it.
        lag: Seconds that it waits longer, from 0 up.
    """

    capacity: Float[np.ndarray, "r"]
    route_ptr: Int[np.ndarray, "k1"]
    resource: Int[np.ndarray, "e"]
    weight: Float[np.ndarray, "e"]
    nbytes: Float[np.ndarray, "f"]
    route: Int[np.ndarray, "f"]
    latency: Float[np.ndarray, "f"]
    before: Int[np.ndarray, "d"]
    after: Int[np.ndarray, "d"]
    lag: Float[np.ndarray, "d"]


@final
@dataclass(frozen=True, eq=False)
class Times:
    """When flows begin and end.

    Attributes:
        start: When nothing more was waited for, seconds; the latency comes after it.
        end: When the last byte arrived, seconds.
        events: Number of spans of time between events.
    """

    start: Float[np.ndarray, "f"]
    end: Float[np.ndarray, "f"]
    events: int


def run_flows(flows: Flows, observe: Observer | None = None) -> Times:
    """Simulate.

    Args:
        flows: What shall flow, and over what.
        observe: Called for each span of time without events: begin, end, flows under way, their rates.

    Returns:
        When each flow begins and ends.

    Raises:
        ValueError: Flows wait for each other in a circle.

    Example:
        >>> edge = np.zeros(0, np.int64)
        >>> one_port = Flows(
        ...     np.array([10.0]), np.array([0, 1]), np.array([0]), np.ones(1),
        ...     np.array([10.0, 30.0]), np.zeros(2, np.int64), np.zeros(2), edge, edge, np.zeros(0),
        ... )
        >>> run_flows(one_port).end.tolist()  # both at half the rate, then the second alone
        [2.0, 4.0]
    """
    return _Run(flows, observe).run()


class _Run:
    def __init__(self, flows: Flows, observe: Observer | None) -> None:
        n = len(flows.nbytes)
        self.flows, self.observe = flows, observe
        order = np.argsort(flows.before, kind="stable")
        self.later, self.lag = flows.after[order], flows.lag[order]
        self.later_ptr = np.searchsorted(flows.before[order], np.arange(n + 1))
        narrow = np.append(0, np.cumsum(np.isfinite(flows.capacity)[flows.resource]))[flows.route_ptr]
        limited = np.append(narrow[1:] > narrow[:-1], False)  # a route may be missing where nothing flows
        self.instant = (flows.nbytes <= 0) | ~limited[flows.route]
        self.missing = np.bincount(flows.after, minlength=n)
        self.ready, self.start, self.end = np.zeros(n), np.full(n, np.nan), np.full(n, np.nan)
        self.waiting: list[tuple[float, int]] = []
        self.active, self.left = np.zeros(0, np.int64), np.zeros(0)
        self.rate = np.zeros(0)
        self.count = np.zeros(len(flows.route_ptr) - 1, np.int64)
        self.rate_of = np.full(len(self.count), np.inf)
        self.was: dict[int, int] = {}
        self.now, self.events = 0.0, 0

    def run(self) -> Times:
        self._release(np.flatnonzero(self.missing == 0))
        self._begin()
        while len(self.active) or self.waiting:
            self.events += 1
            self._rates()
            ends = self.now + self.left / self.rate
            soon = float(ends.min(initial=np.inf))
            if self.waiting:
                soon = min(soon, self.waiting[0][0])
            if self.observe is not None:
                self.observe(self.now, soon, self.active, self.rate)
            done = ends <= soon * (1 + _SAME)
            self.left = self.left - self.rate * (soon - self.now)
            self.now = soon
            if done.any():
                finished = self.active[done]
                self.active, self.left = self.active[~done], self.left[~done]
                self.rate = self.rate[~done]
                self._count(finished, -1)
                self._finish(finished)
            self._begin()
        if np.isnan(self.end).any():
            stuck = np.flatnonzero(np.isnan(self.end))
            raise ValueError(f"{len(stuck)} flows wait for each other in a circle, flow {stuck[0]} among them")
        return Times(self.start, self.end, self.events)

    def _release(self, flows: np.ndarray) -> None:
        """Flows that wait for no other any more."""
        self.start[flows] = np.maximum(self.ready[flows], 0.0)
        for when, f in zip((self.start[flows] + self.flows.latency[flows]).tolist(), flows.tolist(), strict=True):
            heapq.heappush(self.waiting, (when, f))

    def _begin(self) -> None:
        """Start what is due; flows that need no time end at once and may release others."""
        while self.waiting and self.waiting[0][0] <= self.now * (1 + _SAME):
            due = []
            while self.waiting and self.waiting[0][0] <= self.now * (1 + _SAME):
                due.append(heapq.heappop(self.waiting)[1])
            flows = np.array(due, np.int64)
            empty = self.instant[flows]
            if empty.any():
                self._finish(flows[empty])
                flows = flows[~empty]
            if len(flows):
                self._count(flows, 1)
                self.active = np.concatenate([self.active, flows])
                self.left = np.concatenate([self.left, self.flows.nbytes[flows]])

    def _finish(self, flows: np.ndarray) -> None:
        self.end[flows] = self.now
        first, size = self.later_ptr[flows], self.later_ptr[flows + 1] - self.later_ptr[flows]
        if not size.any():
            return
        at = np.repeat(first - np.cumsum(size) + size, size) + np.arange(size.sum())
        later = self.later[at]
        np.maximum.at(self.ready, later, self.now + self.lag[at])
        np.subtract.at(self.missing, later, 1)
        free = np.unique(later)
        self._release(free[self.missing[free] == 0])

    def _count(self, flows: np.ndarray, change: int) -> None:
        routes = self.flows.route[flows]
        for r in routes.tolist():
            self.was.setdefault(r, int(self.count[r]))
        np.add.at(self.count, routes, change)

    def _rates(self) -> None:
        """New rates, where the number of flows on some route has changed."""
        f = self.flows
        if any(self.count[r] != n for r, n in self.was.items()):
            used = np.unique(f.route[self.active])
            first, size = f.route_ptr[used], f.route_ptr[used + 1] - f.route_ptr[used]
            at = np.repeat(first - np.cumsum(size) + size, size) + np.arange(size.sum())
            ptr = np.concatenate([[0], np.cumsum(size)])
            self.rate_of[used] = fair_rates(f.capacity, ptr, f.resource[at], f.weight[at], self.count[used])
        self.was.clear()
        self.rate = self.rate_of[f.route[self.active]]
