"""Transfers with dependencies written out: collectives that a plan of trees cannot describe, for the simulator."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

from xmesh_reshard.plans import Hop
from xmesh_reshard.topology import Topology


@final
@dataclass(frozen=True)
class Move:
    """Bytes along hops, chunk by chunk; without hops, a point that others wait for.

    Attributes:
        hops: The legs, in an order in which each sender has received before.
        nbytes: Bytes.
        chunk: Bytes of a chunk.
        after: Numbers of earlier moves that must have ended before.
    """

    hops: tuple[Hop, ...]
    nbytes: int
    chunk: int
    after: tuple[int, ...] = ()


@final
@dataclass(frozen=True)
class Collective:
    """Moves that begin as soon as those they wait for have ended.

    Attributes:
        topology: The network.
        moves: The moves; each waits only for earlier ones.
        note: What it does.
    """

    topology: Topology
    moves: tuple[Move, ...]
    note: str = ""

    def __post_init__(self) -> None:
        for k, move in enumerate(self.moves):
            if any(not 0 <= before < k for before in move.after):
                raise ValueError(f"move {k} waits for the moves {move.after}; only earlier ones can be waited for")


@final
@dataclass
class Script:
    """Collects moves; each device takes part in one task at a time."""

    topology: Topology
    moves: list[Move] = field(default_factory=list)
    _last: dict[int, int] = field(default_factory=dict)

    def add(self, hops: Sequence[Hop], nbytes: int, after: Sequence[int] = (), chunk: int = 0) -> int:
        """Add a move; its number."""
        self.moves.append(Move(tuple(hops), nbytes, max(1, chunk or nbytes), tuple(after)))
        return len(self.moves) - 1

    def begin(self, devices: Sequence[int]) -> list[int]:
        """What a task of these devices has to wait for."""
        return sorted({self._last[device] for device in devices if device in self._last})

    def end(self, devices: Sequence[int], moves: Sequence[int]) -> int:
        """Say that a task of these devices ends with these moves; the number that stands for its end."""
        done = self.add((), 0, moves)
        self._last.update(dict.fromkeys(devices, done))
        return done

    def finish(self, note: str) -> Collective:
        """All moves."""
        return Collective(self.topology, tuple(self.moves), note)
