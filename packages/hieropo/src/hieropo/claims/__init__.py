"""What the paper and we say of HierOPO, as checks that a machine runs."""

from hieropo.claims import _certificate, _cold_start, _coverage, _digits, _prior, _sharing

CLAIMS = (
    *_sharing.CLAIMS,
    *_coverage.CLAIMS,
    *_digits.CLAIMS,
    *_prior.CLAIMS,
    *_cold_start.CLAIMS,
    *_certificate.CLAIMS,
)
