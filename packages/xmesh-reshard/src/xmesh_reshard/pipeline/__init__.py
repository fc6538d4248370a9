"""Pipeline schedules that hide the transfers between stages: orders, an event model, bounds, and a runner.

Reference:
    Zhuang et al. (2023). On Optimizing the Communication of Model Parallelism. MLSys. arXiv:2211.05322, Section 4.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xmesh_reshard.pipeline.costs import unet_transfers as unet_transfers
from xmesh_reshard.pipeline.instructions import Instruction as Instruction
from xmesh_reshard.pipeline.instructions import Message as Message
from xmesh_reshard.pipeline.instructions import Op as Op
from xmesh_reshard.pipeline.invariants import ScheduleError as ScheduleError
from xmesh_reshard.pipeline.schedules import Kind as Kind
from xmesh_reshard.pipeline.schedules import Schedule as Schedule
from xmesh_reshard.pipeline.schedules import schedule as schedule
from xmesh_reshard.pipeline.timeline import DeadlockError as DeadlockError
from xmesh_reshard.pipeline.timeline import Span as Span
from xmesh_reshard.pipeline.timeline import Status as Status
from xmesh_reshard.pipeline.timeline import Timeline as Timeline
from xmesh_reshard.pipeline.timeline import Transfer as Transfer

if TYPE_CHECKING:
    from xmesh_reshard.pipeline.channels import Channel as Channel
    from xmesh_reshard.pipeline.channels import LocalChannel as LocalChannel
    from xmesh_reshard.pipeline.gantt import gantt_figure as gantt_figure
    from xmesh_reshard.pipeline.gantt import gantt_svg as gantt_svg
    from xmesh_reshard.pipeline.runner import DeviceRun as DeviceRun
    from xmesh_reshard.pipeline.runner import Run as Run
    from xmesh_reshard.pipeline.runner import assemble as assemble
    from xmesh_reshard.pipeline.runner import run_device as run_device
    from xmesh_reshard.pipeline.runner import run_schedule as run_schedule

# What runs or draws is imported when it is first used.
_LATER = {
    "Channel": "channels",
    "DeviceRun": "runner",
    "LocalChannel": "channels",
    "Run": "runner",
    "assemble": "runner",
    "gantt_figure": "gantt",
    "gantt_svg": "gantt",
    "run_device": "runner",
    "run_schedule": "runner",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'xmesh_reshard.pipeline' has no attribute {name!r}")
    found = getattr(import_module(f"xmesh_reshard.pipeline.{_LATER[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
