"""Is the noise of compression small beside the gradient's own, and are the sensitivities still of today?"""

import math
import weakref
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["CoordinateSample", "Decision", "Drift", "decide"]


@final
class CoordinateSample:
    """The variance of the gradient, from its differences between consecutive steps at a fixed sample of coordinates.

    E ½‖g_t − g_{t−1}‖² = Var[g] for independent gradients with one mean; where the mean moves between the two steps,
    half the square of its move comes on top. The sample draws coordinates with replacement, uniformly within each
    parameter, and scales by numel/k, which is unbiased for the whole norm; parameters of at most k entries are read
    whole. What is estimated contains the variance that compression adds.

    Args:
        parameters: Parameters, or (name, parameter) pairs; held weakly.
        coordinates: k, the largest number of coordinates read from one parameter.
        seed: Seed of the sample.
        decay: Weight of the past in the moving average.

    Raises:
        ValueError: If `coordinates` is not positive or `decay` is not in [0, 1).
        TypeError: If something else than parameters is given.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> sample = CoordinateSample([weight])
        >>> for grad in ([1.0, 0.0], [-1.0, 0.0]):
        ...     weight.grad = torch.tensor(grad)
        ...     value = sample.observe()
        >>> value  # ½ · 2²
        2.0
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
        coordinates: int = 4096,
        seed: int = 0,
        decay: float = 0.9,
    ) -> None:
        if coordinates < 1:
            raise ValueError(f"coordinates is {coordinates}; give at least 1 for each parameter")
        self._coordinates, self._seed = coordinates, seed
        self._average = _Average(decay)
        self._norm = _Average(decay)
        self._parameters: dict[str, weakref.ref[Tensor]] = {}
        self._where: dict[str, tuple[int, Tensor]] = {}
        self._previous: dict[str, Tensor] = {}
        self.track(parameters)

    def track(self, parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        """Replace the set of parameters; those of a known name and size keep their coordinates.

        Args:
            parameters: As for the constructor.
        """
        found: dict[str, weakref.ref[Tensor]] = {}
        for index, entry in enumerate(parameters):
            name, parameter = (str(index), entry) if isinstance(entry, Tensor) else entry
            if not isinstance(parameter, Tensor):
                raise TypeError(
                    f"parameter {name!r} is a {type(parameter).__name__}; give tensors or pairs, such as "
                    "model.named_parameters()"
                )
            found[name] = weakref.ref(parameter)
        self._parameters = found

    @property
    def variance(self) -> float:
        """The moving average of ½‖g_t − g_{t−1}‖², all noise included; NaN before two gradients were seen."""
        return self._average.value

    @property
    def norm_square(self) -> float:
        """The moving average of ‖g‖², of which `variance` is the noise; NaN before a gradient was seen."""
        return self._norm.value

    @torch.no_grad()
    def observe(self, scale: float = 1.0) -> float:
        """Read the gradients after a backward pass, and compare them with those of the last call.

        Parameters without a gradient, or with a sparse one, are left out of this pair; a gradient that is not finite (a
        step that loss scaling skips) is forgotten, and the next pair starts with the next call. Of sharded parameters
        the local shard is read. Waits for the device once.

        Args:
            scale: What the loss was multiplied by, such as ``GradScaler.get_scale()``.

        Returns:
            The moving average of the variance, as `variance`.

        Raises:
            ValueError: If `scale` is not positive.
        """
        if not scale > 0:
            raise ValueError(f"scale is {scale}; give the positive factor of the loss, 1 without loss scaling")
        current = self._read(scale)
        if not current:
            return self.variance
        shared = [n for n in current if n in self._previous and self._previous[n].shape == current[n].shape]
        values = [self._square(current.values())]
        if shared:
            values.append(0.5 * self._square(current[name] - self._previous[name] for name in shared))
        norm, *difference = torch.stack(values).tolist()
        if not math.isfinite(norm):
            self._previous = {}
            return self.variance
        self._norm.add(norm)
        for value in difference:
            self._average.add(value)
        self._previous = current
        return self.variance

    def own(self, predicted: float) -> float:
        """The gradient's own variance: what was measured less what compression is predicted to add.

        Args:
            predicted: Predicted variance of compression, for the same gradients.

        Returns:
            max(0, variance − predicted); NaN before two gradients were seen.
        """
        return self.variance if math.isnan(self.variance) else max(0.0, self.variance - predicted)

    def state_dict(self) -> dict[str, Any]:
        """Settings and averages as plain numbers; the last gradients are not kept.

        Returns:
            For `load_state_dict`.
        """
        return {
            "coordinates": self._coordinates,
            "seed": self._seed,
            "variance": self._average.state_dict(),
            "norm": self._norm.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the first call of `observe` afterwards starts a new pair.

        Args:
            state: From `state_dict`.
        """
        self._coordinates, self._seed = int(state["coordinates"]), int(state["seed"])
        self._average.load_state_dict(state["variance"])
        self._norm.load_state_dict(state["norm"])
        self._where, self._previous = {}, {}

    def _read(self, scale: float) -> dict[str, Tensor]:
        """The sampled gradient of each parameter, scaled so that its square estimates the whole gradient's."""
        found = {}
        for name, reference in self._parameters.items():
            parameter = reference()
            grad = None if parameter is None else parameter.grad
            if grad is None or grad.layout != torch.strided or grad.numel() == 0:
                continue
            local = grad.to_local() if hasattr(grad, "to_local") else grad
            flat = local.reshape(-1)  # a copy only where the layout is not row by row
            where = self._indices(name, flat)
            factor = (1.0 if where is None else math.sqrt(flat.numel() / where.numel())) / scale
            chosen = flat if where is None else flat[where]
            found[name] = chosen.to(torch.promote_types(flat.dtype, torch.float32)) * factor
        return found

    def _indices(self, name: str, flat: Tensor) -> Tensor | None:
        """The coordinates of a parameter, drawn when it is first seen; None for all of them."""
        numel = flat.numel()
        if numel <= self._coordinates:
            return None
        known = self._where.get(name)
        if known is None or known[0] != numel or known[1].device != flat.device:
            generator = torch.Generator().manual_seed(self._seed * 0x9E3779B1 + zlib.crc32(name.encode()))
            where = torch.randint(numel, (self._coordinates,), generator=generator).sort().values
            known = self._where[name] = (numel, where.to(flat.device))
            self._previous.pop(name, None)  # read elsewhere
        return known[1]

    @staticmethod
    def _square(pieces: Iterable[Tensor]) -> Tensor:
        """Squared norm of all pieces together, in double precision where the device has it."""
        flat = torch.cat([piece.to(torch.promote_types(piece.dtype, torch.float32)) for piece in pieces])
        wide = torch.float32 if flat.device.type == "mps" else torch.float64
        return torch.linalg.vector_norm(flat, dtype=wide).square()


