"""Activation-compressed training for any PyTorch model.

What autograd saves for the backward pass is stored at 1 to 8 bits a number, by unbiased stochastic rounding; how many
bits each tensor gets follows from how much the gradient feels its noise. The forward pass stays exact.

Reference:
    Liu, Zheng, Wang, Cen, Chen, Han, Chen, Liu, Tang, Gonzalez, Mahoney, Cheung (2022). GACT: Activation Compressed
    Training for Generic Network Architectures. ICML. arXiv:2206.11357.
"""

from gact.allocation import Allocation as Allocation
from gact.allocation import AllocationError as AllocationError
from gact.census import Census as Census
from gact.census import estimate as estimate
from gact.checkpointing import FixedBits as FixedBits
from gact.checkpointing import checkpoint as checkpoint
from gact.compiled import CompileWarning as CompileWarning
from gact.compressor import ActivationCompressor as ActivationCompressor
from gact.learner import GuardWarning as GuardWarning
from gact.levels import LEVELS as LEVELS
from gact.levels import level as level
from gact.offload import HostStore as HostStore
from gact.report import Report as Report
from gact.rules import Rule as Rule
from gact.rules import Rules as Rules
from gact.target import Target as Target

__version__ = "0.1.0"
