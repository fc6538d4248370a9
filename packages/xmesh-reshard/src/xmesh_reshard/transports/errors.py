"""What can go wrong while a plan is executed."""


class PartError(ValueError):
    """A device's parts do not fit the plan: one is missing, or has another shape or type."""


class TransportError(RuntimeError):
    """The execution of a plan has failed; no new part is complete."""


class PlanMismatchError(TransportError):
    """The processes came with different plans; no byte has been moved."""


class PeerLostError(TransportError):
    """Another process has died, failed or stopped answering."""


class CorruptedError(TransportError):
    """Received bytes differ from those that were sent."""


class DeadlockError(TransportError):
    """Devices wait for each other and none can go on."""
