"""Ensembles whose accuracy and diversity are controlled by one number, at the cost of about one network.

A loss that interpolates exactly between training members on their own (lambda = 0) and training their average
(lambda = 1), heads that turn any backbone into an ensemble of one forward pass, controllers that move lambda while
training and notice when members collude, and a report that says how accurate, calibrated and diverse the result is.

Reference:
    Zhang, Hou, Liu, Bian, Xu, Zhou, Zhu (2022). Deep Negative Correlation Classification. arXiv:2212.07070.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dncc.ensembles import EnsembleModule as EnsembleModule
    from dncc.outputs import EnsembleOutput as EnsembleOutput

__version__ = "0.1.0"

# Everything is imported when it is first used: `import dncc` stays fast.
_LATER = {
    "EnsembleModule": "ensembles",
    "EnsembleOutput": "outputs",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'dncc' has no attribute {name!r}")
    found = getattr(import_module(f"dncc.{_LATER[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
