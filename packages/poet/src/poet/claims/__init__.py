"""What the paper and we say of training under a memory limit, as checks that a machine runs."""

from poet.claims import _certified, _exact, _fits, _joint, _saving, _verified

CLAIMS = (
    *_joint.CLAIMS,
    *_saving.CLAIMS,
    *_certified.CLAIMS,
    *_exact.CLAIMS,
    *_fits.CLAIMS,
    *_verified.CLAIMS,
)
