"""Heads of value networks: from features of a batch and confidences to values (batch, confidences, actions).

The trunk is evaluated once; every further confidence costs a product with a few numbers an action. Heads compute in
float32 whatever the precision of the trunk.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, SupportsFloat, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from ccvf.confidence import check_deltas, conservatism
from ccvf.embeddings import CosineEmbedding, LearnedRamps, Ramps, conservatism_of
from ccvf.layers import linear

__all__ = ["CosineHead", "EnsembleHead", "Head", "MonotoneHead", "PlainHead", "monotonicity_hinge"]


class Head(nn.Module, ABC):
    """Values of every action at confidences given as (D,), for the whole batch, or (batch, D), each its own.

    Attributes:
        features: Width F of the features it takes.
        n_actions: Number of actions A.
    """

    features: int
    n_actions: int

    @abstractmethod
    def forward(
        self, features: Float[Tensor, "batch features"], deltas: Float[Tensor, "*rows confidences"]
    ) -> Float[Tensor, "batch confidences actions"]:
        """Values at each confidence.

        Args:
            features: Of a batch.
            deltas: Confidences in (0, 1], (D,) or (batch, D).

        Returns:
            Values, float32, (batch, D, actions).
        """

    @abstractmethod
    def with_free(
        self, features: Float[Tensor, "batch features"], deltas: Float[Tensor, "*rows confidences"]
    ) -> tuple[Float[Tensor, "batch confidences actions"], Float[Tensor, "batch 1 actions"]]:
        """Values at each confidence, and those without conservatism, for less than asking twice where possible.

        Args:
            features: Of a batch.
            deltas: Confidences in (0, 1], (D,) or (batch, D).

        Returns:
            What `forward` gives at the confidences, and at delta = 1.
        """


def _full_precision(features: Tensor) -> torch.autocast:
    return torch.autocast(features.device.type, enabled=False)


def _dueling(values: Tensor) -> Tensor:
    """Values from one state value, which comes first, and an advantage for each action."""
    return values[..., :1] + values[..., 1:] - values[..., 1:].mean(-1, keepdim=True)


@final
class MonotoneHead(Head):
    r"""Values that cannot fall when the confidence rises, whatever the weights.

    $Q(s,a,\delta) = Q_1(s,a) - \sum_k \mathrm{softplus}(w_k(s,a))\, m_k(u)$ with $u = \sqrt{\log(1/\delta)}$ and
    features $m_k$ that are 0 at u = 0 and never fall. With ramps between knots of u this is piecewise linear in u, and
    any nonincreasing function with these knots can be had; softplus(w_k) is what one unit of u costs there.

    The order is exact up to the rounding of one float32 sum.

    Args:
        features: Width of the features.
        n_actions: Number of actions.
        generator: Source of the weights.
        smallest: Confidence of the last knot.
        knots: Number of ramps.
        embedding: "ramps" fixed, or "learned".
        beyond: Below `smallest`: "linear" goes on as before the last knot, "constant" stays.
        initial_slope: About what one unit of u costs at the start, in units of return.
        dueling: Makes Q_1 of one state value and advantages.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> head = MonotoneHead(3, 2, generator=torch.Generator().manual_seed(0))
        >>> values = head(torch.randn(5, 3), torch.tensor([1e-6, 0.01, 1.0]))
        >>> values.shape, bool((values.diff(dim=1) > 0).all())
        (torch.Size([5, 3, 2]), True)
    """

    def __init__(
        self,
        features: int,
        n_actions: int,
        *,
        generator: torch.Generator,
        smallest: SupportsFloat = 1e-4,
        knots: int = 16,
        embedding: Literal["ramps", "learned"] = "ramps",
        beyond: Literal["linear", "constant"] = "linear",
        initial_slope: SupportsFloat = 0.05,
        dueling: bool = False,
    ) -> None:
        super().__init__()
        if check_deltas(smallest)[0] >= 1 or knots < 1 or not float(initial_slope) > 0:
            raise ValueError(f"smallest is in (0, 1), knots at least 1 and initial_slope above 0; "
                             f"{smallest=}, {knots=}, {initial_slope=} given")  # fmt: skip
        if embedding not in ("ramps", "learned") or beyond not in ("linear", "constant"):
            raise ValueError(f"embedding is 'ramps' or 'learned' and beyond 'linear' or 'constant'; {embedding!r} and "
                             f"{beyond!r} given")  # fmt: skip
        self.features, self.n_actions, self.knots, self.dueling = features, n_actions, knots, dueling
        largest = float(conservatism(smallest)[0])
        self.largest = largest if beyond == "constant" else math.inf
        self.base_width = n_actions + dueling
        self.dense = linear(features, self.base_width + n_actions * knots, generator)
        self.ramps = Ramps(knots, largest) if embedding == "ramps" else LearnedRamps(knots, largest, generator)
        with torch.no_grad():
            self.dense.bias[self.base_width :] += math.log(math.expm1(float(initial_slope)))

    def curves(
        self, features: Float[Tensor, "batch features"]
    ) -> tuple[Float[Tensor, "batch actions"], Float[Tensor, "batch knots actions"]]:
        """What determines the values at every confidence: those at delta = 1, and the cost of each ramp.

        Args:
            features: Of a batch.

        Returns:
            Values at delta = 1, and nonnegative costs.
        """
        with _full_precision(features):
            base, slopes = self.dense(features.float()).tensor_split([self.base_width], dim=-1)
            base = _dueling(base) if self.dueling else base
            return base, F.softplus(slopes).unflatten(-1, (self.knots, self.n_actions))

    def evaluate(
        self,
        curves: tuple[Float[Tensor, "batch actions"], Float[Tensor, "batch knots actions"]],
        deltas: Float[Tensor, "*rows confidences"],
    ) -> Float[Tensor, "batch confidences actions"]:
        """Values at confidences, from `curves`.

        Args:
            curves: From `curves`.
            deltas: Confidences, (D,) or (batch, D).

        Returns:
            Values.
        """
        base, slopes = curves
        with _full_precision(base):
            u = conservatism_of(deltas).float()
            ramps = self.ramps(u if math.isinf(self.largest) else u.clamp_max(self.largest))
            # Actions last in memory: the arg max over them takes a tenth of the time.
            return torch.baddbmm(base.unsqueeze(1), ramps.expand(len(base), -1, -1), slopes, alpha=-1)

    def forward(
        self, features: Float[Tensor, "batch features"], deltas: Float[Tensor, "*rows confidences"]
    ) -> Float[Tensor, "batch confidences actions"]:
        """Values at each confidence (see `Head.forward`)."""
        return self.evaluate(self.curves(features), deltas)

    def with_free(
        self, features: Float[Tensor, "batch features"], deltas: Float[Tensor, "*rows confidences"]
    ) -> tuple[Float[Tensor, "batch confidences actions"], Float[Tensor, "batch 1 actions"]]:
        """Values at each confidence and at delta = 1, by one layer (see `Head.with_free`)."""
        curves = self.curves(features)
        return self.evaluate(curves, deltas), curves[0].unsqueeze(1)


@final
class CosineHead(Head):
    r"""The paper's: features multiplied by an embedding of the confidence made of 64 cosines; not monotone.

    Every confidence costs a dense layer. `hinge` is a penalty on values that fall as the confidence rises.

    Args:
        features: Width of the features.
        n_actions: Number of actions.
        generator: Source of the weights.
        variable: "delta", as printed, or "u": $u / u_{max}$, which spreads small confidences out.
        smallest: Confidence of $u_{max}$, below which values stay, for "u".
        frequencies: Number of cosines.
        dueling: Makes the values of one state value and advantages.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        features: int,
        n_actions: int,
        *,
        generator: torch.Generator,
        variable: Literal["delta", "u"] = "delta",
        smallest: SupportsFloat = 1e-4,
        frequencies: int = 64,
        dueling: bool = False,
    ) -> None:
        super().__init__()
        if variable not in ("delta", "u") or check_deltas(smallest)[0] >= 1 or frequencies < 1:
            raise ValueError(f"variable is 'delta' or 'u', smallest is in (0, 1) and frequencies at least 1; "
                             f"{variable=}, {smallest=}, {frequencies=} given")  # fmt: skip
        self.features, self.n_actions, self.dueling, self.variable = features, n_actions, dueling, variable
        self.largest = float(conservatism(smallest)[0])
        self.embedding = CosineEmbedding(features, generator, frequencies=frequencies)
        self.dense = linear(features, n_actions + dueling, generator)

    def forward(
        self, features: Float[Tensor, "batch features"], deltas: Float[Tensor, "*rows confidences"]
    ) -> Float[Tensor, "batch confidences actions"]:
        """Values at each confidence (see `Head.forward`)."""
        with _full_precision(features):
            x = (conservatism_of(deltas) / self.largest).clamp_max(1.0) if self.variable == "u" else deltas
            values = self.dense(features.float().unsqueeze(1) * self.embedding(x.float()))
            return _dueling(values) if self.dueling else values

    def with_free(
        self, features: Float[Tensor, "batch features"], deltas: Float[Tensor, "*rows confidences"]
    ) -> tuple[Float[Tensor, "batch confidences actions"], Float[Tensor, "batch 1 actions"]]:
        """Values at each confidence and at delta = 1 (see `Head.with_free`)."""
        return self(features, deltas), self(features, torch.ones_like(deltas.flatten()[:1]))

    def hinge(
        self, values: Float[Tensor, "batch confidences actions"], deltas: Float[Tensor, "*rows confidences"]
    ) -> Float[Tensor, ""]:
        """Penalty on values out of order (see `monotonicity_hinge`)."""
        return monotonicity_hinge(values, deltas)


