"""Train in the memory you have: recomputation and paging by a certified optimal schedule.

Reference:
    Patil, Jain, Dutta, Stoica, Gonzalez (2022). POET: Training Neural Networks on Tiny Devices with Integrated
    Rematerialization and Paging. ICML. arXiv:2207.07697.
"""

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

__version__ = "0.1.0"
