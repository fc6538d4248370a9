"""What the paper and we say of activation-compressed training, as checks that a machine runs."""

from gact.claims import _accuracy, _adaptive, _convergence, _memory, _unbiased

CLAIMS = (
    *_memory.CLAIMS,
    *_accuracy.CLAIMS,
    *_adaptive.CLAIMS,
    *_unbiased.CLAIMS,
    *_convergence.CLAIMS,
)
