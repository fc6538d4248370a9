"""Messages as rounds of permutations: in a round each device sends at most once and receives at most once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import final

import numpy as np
from jaxtyping import Int

from xmesh_reshard.layout import dtype_of
from xmesh_reshard.plans import Hop, Piece, Plan

SMALLEST_CHUNK = 64 * 1024  # bytes; below, a round costs more than what it carries

Pairs = tuple[tuple[int, int], ...]


@final
@dataclass(frozen=True)
class Load:
    """A message, or a portion of one.

    Attributes:
        hops: The legs, each from a device that has it by then.
        pieces: What it carries, in order.
        nbytes: Their bytes.
    """

    hops: tuple[Hop, ...]
    pieces: tuple[Piece, ...]
    nbytes: int

    @property
    def receivers(self) -> tuple[int, ...]:
        """The devices that it reaches, in order."""
        return tuple(hop.target for hop in self.hops)


@final
@dataclass(frozen=True)
class Rounds:
    """Rounds in order; row k of the tables is device ``devices[k]``.

    Attributes:
        devices: All devices that send or receive, ascending.
        pairs: The pairs (sender, receiver) of each round.
        widths: Words that each sender of a round sends; shorter chunks are filled up.
        send: First word that a device sends in a round.
        receive: First word that it receives.
        count: Words of these that are wanted; 0 where it receives nothing.
    """

    devices: tuple[int, ...]
    pairs: tuple[Pairs, ...]
    widths: tuple[int, ...]
    send: Int[np.ndarray, "n r"]
    receive: Int[np.ndarray, "n r"]
    count: Int[np.ndarray, "n r"]

    def runs(self) -> tuple[tuple[Pairs, int, int, int], ...]:
        """Rounds of equal pairs and width that follow each other: pairs, width, first round, one past the last."""
        found, first = [], 0
        for (pairs, width), same in groupby(zip(self.pairs, self.widths, strict=True)):
            end = first + len(list(same))
            found.append((pairs, width, first, end))
            first = end
        return tuple(found)


@final
@dataclass(frozen=True)
class Batch:
    """Loads that lie in the devices' buffers at the same time.

    Attributes:
        loads: In the plan's order.
        word: Bytes of a word; every element on the way is a whole number of words.
        chunk: Bytes of a chunk.
    """

    loads: tuple[Load, ...]
    word: int
    chunk: int

    @cached_property
    def places(self) -> dict[int, dict[int, int]]:
        """For each device the first word of each load, by its number: what it packs, then what it receives."""
        found: dict[int, dict[int, int]] = {}
        filled: dict[int, int] = {}
        for packing in (True, False):
            for k, load in enumerate(self.loads):
                for device in load.hops[:1] if packing else load.hops:
                    place = device.source if packing else device.target
                    found.setdefault(place, {})[k] = filled.get(place, 0)
                    filled[place] = filled.get(place, 0) + load.nbytes // self.word
        return found

    @cached_property
    def words(self) -> int:
        """Words of every device's buffer: the loads of the fullest, and room to fill up the last chunk."""
        ends = [first + self.loads[k].nbytes // self.word for mine in self.places.values() for k, first in mine.items()]
        return max(ends) + max(self.rounds.widths)

    @cached_property
    def rounds(self) -> Rounds:
        """Each chunk crosses each leg in the first round after its arrival in which both devices are free."""
        sends, receives = dict.fromkeys(self.places, 0), dict.fromkeys(self.places, 0)
        made: list[list[tuple[int, int, int, int, int]]] = []
        chunk = max(self.chunk // self.word, 1)
        for k, load in enumerate(self.loads):
            words = load.nbytes // self.word
            for first in range(0, words, chunk):
                arrived = {load.hops[0].source: 0}
                for hop in load.hops:
                    after = arrived[hop.source]
                    busy = (sends[hop.source] | receives[hop.target]) >> after
                    at = after + (~busy & (busy + 1)).bit_length() - 1
                    sends[hop.source] |= 1 << at
                    receives[hop.target] |= 1 << at
                    arrived[hop.target] = at + 1
                    made.extend([] for _ in range(at + 1 - len(made)))
                    made[at].append((hop.source, hop.target, k, first, min(chunk, words - first)))
        return self._tables(made)

    def _tables(self, made: list[list[tuple[int, int, int, int, int]]]) -> Rounds:
        devices = tuple(sorted(self.places))
        row = {device: k for k, device in enumerate(devices)}
        send, receive, count = (np.zeros((len(devices), len(made)), np.int32) for _ in range(3))
        for r, legs in enumerate(made):
            for source, target, k, first, words in legs:
                send[row[source], r] = self.places[source][k] + first
                receive[row[target], r] = self.places[target][k] + first
                count[row[target], r] = words
        pairs = tuple(tuple(sorted((row[leg[0]], row[leg[1]]) for leg in legs)) for legs in made)
        widths = tuple(max(leg[4] for leg in legs) for legs in made)
        return Rounds(devices, pairs, widths, send, receive, count)


def batches(plan: Plan, *, buffer: int, most_rounds: int) -> tuple[Batch, ...]:
    """Cut a plan into batches that fit a buffer, and choose the chunk of each.

    Args:
        plan: The plan.
        buffer: Bytes that the loads of a batch may take on a device; longer messages are cut at element boundaries.
        most_rounds: The chunk doubles until a batch has at most so many rounds; a batch ends where that many loads
            leave or reach one device.

    Returns:
        The batches, in the plan's order; none where nothing is sent.
    """
    made: list[Batch] = []
    loads: list[Load] = []
    wish = 0
    filled: dict[int, int] = {}
    legs: dict[tuple[str, int], int] = {}
    for message in plan.messages:
        for pieces in slabs(message.pieces, buffer):
            load = Load(message.hops, pieces, sum(piece.nbytes for piece in pieces))
            more = [("from", hop.source) for hop in load.hops] + [("to", hop.target) for hop in load.hops]
            touched = (load.hops[0].source, *load.receivers)
            full = any(filled.get(d, 0) + load.nbytes > buffer for d in touched)
            if loads and (full or any(legs.get(leg, 0) >= most_rounds for leg in more)):
                made.append(_batch(plan, tuple(loads), wish, most_rounds))
                loads, wish, filled, legs = [], 0, {}, {}
            loads.append(load)
            wish = max(wish, message.chunk)
            filled.update({d: filled.get(d, 0) + load.nbytes for d in touched})
            for leg in more:
                legs[leg] = legs.get(leg, 0) + 1
    return (*made, _batch(plan, tuple(loads), wish, most_rounds)) if loads else tuple(made)


def slabs(pieces: Sequence[Piece], most: int) -> Iterator[tuple[Piece, ...]]:
    """Consecutive pieces of at most so many bytes together; empty ones are left out, longer ones are cut.

    Example:
        >>> [[p.lower for p in some] for some in slabs([Piece("w", (0, 0), (3, 2), 24)], 16)]
        [[(0, 0)], [(2, 0)]]
    """
    held: list[Piece] = []
    size = 0
    for piece in (part for whole in pieces if whole.nbytes for part in _cut(whole, most)):
        if held and size + piece.nbytes > most:
            yield tuple(held)
            held, size = [], 0
        held.append(piece)
        size += piece.nbytes
    if held:
        yield tuple(held)


def _cut(piece: Piece, most: int) -> Iterator[Piece]:
    """Slabs of a piece in row-major order, down to single elements."""
    lengths = [b - a for a, b in zip(piece.lower, piece.upper, strict=True)]
    if piece.nbytes <= most or max(lengths, default=1) == 1:
        yield piece
        return
    d = next(k for k, n in enumerate(lengths) if n > 1)
    row = piece.nbytes // lengths[d]
    rows = max(most // row, 1)
    for first in range(piece.lower[d], piece.upper[d], rows):
        end = min(first + rows, piece.upper[d])
        lower = (*piece.lower[:d], first, *piece.lower[d + 1 :])
        upper = (*piece.upper[:d], end, *piece.upper[d + 1 :])
        yield from _cut(Piece(piece.tensor, lower, upper, row * (end - first)), most)


def _batch(plan: Plan, loads: tuple[Load, ...], wish: int, most_rounds: int) -> Batch:
    sizes = {dtype_of(plan.tensors[piece.tensor].wire).itemsize for load in loads for piece in load.pieces}
    word = min({4} | sizes)
    chunk = max(wish, SMALLEST_CHUNK) // word * word
    longest = max(load.nbytes for load in loads)
    batch = Batch(loads, word, chunk)
    while chunk < longest and len(batch.rounds.widths) > most_rounds:
        chunk *= 2
        batch = Batch(loads, word, chunk)
    return batch
