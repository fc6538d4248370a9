"""Execute a plan on real data: in this process, with threads, or with torch.distributed between processes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmesh_reshard.transports.errors import CorruptedError as CorruptedError
    from xmesh_reshard.transports.errors import DeadlockError as DeadlockError
    from xmesh_reshard.transports.errors import PartError as PartError
    from xmesh_reshard.transports.errors import PeerLostError as PeerLostError
    from xmesh_reshard.transports.errors import PlanMismatchError as PlanMismatchError
    from xmesh_reshard.transports.errors import TransportError as TransportError
    from xmesh_reshard.transports.executor import Report as Report
    from xmesh_reshard.transports.launcher import run_local as run_local
    from xmesh_reshard.transports.launcher import run_ranks as run_ranks
    from xmesh_reshard.transports.measuring import measure_topology as measure_topology
    from xmesh_reshard.transports.reference import execute_reference as execute_reference
    from xmesh_reshard.transports.threads import execute_threads as execute_threads
    from xmesh_reshard.transports.torch_transport import TorchTransport as TorchTransport

_LATER = {
    "CorruptedError": "errors",
    "DeadlockError": "errors",
    "PartError": "errors",
    "PeerLostError": "errors",
    "PlanMismatchError": "errors",
    "Report": "executor",
    "TorchTransport": "torch_transport",
    "TransportError": "errors",
    "execute_reference": "reference",
    "execute_threads": "threads",
    "measure_topology": "measuring",
    "run_local": "launcher",
    "run_ranks": "launcher",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        found = getattr(import_module(f"xmesh_reshard.transports.{_LATER[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'xmesh_reshard.transports' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
