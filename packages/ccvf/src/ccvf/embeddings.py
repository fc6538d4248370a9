"""Confidences as features of a network: monotone in ``u = sqrt(log(1 / delta))``, or the cosines of the paper."""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from ccvf.layers import fill_uniform, linear

__all__ = ["CosineEmbedding", "LearnedRamps", "Ramps", "conservatism_of"]


def conservatism_of(deltas: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""$u = \sqrt{\log(1/\delta)}$ of a tensor of confidences, in its dtype.

    The logarithm itself is exact to rounding next to 1, where 1 - delta is; what float32 loses there is delta, which
    it holds to 6e-8, so that u is 0 or at least 2.4e-4.

    Args:
        deltas: Confidences in (0, 1].

    Returns:
        u, at least 0 and finite.

    Example:
        >>> conservatism_of(torch.tensor([1.0, 1e-8])).tolist()
        [0.0, 4.291932106018066]
    """
    smallest = torch.finfo(deltas.dtype).tiny  # a confidence that has underflowed to 0 costs much, not infinity
    return deltas.clamp(smallest, 1.0).log().abs().sqrt()


@final
class Ramps(nn.Module):
    r"""Ramps between evenly spaced knots of u: $m_k(u) = \min(\max(u - t_k, 0), t_{k+1} - t_k)$, without parameters.

    All are 0 at u = 0 (delta = 1) and nondecreasing in u; they add up to u. The last goes on beyond its knot.

    Args:
        knots: Number of ramps K.
        largest: The last knot.
    """

    starts: Tensor
    heights: Tensor

    def __init__(self, knots: int, largest: float) -> None:
        super().__init__()
        edges = torch.linspace(0.0, largest, knots + 1, dtype=torch.float64).float()
        heights = edges.diff()
        heights[-1] = math.inf
        self.register_buffer("starts", edges[:-1], persistent=False)
        self.register_buffer("heights", heights, persistent=False)

    def forward(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape knots"]:
        """Ramps at u, in units of u.

        Args:
            u: Factors, at least 0.

        Returns:
            Heights of the ramps.
        """
        return torch.minimum((u.unsqueeze(-1) - self.starts).clamp_min(0.0), self.heights)


@final
class LearnedRamps(nn.Module):
    r"""Learnt increasing features of u that are 0 (to rounding) at u = 0: a perceptron of positive weights.

    $m_k(u) = \sum_j s(V_{kj})\,(s(s(c_j) u + d_j) - s(d_j))$ with the softplus s: increasing and convex, and going on
    like a straight line, so that a confidence below all those trained on costs more, never less.

    Args:
        knots: Number of features K; the perceptron is as wide.
        largest: Range of u over which the features bend at the start.
        generator: Source of the weights.
    """

    def __init__(self, knots: int, largest: float, generator: torch.Generator) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.empty(knots))
        self.offsets = nn.Parameter(torch.empty(knots))
        self.mixing = nn.Parameter(torch.empty(knots, knots))
        fill_uniform(self.slopes, 0.5, generator)
        fill_uniform(self.mixing, 2.0, generator)
        bends = torch.linspace(0.0, largest, knots)  # where the perceptron's units bend
        with torch.no_grad():
            self.slopes.add_(2.0)
            self.offsets.copy_(-F.softplus(self.slopes) * bends)
            self.mixing.add_(math.log(math.expm1(0.5 / knots)))  # the features' slopes are near 1

    def forward(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape knots"]:
        """Features of u.

        Args:
            u: Factors, at least 0.

        Returns:
            The features.
        """
        hidden = F.softplus(F.softplus(self.slopes) * u.unsqueeze(-1) + self.offsets) - F.softplus(self.offsets)
        return hidden @ F.softplus(self.mixing).t()


@final
class CosineEmbedding(nn.Module):
    r"""$\mathrm{ReLU}(W \cos(\pi i x) + c)$, i = 1 to 64: a confidence, or any number in [0, 1], as F features.

    Args:
        features: Width F.
        generator: Source of the weights.
        frequencies: Number of cosines.

    Reference:
        Dabney et al. (2018). Implicit quantile networks (arXiv:1806.06923), equation 4.
    """

    multiples: Tensor

    def __init__(self, features: int, generator: torch.Generator, *, frequencies: int = 64) -> None:
        super().__init__()
        self.dense = linear(frequencies, features, generator)
        self.register_buffer("multiples", math.pi * torch.arange(1.0, frequencies + 1), persistent=False)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape features"]:
        """Features of numbers in [0, 1].

        Args:
            x: The numbers.

        Returns:
            The features.
        """
        return F.relu(self.dense(torch.cos(x.unsqueeze(-1) * self.multiples)))
