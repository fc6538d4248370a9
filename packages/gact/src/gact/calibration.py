"""Probing: what the noise of some stored tensors does to the gradient, on one batch, with everything else unchanged.

One forward pass keeps every tensor at 8 bits. Then each backward pass through the same graph sees one cluster of
tensors through the quantiser once more, with fresh noise, and the gradient's squared distance from the one without it
is that cluster's variance. Nothing else differs between the passes, dropout included.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor

from gact import kernels
from gact.affine import BITS, AffineCodes
from gact.collector import Collector, Sensitivity
from gact.counter_rng import stream_key
from gact.forms import Coded

BASE_BITS = 8  # of all that is not being probed


@final
class ProbeForm(Coded):
    """Codes that are seen through the quantiser once more while their cluster is being probed."""

    __slots__ = ("_base", "_key", "_probe", "bits", "name")

    def __init__(self, probe: "Probe", key: str, base: Coded) -> None:
        self.name, self.bits = base.name, base.bits
        self._probe, self._key, self._base = probe, key, base

    def codes(self) -> AffineCodes:
        """Return the codes that are stored."""
        return self._base.codes()

    def decode(self) -> Tensor:
        """Return the stored numbers, with the noise of the present draw where they are probed."""
        flat = self._base.decode()
        return self._probe.disturb(self._key, flat) if self._key in self._probe.active else flat

    @property
    def nbytes(self) -> int:
        """Bytes of the stored codes."""
        return self._base.nbytes


@final
class Probe:
    """Which tensors are disturbed now.

    Args:
        width: Bits of the disturbance.
        group_size: Numbers a group.
        seed: Of the rounding.
    """

    def __init__(self, width: int, group_size: int, seed: int) -> None:
        self.width, self._group_size, self._seed = width, group_size, seed
        self.active: frozenset[str] = frozenset()
        self.draw = 0
        self._number: dict[str, int] = {}

    def form(self, key: str, base: Coded) -> ProbeForm:
        """The form of one tensor, for a frame's plan."""
        self._number[key] = len(self._number)
        return ProbeForm(self, key, base)

    def disturb(self, key: str, flat: Tensor) -> Tensor:
        """What the quantiser makes of a tensor; the same for all that share it within a draw."""
        noise = stream_key(self._seed, self.draw, self._number[key])
        return kernels.dequantise(kernels.quantise(flat, self.width, key=noise, group_size=self._group_size))


def clusters(collector: Collector, wanted: Sequence[str]) -> dict[Any, list[str]]:
    """Group stored tensors that have the same users, shapes and types: layers of one kind."""
    found: dict[Any, list[str]] = defaultdict(list)
    for item in wanted:
        stored = collector.stored[item]
        users = tuple((u.operation, u.saved, u.shape) for u in stored.users)
        found[stored.first.dtype, users].append(item)
    return dict(found)


def probe_sensitivities(
    loss: Tensor, parameters: Sequence[Tensor], probe: Probe, collector: Collector, draws: int
) -> dict[str, Sensitivity]:
    """Return the sensitivity of every stored tensor: in closed form where there is one, else by probing its cluster.

    Args:
        loss: Of one forward pass whose frame used `probe` and `collector`.
        parameters: With respect to which the gradient is taken.
        probe: The probe of that frame.
        collector: The collector of that frame.
        draws: Noise draws a cluster.

    Returns:
        By item. No cluster is probed below the fewest bits that its operations allow. Within a cluster the probed
        variance is split in proportion to what each tensor's range and incoming gradient suggest.
    """
    base = _gradient(loss, parameters)
    known, width = collector.sensitivities(), probe.width
    open_items = [item for item, s in known.items() if s.source != "closed form"]
    for members in clusters(collector, open_items).values():
        total = 0.0
        probe.active = frozenset(members)
        probe.width = max(width, *(collector.stored[item].least_bits for item in members))
        for _ in range(draws):
            probe.draw += 1
            total += _distance(_gradient(loss, parameters), base) / draws
        probe.active = frozenset()
        place = BITS.index(probe.width)
        probe.width = width
        shares = [max(known[item].c, 0.0) for item in members]
        if not sum(shares) > 0:
            shares = [1.0] * len(members)
        scale = sum(share * known[item].shape[place] for share, item in zip(shares, members, strict=True))
        for share, item in zip(shares, members, strict=True):
            c = total * share / scale if scale > 0 else 0.0
            known[item] = Sensitivity(c, known[item].shape, "probed")
    return known


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Put the model's buffers and torch's random states back at the end."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in kept:
                    if buffer.shape == value.shape:
                        buffer.copy_(value)


def _gradient(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))


def _distance(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> float:
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return float(sum(torch.linalg.vector_norm(x.float() - y.float(), dtype=torch.float64).square() for x, y in pairs))
