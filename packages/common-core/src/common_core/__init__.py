"""What every Repertory package shares: claims, a task engine, records, seeds, measurement, statistics, a terminal.

Import the modules, not this package: ``from common_core.claims import Claim``. Nothing heavy is imported here; torch,
jax, ray and matplotlib are used only where they are installed, or already imported, by somebody else.
"""

__version__ = "0.1.0"