@final
class PlainHead(Head):
    """Values without a confidence: the same at every one.

    Args:
        features: Width of the features.
        n_actions: Number of actions.
        generator: Source of the weights.
        dueling: Makes the values of one state value and advantages.
    """

    def __init__(self, features: int, n_actions: int, *, generator: torch.Generator, dueling: bool = False) -> None:
        super().__init__()
        self.features, self.n_actions, self.dueling = features, n_actions, dueling
        self.dense = linear(features, n_actions + dueling, generator)

    def forward(
        self, features: Float[Tensor, "batch features"], deltas: Float[Tensor, "*rows confidences"]
    ) -> Float[Tensor, "batch confidences actions"]:
        """Values, the same at each confidence (see `Head.forward`); a view, computed once."""
        with _full_precision(features):
            values = self.dense(features.float())
            values = _dueling(values) if self.dueling else values
            return values.unsqueeze(1).expand(-1, deltas.shape[-1], -1)

    def with_free(
        self, features: Float[Tensor, "batch features"], deltas: Float[Tensor, "*rows confidences"]
    ) -> tuple[Float[Tensor, "batch confidences actions"], Float[Tensor, "batch 1 actions"]]:
        """Values, twice the same (see `Head.with_free`)."""
        values = self(features, deltas)
        return values, values[:, :1]


