r"""The optimisation problem: a graph on a device under a RAM limit and a deadline, as arrays.

$$\min \sum_{\text{computed}} \psi_i + \sum_{\text{paged out}} \phi^{out}_v + \sum_{\text{paged in}} \phi^{in}_v$$

subject to the RAM limit at every event and the deadline (POET, ICML 2022, section 4). ψ and φ are joules, seconds or a
weighted sum of both.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, isfinite
from typing import Literal, final

import numpy as np
from jaxtyping import Bool, Float, Int

from poet.device import Device, DeviceError, Tier
from poet.graph import Graph
from poet.units import parse_bytes, parse_deadline

Paging = Literal["overlap", "serial", "free"]
PAGING = ("overlap", "serial", "free")


@final
@dataclass(frozen=True)
class Objective:
    """What a schedule minimises: `energy · joules + time · seconds`.

    Attributes:
        energy: Weight of a joule.
        time: Weight of a second.
    """

    energy: float = 1.0
    time: float = 0.0

    def __post_init__(self) -> None:
        """Check the weights."""
        if not (self.energy >= 0 and self.time >= 0 and 0 < self.energy + self.time < inf):
            raise ValueError(
                f"weights must be finite, not negative and not both 0, got energy={self.energy}, time={self.time}"
            )

    @staticmethod
    def of(objective: "str | Objective") -> "Objective":
        """The objective called `"energy"` or `"time"`, or the weighted one given.

        Raises:
            ValueError: If it is none of these.
        """
        if isinstance(objective, Objective):
            return objective
        if objective not in ("energy", "time"):
            raise ValueError(f"objective must be 'energy', 'time' or poet.Objective(energy=, time=), got {objective!r}")
        return Objective(1.0, 0.0) if objective == "energy" else Objective(0.0, 1.0)


@final
@dataclass(frozen=True)
class Problem:
    """A graph with its costs on a device; n operations, V values, K tiers.

    Attributes:
        graph: The training step.
        device: The machine; its tiers are those of the problem, in this order.
        limit: Bytes of RAM in all.
        deadline: Seconds; infinite if there is none.
        objective: What is minimised.
        paging: Whether transfers run beside the computation (`"overlap"`), stop it (`"serial"`), or take no time at all
            (`"free"`, as the paper assumes).
        recompute: Whether operations may be executed again.
        hidden: Share of the transfers' time that the linear engines take to pass beside the computation; 1 under
            `"overlap"` unless a replay showed that less can be hidden.
    """

    graph: Graph
    device: Device
    limit: int
    deadline: float = inf
    objective: Objective = Objective()
    paging: Paging = "overlap"
    recompute: bool = True
    hidden: float = 1.0

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The places behind RAM."""
        return self.device.tiers

    @property
    def ram(self) -> int:
        """Bytes for values and workspace: the limit less what is always there; negative if that alone is too much."""
        return self.limit - self.graph.static.total

    @cached_property
    def sizes(self) -> Int[np.ndarray, " V"]:
        """Bytes of each value."""
        return np.array([value.size for value in self.graph.values], dtype=np.int64)

    @cached_property
    def workspace(self) -> Int[np.ndarray, " n"]:
        """Workspace bytes of each operation."""
        return np.array([op.workspace for op in self.graph.ops], dtype=np.int64)

    @cached_property
    def recomputable(self) -> Bool[np.ndarray, " n"]:
        """Whether each operation may be executed again."""
        return np.array([op.recomputable and self.recompute for op in self.graph.ops], dtype=bool)

    @cached_property
    def op_seconds(self) -> Float[np.ndarray, " n"]:
        """τ: duration of each operation."""
        return np.array([self.device.op_seconds(op.flops, op.seconds) for op in self.graph.ops])

    @cached_property
    def op_joules(self) -> Float[np.ndarray, " n"]:
        """Modelled energy of each operation; NaN where the profile lacks it and the objective does not need it."""
        try:
            return np.array([self.device.op_joules(op.flops, op.seconds) for op in self.graph.ops])
        except DeviceError:
            if self.objective.energy:
                raise
            return np.full(len(self.graph.ops), np.nan)

    @cached_property
    def read_seconds(self) -> Float[np.ndarray, "K V"]:
        """Duration of bringing each value back from each tier."""
        return self._by_tier(Tier.read_seconds)

    @cached_property
    def write_seconds(self) -> Float[np.ndarray, "K V"]:
        """Duration of copying each value to each tier."""
        return self._by_tier(Tier.write_seconds)

    @cached_property
    def stored(self) -> Int[np.ndarray, "K V"]:
        """Bytes that the copy of each value takes in each tier."""
        return self._by_tier(Tier.stored).astype(np.int64)

    @cached_property
    def read_joules(self) -> Float[np.ndarray, "K V"]:
        """Modelled energy of bringing each value back from each tier."""
        return self.read_seconds * self._powers[:, None]

    @cached_property
    def write_joules(self) -> Float[np.ndarray, "K V"]:
        """Modelled energy of copying each value to each tier."""
        return self.write_seconds * self._powers[:, None]

    @cached_property
    def op_cost(self) -> Float[np.ndarray, " n"]:
        """ψ: what executing each operation costs."""
        return self._weighted(self.op_joules, self.op_seconds)

    @cached_property
    def in_cost(self) -> Float[np.ndarray, "K V"]:
        """φ^in: what bringing each value back from each tier costs."""
        return self._weighted(self.read_joules, self.read_seconds * self.shown[:, None])

    @cached_property
    def out_cost(self) -> Float[np.ndarray, "K V"]:
        """φ^out: what copying each value to each tier costs."""
        return self._weighted(self.write_joules, self.write_seconds * self.shown[:, None])

    @cached_property
    def shown(self) -> Float[np.ndarray, " K"]:
        """Share of each tier's transfer time that is added to the computation's; tiers in RAM hide nothing."""
        beside = {"overlap": 1.0 - self.hidden, "serial": 1.0, "free": 0.0}[self.paging]
        busy = 0.0 if self.paging == "free" else 1.0
        return np.array([busy if tier.in_ram else beside for tier in self.tiers])

    def takes(self, k: int, v: int) -> bool:
        """Whether tier k may hold value v: an inexact tier takes compressible values alone."""
        return self.tiers[k].exact or self.graph.values[v].compressible

    @property
    def capped(self) -> bool:
        """Whether a tier's room is limited: dropping copies to make room may then pay, which no engine considers."""
        return any(tier.capacity is not None and not tier.in_ram for tier in self.tiers)

    @property
    def baseline_cost(self) -> float:
        """Cost of executing every operation once: no schedule costs less."""
        return float(self.op_cost.sum())

    @property
    def baseline_seconds(self) -> float:
        """Duration of executing every operation once."""
        return float(self.op_seconds.sum())

    def with_ram(self, limit: int) -> "Problem":
        """The same problem under another RAM limit."""
        return replace(self, limit=limit)

    @property
    def _powers(self) -> Float[np.ndarray, " K"]:
        return np.array([tier.power for tier in self.tiers])

    def _weighted(self, joules: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        energy, time = self.objective.energy, self.objective.time
        return np.add(energy * joules if energy else 0.0, time * seconds if time else 0.0)

    def _by_tier(self, of: Callable[[Tier, int], float]) -> np.ndarray:
        table = [[of(tier, value.size) for value in self.graph.values] for tier in self.tiers]
        return np.array(table, dtype=float).reshape(len(self.tiers), len(self.graph.values))


def formulate(
    graph: Graph,
    device: Device,
    ram: int | str | None = None,
    deadline: float | str | None = None,
    *,
    objective: str | Objective = "energy",
    tiers: tuple[str, ...] | None = None,
    paging: Paging = "overlap",
    recompute: bool = True,
) -> Problem:
    """State the problem, checking everything that a user can get wrong.

    Args:
        graph: The training step.
        device: The machine.
        ram: Bytes, parameters and all other static bytes included: `262144`, `"256KiB"`, or `"40%"` of the step's peak
            when nothing is recomputed or paged. None: the device's RAM.
        deadline: A factor of the step's plain duration (`1.5`, `"1.5x"`), seconds (`"90s"`), or None.
        objective: `"energy"`, `"time"`, or weights.
        tiers: Names of the device's tiers that may be used; `"ram"` may be among them and means nothing. None: all.
        paging: See `Problem`.
        recompute: Whether operations may be executed again.

    Raises:
        ValueError: If an argument is out of range or the profile lacks what the problem needs.
    """
    if not isinstance(graph, Graph) or not isinstance(device, Device):
        raise TypeError(
            f"expected a poet.Graph and a poet.Device, got {type(graph).__name__} and {type(device).__name__}; "
            "poet.zoo.load(name) and poet.Device.load(name) give them by name"
        )
    if paging not in PAGING:
        raise ValueError(f"paging must be one of {', '.join(PAGING)}, got {paging!r}")
    if not graph.ops:
        raise ValueError(f"graph {graph.name!r} has no operations: there is nothing to schedule")
    if tiers is not None:
        device = device.with_tiers(*(device.tier(name) for name in dict.fromkeys(tiers) if name != "ram"))
    if ram is None and device.ram is None:
        raise DeviceError(f"the profile of {device.name!r} does not say how much RAM it has: give ram=")
    whole = graph.static.total + graph.resident_peak
    limit = parse_bytes(ram, whole=whole) if ram is not None else int(device.ram or 0)
    problem = Problem(graph, device, limit, inf, Objective.of(objective), paging, recompute)
    seconds = parse_deadline(deadline, problem.baseline_seconds)
    if not isfinite(problem.baseline_cost):
        raise ValueError(f"costs on {device.name!r} are not finite")
    return replace(problem, deadline=seconds)
