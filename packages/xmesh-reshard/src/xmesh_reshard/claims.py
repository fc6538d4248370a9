"""The claims of the paper and ours."""

from common_core.claims import Claim

CLAIMS: tuple[Claim, ...] = ()
