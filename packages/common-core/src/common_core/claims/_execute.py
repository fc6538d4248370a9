"""What runs in a claim's own process."""

import importlib.metadata
import importlib.util
from typing import Any

from common_core.claims._claim import Claim, ClaimError, Unavailable
from common_core.claims._discovery import GROUP


def _find(entry: str, claim_id: str) -> Claim:
    claims = importlib.metadata.EntryPoint(claim_id, entry, GROUP).load()
    return next(claim for claim in claims if claim.id == claim_id)


def _require(claim: Claim, scale: str) -> None:
    if scale not in claim.scales:
        raise Unavailable(f"the claim has no {scale} scale; it offers {', '.join(claim.scales)}")
    for module, extra in claim.requires.items():
        if importlib.util.find_spec(module) is None:
            raise Unavailable(f"module {module!r} is missing: install {extra}")


def execute_claim(entry: str, claim_id: str, scale: str, seed: int, device: str) -> dict[str, Any]:
    """Run and judge one claim.

    Args:
        entry: ``module:attribute`` of the tuple that holds the claim.
        claim_id: Which claim of it.
        scale: ``quick``, ``full`` or ``gpu``.
        seed: The claim's seed.
        device: Device string.

    Returns:
        A JSON object: ``metrics``, ``checks``, ``headline``, ``figures``.

    Raises:
        Unavailable: The scale or a needed module is missing.
        ClaimError: The outcome cannot be judged.
        Exception: Whatever the claim raises.
    """
    claim = _find(entry, claim_id)
    _require(claim, scale)
    outcome = claim.run(scale, seed, device)
    if not hasattr(outcome, "estimates"):
        raise ClaimError(f"run() must return an Outcome; it returned {type(outcome).__name__}")
    metrics = outcome.estimates()
    checks = claim.judge(metrics)
    try:
        headline = claim.headline.format_map(metrics)
    except KeyError as error:
        raise ClaimError(f"the headline shows {error}, which is not a metric; there are {', '.join(metrics)}") from None
    return {
        "metrics": {name: estimate.to_json() for name, estimate in metrics.items()},
        "checks": [check.to_json() for check in checks],
        "headline": headline,
        "figures": dict(outcome.figures),
    }
