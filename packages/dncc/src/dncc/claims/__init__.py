"""What the paper and we say of negative correlation classification, as checks that a machine runs."""

from dncc.claims import _collusion, _curve, _decomposition, _frontier, _sharing

CLAIMS = (
    *_decomposition.CLAIMS,
    *_curve.CLAIMS,
    *_sharing.CLAIMS,
    *_collusion.CLAIMS,
    *_frontier.CLAIMS,
)
