"""Train in the memory you have: recomputation and paging by a certified optimal schedule.

Trace or describe a training step, say how much RAM and time there is, and get a schedule of recomputation and paging of
least energy or time, with a proof of how good it is; execute it in torch, or export it.

Reference:
    Patil, Jain, Dutta, Stoica, Gonzalez (2022). POET: Training Neural Networks on Tiny Devices with Integrated
    Rematerialization and Paging. ICML. arXiv:2207.07697.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from poet.device import Device as Device
from poet.device import DeviceError as DeviceError
from poet.device import Tier as Tier
from poet.events import Event as Event
from poet.graph import Graph as Graph
from poet.graph import GraphError as GraphError
from poet.graph import Op as Op
from poet.graph import Static as Static
from poet.graph import Value as Value
from poet.problem import Objective as Objective
from poet.problem import formulate as formulate

if TYPE_CHECKING:
    from poet import legacy as legacy
    from poet import zoo as zoo
    from poet.compiling import compile as compile  # noqa: A004
    from poet.io import load_graph as load_graph
    from poet.io import save_graph as save_graph
    from poet.plan import Schedule as Schedule
    from poet.profiling import profile_device as profile_device
    from poet.schedule import Certificate as Certificate
    from poet.schedule import ScheduleError as ScheduleError
    from poet.schedule import Status as Status
    from poet.search import Progress as Progress
    from poet.solving import solve as solve
    from poet.sweep import Surface as Surface
    from poet.sweep import pareto as pareto
    from poet.tracing import trace as trace
    from poet.verifier import verify as verify

__version__ = "0.1.0"

# What needs SciPy or torch is imported when it is first used: `import poet` stays fast.
_LATER = {
    "Certificate": "schedule",
    "Progress": "search",
    "Schedule": "plan",
    "ScheduleError": "schedule",
    "Status": "schedule",
    "Surface": "sweep",
    "compile": "compiling",
    "load_graph": "io",
    "pareto": "sweep",
    "profile_device": "profiling",
    "save_graph": "io",
    "solve": "solving",
    "trace": "tracing",
    "verify": "verifier",
}
_MODULES = ("legacy", "zoo")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"poet.{name}")
    if name in _LATER:
        found = getattr(import_module(f"poet.{_LATER[name]}"), name)
        globals()[name] = found  # also hides the module of the same name, as `from ... import` would
        return found
    raise AttributeError(f"module 'poet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_MODULES})
