"""What the paper and we say of confidence-conditioned values, as checks that a machine runs."""

from ccvf.claims import _bounds, _gridworld, _minatar

CLAIMS = (*_bounds.CLAIMS, *_gridworld.CLAIMS, *_minatar.CLAIMS)
