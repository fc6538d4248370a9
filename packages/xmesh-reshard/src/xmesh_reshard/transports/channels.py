"""What a network has to offer to execute a plan."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Pending(Protocol):
    """A send or receive under way."""

    def wait(self) -> None:
        """Return once the buffer is filled (receive) or may be changed again (send).

        Raises:
            TransportError: It cannot be completed: the peer is lost, or the execution was aborted.
        """
        ...


@runtime_checkable
class Channel(Protocol):
    """Links from one device to others: between two devices, what is sent first is received first.

    Buffers are contiguous bytes, one-dimensional: NumPy arrays or tensors of ``uint8``, as long as at the other side. A
    channel may block in ``isend`` until the receiver takes the bytes, and put off a receive until it is waited for;
    such a channel needs ``window=1`` in :func:`xmesh_reshard.transports.executor.execute`.
    """

    def isend(self, target: int, buffer: Any, tag: int) -> Pending:
        """Start to send a buffer to a device; the buffer must stay unchanged until it has been waited for."""
        ...

    def irecv(self, source: int, buffer: Any, tag: int) -> Pending:
        """Start to receive into a buffer from a device."""
        ...


class Done:
    """A send or receive that is complete already."""

    def wait(self) -> None:
        """Return at once."""
