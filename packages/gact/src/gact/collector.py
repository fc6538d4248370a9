"""What one ordinary training step tells about each stored tensor: its noise at each width, and who feels it."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from gact import sensitivity
from gact.affine import BITS
from gact.capture import Settled
from gact.forms import Coded, Form, View
from gact.ledger import affine_bytes
from gact.nodes import views_parameter
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
    law_energy: float = 0.0
    direct: list[Tensor] = field(default_factory=list)
    local: list[tuple[Settled, Tensor]] = field(default_factory=list)

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
        self.expected = self.seen = 0
        self._group_size, self._exact_shape = group_size, exact_shape
        self._profiles: dict[str, tuple[float, ...]] = {}
        self._numel: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def complete(self) -> bool:
        """Whether every node that was asked has been through a backward pass."""
        return bool(self.stored) and self.seen >= self.expected

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
        measure = _measure(settled, form, node, low, high, self._group_size)
        self.expected += 1

        def hook(grads: tuple[Tensor | None, ...]) -> None:
            with torch.no_grad():
                found = None if grads[0] is None else measure(grads)
            with self._lock:
                self.seen += 1
                if found is not None:
                    direct, value = found
                    if direct:
                        stored.direct.append(value)
                    else:
                        stored.local.append((settled, value))

        node.register_prehook(hook)

    def _shape(self, stored: Stored, low: Tensor, high: Tensor) -> None:
        energy = float(law_variance(low, high, stored.numel, self._group_size, 1))
        stored.law_energy = energy
        exact = self._profiles.get(stored.first.item)
        if exact is not None and energy > 0:
            stored.shape = tuple(v / energy for v in exact)

    def sensitivities(self) -> dict[str, Sensitivity]:
        """Return what has been learnt, by item."""
        found = {}
        for item, stored in self.stored.items():
            direct = sum(float(value) for value in stored.direct)
            local = sum(float(value) for _, value in stored.local)
            source = "closed form" if stored.direct and not stored.local else "estimated"
            if not stored.direct and not stored.local:  # no gradient came back to it yet
                continue
            found[item] = Sensitivity(direct + local, stored.shape, source)
        return found

    def estimates(self) -> dict[str, float]:
        """Return the estimates alone, by item, for comparison between passes."""
        return {item: s.c for item, s in self.sensitivities().items() if s.source == "estimated"}


def _measure(settled: Settled, form: View, node: Any, low: Tensor, high: Tensor, group_size: int) -> Any:
    """A function from incoming gradients to (whether it goes straight into a parameter's gradient, c)."""
    name, saved = settled.operation, settled.saved
    geometry = form.geometry
    order = sensitivity.memory_order(geometry.kept_size, geometry.kept_stride)
    if name in ("Mm", "Addmm", "Bmm", "Baddbmm") and saved in ("self", "mat1", "batch1", "mat2", "batch2"):
        left = saved in ("self", "mat1", "batch1")
        parents = [parent for parent, _ in node.next_functions]
        direct = views_parameter(parents[-1] if left else parents[-2])
        return lambda grads: (
            direct,
            sensitivity.matmul(
                grads[0], geometry.kept_size, low, high, group_size, operand="left" if left else "right", order=order
            ),
        )
    if name == "Convolution" and saved == "input" and views_parameter(node.next_functions[1][0]):
        settings = _convolution(node)
        size = geometry.kept_size
        channels_last = len(size) > 2 and order == (0, *range(2, len(size)), 1)
        weight = tuple(node._saved_weight.shape)
        return lambda grads: (
            True,
            sensitivity.convolution(
                grads[0],
                size,
                weight,
                **settings,
                low=low,
                high=high,
                group_size=group_size,
                channels_last=channels_last,
            ),
        )
    return lambda grads: (False, _estimate(grads, low, high))


def _convolution(node: Any) -> Mapping[str, Any]:
    return {
        "stride": tuple(node._saved_stride), "padding": tuple(node._saved_padding),
        "dilation": tuple(node._saved_dilation), "groups": node._saved_groups, "transposed": node._saved_transposed,
    }  # fmt: skip


def _estimate(grads: tuple[Tensor | None, ...], low: Tensor, high: Tensor) -> Tensor:
    """Without a closed form: the incoming energy times the mean squared range, as if a linear layer read the tensor."""
    energy = sum(torch.linalg.vector_norm(g, dtype=torch.float32).square() for g in grads if g is not None)
    spread = (high.float() - low.float()).square().mean() / 6
    return torch.as_tensor(energy * spread)
