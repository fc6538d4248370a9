"""Claims: sentences of a paper, or of ours, that a machine can check.

A package lists its claims in a tuple and names it in the entry-point group ``repertory.claims``; the runner finds them,
runs each in a process of its own and gives a verdict with the figures behind it.
"""

from common_core.claims._claim import Check as Check
from common_core.claims._claim import Claim as Claim
from common_core.claims._claim import ClaimError as ClaimError
from common_core.claims._claim import Outcome as Outcome
from common_core.claims._claim import Unavailable as Unavailable
from common_core.claims._claim import at_least as at_least
from common_core.claims._claim import at_most as at_most
from common_core.claims._discovery import discover as discover
from common_core.claims._discovery import select as select
from common_core.claims._results import ClaimResult as ClaimResult
from common_core.claims._results import Results as Results
from common_core.claims._runner import Settings as Settings
from common_core.claims._runner import run_claims as run_claims
from common_core.engine import report_progress as report_progress
from common_core.stats import Estimate as Estimate
