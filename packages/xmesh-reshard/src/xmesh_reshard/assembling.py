"""A plan from messages that are written out one by one: for baselines, tests, and plans made by hand."""

from collections.abc import Mapping, Sequence

import numpy as np

from xmesh_reshard.plans import Group, Message, Piece, Plan, Tables, Transfer
from xmesh_reshard.topology import Topology


def assemble(
    transfers: Mapping[str, Transfer],
    topology: Topology,
    messages: Sequence[Message],
    copies: Sequence[tuple[int, Piece]] = (),
    *,
    makespan: float = float("nan"),
    lower_bound: float = 0.0,
    notes: Sequence[str] = (),
) -> Plan:
    """Put messages into a plan, in the order given (their ``index`` is ignored).

    Args:
        transfers: Layouts of each tensor.
        topology: The network.
        messages: Every message; ``nbytes`` must be the sum over its pieces.
        copies: Device and piece of what is copied in place.
        makespan: Planned time, seconds.
        lower_bound: What no plan can beat, seconds.
        notes: What was chosen and why.
    """
    names = list(transfers)
    groups = tuple(Group((name,), transfers[name]) for name in names)
    number = {name: k for k, name in enumerate(names)}
    dims = max((len(t.source.shape) for t in transfers.values()), default=0)
    hops = [hop for message in messages for hop in message.hops]
    pieces = [piece for message in messages for piece in message.pieces]
    zeros = np.zeros(len(pieces), np.int64)
    copied = [piece for _, piece in copies]
    tables = Tables(
        hop_ptr=pointers([len(m.hops) for m in messages]),
        hop_source=_column([h.source for h in hops]),
        hop_target=_column([h.target for h in hops]),
        hop_out=_column([h.out for h in hops]),
        hop_into=_column([h.into for h in hops]),
        piece_ptr=pointers([len(m.pieces) for m in messages]),
        piece_group=_column([number[p.tensor] for p in pieces]),
        piece_first=zeros,
        piece_last=zeros + 1,
        piece_lower=_boxes([p.lower for p in pieces], dims, 0),
        piece_upper=_boxes([p.upper for p in pieces], dims, 1),
        nbytes=_column([m.nbytes for m in messages]),
        chunk=_column([m.chunk for m in messages]),
        star=_column([int(m.method == "send_recv") for m in messages]),
        start=np.array([m.start for m in messages], float),
        end=np.array([m.end for m in messages], float),
        copy_device=_column([device for device, _ in copies]),
        copy_group=_column([number[p.tensor] for p in copied]),
        copy_lower=_boxes([p.lower for p in copied], dims, 0),
        copy_upper=_boxes([p.upper for p in copied], dims, 1),
    )
    return Plan(groups, topology, tables, makespan, lower_bound, tuple(notes))


def _column(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int64).reshape(len(values))


def pointers(lengths: Sequence[int]) -> np.ndarray:
    """Where each row's entries begin, and where the last row's end."""
    return np.concatenate([[0], np.cumsum(_column(lengths))]).astype(np.int64)


def _boxes(corners: Sequence[tuple[int, ...]], dims: int, fill: int) -> np.ndarray:
    table = np.full((len(corners), dims), fill, np.int64)
    for row, corner in zip(table, corners, strict=True):
        row[: len(corner)] = corner
    return table
