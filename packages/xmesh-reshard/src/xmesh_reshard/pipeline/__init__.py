"""Pipeline schedules that hide the transfers between stages: orders, an event model, bounds, and a runner."""

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
