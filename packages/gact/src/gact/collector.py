"""What one ordinary training step tells about each stored tensor: its noise at each width, and who feels it."""

import threading
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, final

from torch import Tensor

from gact import sensitivity
from gact.affine import BITS
from gact.capture import Settled
from gact.contributions import Gradients, Saved, contributions
from gact.forms import Coded, Form, View
from gact.gains import ParameterGains
from gact.ledger import affine_bytes
from gact.nodes import views_parameter
from gact.rules import EXP
from gact.variance import law, law_variance, profile


@dataclass(frozen=True)
class Sensitivity:
    """How much the noise of one stored tensor moves the gradient.

    Args:
        c: The gradient's variance is c · shape(b).
        shape: Variance at 1, 2, 4 and 8 bits in units of the law's R²/6; (1, 1/9, 1/225, 1/65025) where the law holds.
        source: ``"closed form"``, ``"probed"`` or ``"estimated"``.
    """

    c: float
    shape: tuple[float, ...] = tuple(law(b) for b in BITS)
    source: str = "closed form"

    def variance(self, bits: int) -> float:
        """Predicted variance of the gradient when the tensor is stored at `bits`; 0 where it is kept exact."""
        return self.c * self.shape[BITS.index(bits)] if bits in BITS else 0.0


@dataclass
class Stored:
    """What is known of one stored tensor: all its users, its size, and its noise."""

    first: Settled
    numel: int
    users: list[Settled] = field(default_factory=list)
    shape: tuple[float, ...] = tuple(law(b) for b in BITS)
    felt: list[tuple[Tensor, bool]] = field(default_factory=list)  # c in the parameters' gradients, whether exact

    @property
    def least_bits(self) -> int:
        """Fewest bits that all its users allow."""
        return max(user.treatment.least_bits for user in self.users)

    def extra(self, group_size: int) -> int:
        """Bytes beside the codes."""
        return self.first.nbytes - affine_bytes(self.numel, int(self.first.bits), group_size, self.first.dtype)


@final
class Collector:
    """Watches one forward pass and its backward pass; nothing waits for the device before `sensitivities`.

    Args:
        group_size: Numbers a group of the quantiser.
        exact_shape: Whether to compute each tensor's exact variance at each width, which reads it four more times.
    """

    def __init__(self, group_size: int, exact_shape: bool = True) -> None:
        self.stored: dict[str, Stored] = {}
        self.seen = 0  # nodes that have been through a backward pass
        self._group_size, self._exact_shape = group_size, exact_shape
        self._profiles: dict[str, tuple[float, ...]] = {}
        self._numel: dict[str, int] = {}
        self._gains = ParameterGains()
        self._held: list[list[Any]] = []
        self._lock = threading.Lock()

    def inspect(self, key: str, flat: Tensor) -> None:
        """Take note of a tensor about to be quantised."""
        self._numel[key] = flat.numel()
        if self._exact_shape:
            self._profiles[key] = profile(flat, self._group_size)

    def observe(self, settled: Settled, form: Form, node: Any) -> None:
        """Take note of a stored tensor, and ask its node for the gradient that will come in."""
        if not isinstance(form, View) or not isinstance(form.source, Coded):
            return
        stored = self.stored.get(settled.item)
        if stored is None:
            stored = self.stored[settled.item] = Stored(settled, self._numel.get(settled.item, 0))
        stored.users.append(settled)
        codes = form.source.codes()
        low, high = codes.low, codes.high
        if len(stored.users) == 1:
            self._shape(stored, low, high)
        seen = _as_seen(settled, form, low, high, self._group_size)
        held = [node]  # given up after the first call: a node that its own hook holds would live for ever
        self._held.append(held)

        def hook(grad_inputs: Gradients, grad_outputs: Gradients) -> None:
            if not held:
                return
            own = held.pop()
            found = [
                (entry, 1.0 if direct else self._gains.along(own, entry.edge))
                for entry in contributions(own, seen, grad_inputs, grad_outputs)
                for direct in [entry.exact and views_parameter(own.next_functions[entry.edge][0])]
            ]
            with self._lock:
                self.seen += 1
                for entry, gain in found:
                    stored.felt.append((entry.c * gain, entry.exact and gain == 1.0))

        node.register_hook(hook)

    def release(self) -> None:
        """Let go of the graph; what its backward pass has not told by now stays unknown."""
        for held in self._held:
            held.clear()
        self._held.clear()
        self._gains = ParameterGains()

    def _shape(self, stored: Stored, low: Tensor, high: Tensor) -> None:
        energy = float(law_variance(low, high, stored.numel, self._group_size, 1))
        exact = self._profiles.get(stored.first.item)
        if exact is not None and energy > 0:
            stored.shape = tuple(v / energy for v in exact)

    def sensitivities(self) -> dict[str, Sensitivity]:
        """Return what has been learnt, by item."""
        found = {}
        for item, stored in self.stored.items():
            if not stored.felt:  # no gradient came back to it yet
                continue
            c = sum(float(value) for value, _ in stored.felt)
            if not isfinite(c):  # gradients that a scaler will have skipped
                continue
            source = "closed form" if all(exact for _, exact in stored.felt) else "estimated"
            found[item] = Sensitivity(c, stored.shape, source)
        return found

    def estimates(self) -> dict[str, float]:
        """Return the estimates alone, by item, for comparison between passes."""
        return {item: s.c for item, s in self.sensitivities().items() if s.source == "estimated"}


def _as_seen(settled: Settled, form: View, low: Tensor, high: Tensor, group_size: int) -> Saved:
    size, stride = form.geometry.kept_size, form.geometry.kept_stride
    order = sensitivity.memory_order(size, stride)
    return Saved(settled.saved, size, order, low, high, group_size, settled.treatment.form == EXP)
