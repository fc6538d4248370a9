"""Move sharded tensors between device meshes as fast as the network allows.

Say how tensors are laid out now and how they shall be, and what the network is; get a plan whose distance from the best
possible is known; simulate it, or execute it on torch.distributed, JAX or Ray. Pipeline schedules that hide the
transfers behind computation are here too.

Reference:
    Zhuang, Zhao, Zheng, Li, Xing, Ho, Gonzalez, Stoica, Zhang (2023). On Optimizing the Communication of Model
    Parallelism. MLSys. arXiv:2211.05322.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmesh_reshard import baselines as baselines
    from xmesh_reshard import cases as cases
    from xmesh_reshard import models as models
    from xmesh_reshard import pipeline as pipeline
    from xmesh_reshard import transports as transports
    from xmesh_reshard.io import FormatError as FormatError
    from xmesh_reshard.io import load_plan as load_plan
    from xmesh_reshard.io import save_plan as save_plan
    from xmesh_reshard.jax_devices import topology_of_devices as topology_of_devices
    from xmesh_reshard.jax_transport import JaxTransport as JaxTransport
    from xmesh_reshard.layout import Layout as Layout
    from xmesh_reshard.layout import LayoutError as LayoutError
    from xmesh_reshard.layout import Mesh as Mesh
    from xmesh_reshard.network import Simulation as Simulation
    from xmesh_reshard.network import simulate as simulate
    from xmesh_reshard.pipeline import Instruction as Instruction
    from xmesh_reshard.pipeline import Schedule as Schedule
    from xmesh_reshard.pipeline import run_schedule as run_schedule
    from xmesh_reshard.pipeline import schedule as schedule
    from xmesh_reshard.planning import plan as plan
    from xmesh_reshard.plans import Message as Message
    from xmesh_reshard.plans import Piece as Piece
    from xmesh_reshard.plans import Plan as Plan
    from xmesh_reshard.plans import Transfer as Transfer
    from xmesh_reshard.ray_transport import RayHosts as RayHosts
    from xmesh_reshard.resharding import reshard as reshard
    from xmesh_reshard.shard_server import ShardServer as ShardServer
    from xmesh_reshard.topology import Host as Host
    from xmesh_reshard.topology import Nic as Nic
    from xmesh_reshard.topology import Topology as Topology
    from xmesh_reshard.topology import TopologyError as TopologyError

__version__ = "0.1.0"

# Everything is imported when it is first used: `import xmesh_reshard` stays fast.
_LATER = {
    "FormatError": "io",
    "Host": "topology",
    "Instruction": "pipeline",
    "JaxTransport": "jax_transport",
    "Layout": "layout",
    "LayoutError": "layout",
    "Mesh": "layout",
    "Message": "plans",
    "Nic": "topology",
    "Piece": "plans",
    "Plan": "plans",
    "RayHosts": "ray_transport",
    "Schedule": "pipeline",
    "ShardServer": "shard_server",
    "Simulation": "network",
    "Topology": "topology",
    "TopologyError": "topology",
    "Transfer": "plans",
    "load_plan": "io",
    "plan": "planning",
    "reshard": "resharding",
    "run_schedule": "pipeline",
    "save_plan": "io",
    "schedule": "pipeline",
    "simulate": "network",
    "topology_of_devices": "jax_devices",
}
_EXTRAS = ("jax", "ray", "torch")
_MODULES = ("baselines", "cases", "models", "pipeline", "transports")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"xmesh_reshard.{name}")
    if name in _LATER:
        try:
            found = getattr(import_module(f"xmesh_reshard.{_LATER[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name not in _EXTRAS:
                raise
            raise ImportError(f"{name} needs {error.name}: pip install 'xmesh-reshard[{error.name}]'") from error
        globals()[name] = found
        return found
    raise AttributeError(f"module 'xmesh_reshard' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_MODULES})