@dataclass(frozen=True)
class Decision:
    """What to do about the noise of compression.

    Args:
        raise_bits: Whether to give more bits.
        factor: Predicted variance over the largest allowed one; bits should be raised until the prediction has fallen
            by this factor. NaN where the gradient's own variance is not known, infinite where none of it is left.
        message: The reason, for a log or a report.
    """

    raise_bits: bool
    factor: float
    message: str


def decide(predicted: float, own: float, share: float = 0.1) -> Decision:
    """Whether the predicted variance of compression exceeds its share of the gradient's own variance.

    Args:
        predicted: Predicted variance of compression, Σ_l c_l S(b_l).
        own: The gradient's own variance (`CoordinateSample.own`), of the same batch size.
        share: Largest allowed ratio of the two.

    Returns:
        The decision; no change while `own` or `predicted` is not known.

    Raises:
        ValueError: If `share` is not positive, or a variance is negative.

    Example:
        >>> decide(3.0, 10.0, share=0.1).message
        "compression adds 0.3 of the gradient's own variance, more than 0.1: give more bits"
    """
    if not share > 0:
        raise ValueError(f"share is {share}; give a positive ratio, such as 0.1")
    if predicted < 0 or own < 0:
        raise ValueError(f"predicted variance {predicted}, own variance {own}; give variances >= 0")
    if math.isnan(predicted) or math.isnan(own):
        return Decision(False, math.nan, "the gradient's own variance is not known yet: bits stay")
    if predicted == 0:
        return Decision(False, 0.0, "compression adds no variance: bits stay")
    ratio = predicted / own if own > 0 else math.inf
    if ratio <= share:
        text = f"compression adds {ratio:.3g} of the gradient's own variance, at most {share:.3g}: bits stay"
        return Decision(False, ratio / share, text)
    text = f"compression adds {ratio:.3g} of the gradient's own variance, more than {share:.3g}: give more bits"
    return Decision(True, ratio / share, text)


