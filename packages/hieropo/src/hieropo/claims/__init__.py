"""What the paper and we say of HierOPO, as checks that a machine runs."""

from hieropo.claims import _coverage, _digits, _sharing

CLAIMS = (*_sharing.CLAIMS, *_coverage.CLAIMS, *_digits.CLAIMS)