@final
class EnsembleHead(nn.Module):
    """Values of K heads in one dense layer, for random ensemble mixtures and bootstrapping.

    Args:
        features: Width of the features.
        n_actions: Number of actions.
        heads: K.
        generator: Source of the weights.

    Raises:
        ValueError: If there is no head.
    """

    def __init__(self, features: int, n_actions: int, heads: int, *, generator: torch.Generator) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"an ensemble has at least 1 head, {heads} given")
        self.features, self.n_actions, self.heads = features, n_actions, heads
        self.dense = linear(features, heads * n_actions, generator)

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch heads actions"]:
        """Values of each head.

        Args:
            features: Of a batch.

        Returns:
            Values, float32.
        """
        with _full_precision(features):
            return self.dense(features.float()).unflatten(-1, (self.heads, self.n_actions))


def monotonicity_hinge(
    values: Float[Tensor, "batch confidences actions"], deltas: Float[Tensor, "*rows confidences"]
) -> Float[Tensor, ""]:
    r"""Mean fall of the values between neighbouring confidences: $\max(0, Q(\delta_i) - Q(\delta_{i+1}))$.

    Args:
        values: Values at each confidence.
        deltas: The confidences, (D,) or (batch, D), in any order.

    Returns:
        Penalty in units of the values; 0 where all are in order, or there is one confidence.

    Example:
        >>> values = torch.tensor([[[1.0], [3.0], [2.0]]])
        >>> float(monotonicity_hinge(values, torch.tensor([0.1, 0.2, 1.0])))
        0.5
    """
    if values.shape[1] < 2:
        return values.new_zeros(())
    order = deltas.expand(values.shape[0], -1).argsort(dim=-1).unsqueeze(-1).expand_as(values)
    return (-values.gather(1, order).diff(dim=1)).clamp_min(0.0).mean()