@final
class Drift:
    """Whether the loss or the norm of the gradient has moved by a factor since the sensitivities were last measured.

    Both are smoothed by a moving average. A loss counts only while it is positive, then and now, since ratios of
    others mean nothing; values that are not finite are left out.

    Args:
        factor: The move that calls for new sensitivities; above 1.
        decay: Weight of the past in the moving averages.
        warmup: Updates before the first reference is taken.

    Raises:
        ValueError: If `factor` is not above 1, `decay` not in [0, 1), or `warmup` not positive.

    Example:
        >>> drift = Drift(decay=0.0, warmup=1)
        >>> [drift.update(loss, 1.0) for loss in (4.0, 3.0, 1.9)]
        [False, False, True]
    """

    def __init__(self, factor: float = 2.0, decay: float = 0.9, warmup: int = 10) -> None:
        if not factor > 1 or warmup < 1:
            raise ValueError(f"factor is {factor} and warmup {warmup}; give a factor above 1 and at least 1 update")
        self._factor, self._warmup = factor, warmup
        self._averages = (_Average(decay), _Average(decay))
        self._reference: tuple[float, float] | None = None

    def update(self, loss: float = math.nan, grad_norm: float = math.nan) -> bool:
        """Take in a step.

        Args:
            loss: Its loss; NaN if unknown.
            grad_norm: Norm of its gradient; NaN if unknown.

        Returns:
            Whether the sensitivities are due for a refresh; so until `refreshed` is called.
        """
        for average, value in zip(self._averages, (loss, grad_norm), strict=True):
            if math.isfinite(value):
                average.add(value)
        if self._reference is None:
            if max(average.count for average in self._averages) >= self._warmup:
                self.refreshed()
            return False
        now = (average.value for average in self._averages)
        return any(self._moved(then, value) for then, value in zip(self._reference, now, strict=True))

    def refreshed(self) -> None:
        """The sensitivities are of now: measure drift from here."""
        loss, norm = (average.value for average in self._averages)
        self._reference = (loss, norm)

    def state_dict(self) -> dict[str, Any]:
        """Averages and reference as plain numbers.

        Returns:
            For `load_state_dict`.
        """
        loss, norm = (average.state_dict() for average in self._averages)
        return {"loss": loss, "norm": norm, "reference": None if self._reference is None else list(self._reference)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Args:
            state: From `state_dict`.
        """
        for average, name in zip(self._averages, ("loss", "norm"), strict=True):
            average.load_state_dict(state[name])
        reference = state["reference"]
        self._reference = None if reference is None else (float(reference[0]), float(reference[1]))

    def _moved(self, then: float, now: float) -> bool:
        return then > 0 and now > 0 and not 1 / self._factor <= now / then <= self._factor


@final
class _Average:
    """A moving average, weighted as if it had started with its first value."""

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; give a weight of the past in [0, 1)")
        self._decay = decay
        self._sum = self._weight = 0.0
        self.count = 0

    @property
    def value(self) -> float:
        return self._sum / self._weight if self._weight > 0 else math.nan

    def add(self, value: float) -> None:
        self._sum = self._decay * self._sum + (1 - self._decay) * value
        self._weight = self._decay * self._weight + (1 - self._decay)
        self.count += 1

    def state_dict(self) -> dict[str, float]:
        return {"sum": self._sum, "weight": self._weight, "count": self.count}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self._sum, self._weight, self.count = float(state["sum"]), float(state["weight"]), int(state["count"])
