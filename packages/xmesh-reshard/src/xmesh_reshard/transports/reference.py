"""The oracle: every message in the plan's order, one after the other, in this process."""

from collections.abc import Mapping

import numpy as np

from xmesh_reshard.plans import Plan
from xmesh_reshard.transports.packing import NumpyPacker


def execute_reference(plan: Plan, parts: Mapping[int, Mapping[str, np.ndarray]]) -> dict[int, dict[str, np.ndarray]]:
    """Execute a plan without a network, message by message, hop by hop.

    Args:
        plan: What to do.
        parts: For each device its part of each tensor, by the source layouts.

    Returns:
        For each device its part of each tensor, by the target layouts: new arrays.

    Raises:
        PartError: A part is missing or does not fit its layout.

    Example:
        >>> from xmesh_reshard import Host, Layout, Mesh, Nic, Topology, Transfer
        >>> from xmesh_reshard.assembling import assemble
        >>> from xmesh_reshard.plans import Hop, Message, Piece
        >>> before = Layout.sharded((4,), "int16", Mesh.grid((1,)), "R")
        >>> after = Layout.sharded((4,), "float32", Mesh.grid((1,), first=1), "R")
        >>> whole = Message(0, "chain", (Hop(0, 1, 0, 0),), (Piece("w", (0,), (4,), 8),), 8, 8, 0.0, 0.0)
        >>> plan = assemble({"w": Transfer(before, after)}, Topology.uniform(2, 1), [whole])
        >>> execute_reference(plan, {0: {"w": np.arange(4, dtype=np.int16)}})[1]["w"]
        array([0., 1., 2., 3.], dtype=float32)
    """
    packers = {device: NumpyPacker(plan.tensors, device, parts.get(device, {})) for device in plan.devices}
    for message in plan.messages:
        first = packers[message.sender]
        held = {message.sender: first.outgoing(message.pieces, first.buffer)[0]}
        for hop in message.hops:
            packer = packers[hop.target]
            buffer, direct = packer.incoming(message.pieces, packer.buffer)
            buffer[:] = held[hop.source]
            held[hop.target] = buffer
            if not direct:
                packer.unpack(message.pieces, buffer)
    for device, packer in packers.items():
        packer.copy(plan.program(device).copies)
    return {device: packer.new for device, packer in packers.items()}
